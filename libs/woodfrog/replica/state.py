"""Which verbs a replica obeys, and where they lead. Pure."""

from enum import Enum


class State(Enum):
    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"  # quiesce was asked for; requests still run
    QUIESCED = "quiesced"
    PARKED = "parked"
    FAILED = "failed"  # it will never answer again


class Event(Enum):
    LOADED = "loaded"
    QUIESCE_REQUESTED = "quiesce"
    DRAINED = "drained"
    DRAIN_ABANDONED = "drain abandoned"
    MEMORY_RELEASED = "park"
    THAWED = "thaw"
    BROKEN = "broken"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.LOADING, Event.LOADED): State.SERVING,
    (State.SERVING, Event.QUIESCE_REQUESTED): State.DRAINING,
    (State.DRAINING, Event.DRAINED): State.QUIESCED,
    (State.DRAINING, Event.DRAIN_ABANDONED): State.SERVING,
    (State.QUIESCED, Event.MEMORY_RELEASED): State.PARKED,
    (State.QUIESCED, Event.THAWED): State.SERVING,
    (State.PARKED, Event.THAWED): State.SERVING,
    **{(state, Event.BROKEN): State.FAILED for state in State},
}


def allowed(state: State, event: Event) -> bool:
    return (state, event) in TRANSITIONS


def after(state: State, event: Event) -> State:
    """Raises AssertionError when `state` cannot meet `event`."""
    assert allowed(state, event), f"{event.value} in state {state.value}"
    return TRANSITIONS[state, event]
