"""What this node promised: its replicas, their states, and whether one more fits.

Pure: nothing here waits, reads a clock or touches the system. `loop.py` carries the commands out and returns their
results as events. The node's answer is final, so two schedulers can never be promised the same memory.
"""

from dataclasses import dataclass, replace

from woodfrog.model.node import ReplicaState as State
from woodfrog.model.rung import Rung


@dataclass(frozen=True, slots=True)
class Promise:
    """One replica and the memory promised to it."""

    replica_id: str
    model: str
    memory_bytes: int
    state: State


@dataclass(frozen=True, slots=True)
class StartRequested:
    """A new replica is wanted."""

    replica_id: str
    model: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class ThawRequested:
    replica_id: str


@dataclass(frozen=True, slots=True)
class ClimbFinished:
    replica_id: str


@dataclass(frozen=True, slots=True)
class DescendRequested:
    replica_id: str
    rung: Rung  # PARKED or FROZEN


@dataclass(frozen=True, slots=True)
class DescendFinished:
    replica_id: str
    state: State  # PARKED, or SERVING when it was busy


@dataclass(frozen=True, slots=True)
class EndBegun:
    """Its process is being ended, from whatever state it was in; nobody may have it any more."""

    replica_id: str


@dataclass(frozen=True, slots=True)
class ReplicaEnded:
    """Its process is gone, on purpose or not, or a climb failed."""

    replica_id: str


@dataclass(frozen=True, slots=True)
class Start:
    replica_id: str


@dataclass(frozen=True, slots=True)
class Thaw:
    replica_id: str


@dataclass(frozen=True, slots=True)
class Park:
    replica_id: str


@dataclass(frozen=True, slots=True)
class Freeze:
    replica_id: str


@dataclass(frozen=True, slots=True)
class Nothing:
    """It is already so."""


@dataclass(frozen=True, slots=True)
class Refuse:
    reason: str  # NODE_FULL, REPLICA_GONE or REPLICA_BUSY
    message: str


Event = (
    StartRequested
    | ThawRequested
    | ClimbFinished
    | DescendRequested
    | DescendFinished
    | EndBegun
    | ReplicaEnded
)
Command = Start | Thaw | Park | Freeze | Nothing | Refuse

#: (state, event) -> next state. What is not here is refused, or is our own mistake.
TRANSITIONS: dict[tuple[State, type], State] = {
    (State.PARKED, ThawRequested): State.CLIMBING,
    (State.CLIMBING, ClimbFinished): State.SERVING,
    (State.SERVING, DescendRequested): State.DESCENDING,
    (State.PARKED, DescendRequested): State.DESCENDING,
}


class NodeState:
    """Mutable; one owner, the loop."""

    def __init__(self, memory_bytes: int, replica_count_max: int) -> None:
        self.memory_bytes = memory_bytes
        self.replica_count_max = replica_count_max
        self.promises: dict[str, Promise] = {}

    @property
    def memory_promised_bytes(self) -> int:
        return sum(promise.memory_bytes for promise in self.promises.values())

    def handle(self, event: Event) -> Command:
        """Raises AssertionError on an event that cannot be: our own mistake."""
        match event:
            case StartRequested():
                return self._start(event)
            case ThawRequested(replica_id):
                return self._thaw(replica_id)
            case DescendRequested(replica_id, rung):
                return self._descend(replica_id, rung)
            case ClimbFinished(replica_id):
                if replica_id in self.promises:  # it may have ended in the meantime
                    self._move(replica_id, TRANSITIONS[self._state(replica_id), type(event)])
            case DescendFinished(replica_id, state):
                assert state in (State.PARKED, State.SERVING)
                if replica_id in self.promises:
                    assert self._state(replica_id) is State.DESCENDING
                    self._move(replica_id, state)
            case EndBegun(replica_id):
                self._move(replica_id, State.DESCENDING)
            case ReplicaEnded(replica_id):
                self.promises.pop(replica_id, None)
        return Nothing()

    def check(self) -> None:
        """The invariants; AssertionError when one is broken."""
        assert self.memory_promised_bytes <= self.memory_bytes
        assert len(self.promises) <= self.replica_count_max
        assert all(key == promise.replica_id for key, promise in self.promises.items())

    def _start(self, event: StartRequested) -> Command:
        assert event.replica_id not in self.promises
        free = self.memory_bytes - self.memory_promised_bytes
        if event.memory_bytes > free:
            return Refuse(
                "NODE_FULL",
                f"a replica of {event.model} needs {event.memory_bytes} bytes, {free} are free",
            )
        if len(self.promises) >= self.replica_count_max:
            return Refuse("NODE_FULL", f"it has its {self.replica_count_max} replicas")
        self.promises[event.replica_id] = Promise(
            event.replica_id, event.model, event.memory_bytes, State.CLIMBING
        )
        return Start(event.replica_id)

    def _thaw(self, replica_id: str) -> Command:
        promise = self.promises.get(replica_id)
        if promise is None or promise.state is State.DESCENDING:
            return Refuse("REPLICA_GONE", f"replica {replica_id} is gone or going")
        if promise.state is State.SERVING:
            return Nothing()
        if promise.state is State.CLIMBING:
            return Refuse("REPLICA_BUSY", f"replica {replica_id} is climbing already")
        self._move(replica_id, TRANSITIONS[promise.state, ThawRequested])
        return Thaw(replica_id)

    def _descend(self, replica_id: str, rung: Rung) -> Command:
        assert rung in (Rung.PARKED, Rung.FROZEN)
        promise = self.promises.get(replica_id)
        if promise is None:
            return Nothing()
        if promise.state in (State.CLIMBING, State.DESCENDING):
            return Refuse("REPLICA_BUSY", f"replica {replica_id} is {promise.state.value}")
        if promise.state is State.PARKED and rung is Rung.PARKED:
            return Nothing()
        self._move(replica_id, TRANSITIONS[promise.state, DescendRequested])
        return Park(replica_id) if rung is Rung.PARKED else Freeze(replica_id)

    def _state(self, replica_id: str) -> State:
        return self.promises[replica_id].state

    def _move(self, replica_id: str, state: State) -> None:
        self.promises[replica_id] = replace(self.promises[replica_id], state=state)
