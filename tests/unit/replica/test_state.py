"""Which verbs lead where."""

import pytest

from woodfrog.replica.state import Event, State, after, allowed


def test_the_usual_life() -> None:
    state = State.LOADING
    for event in (
        Event.LOADED,
        Event.QUIESCE_REQUESTED,
        Event.DRAINED,
        Event.MEMORY_RELEASED,
        Event.THAWED,
    ):
        state = after(state, event)
    assert state is State.SERVING


@pytest.mark.parametrize("state", list(State))
def test_any_state_can_break_and_none_comes_back_from_it(state: State) -> None:
    assert after(state, Event.BROKEN) is State.FAILED
    assert [event for event in Event if allowed(State.FAILED, event)] == [Event.BROKEN]


@pytest.mark.parametrize("state", [State.LOADING, State.SERVING, State.DRAINING, State.FAILED])
def test_only_a_still_replica_thaws(state: State) -> None:
    assert not allowed(state, Event.THAWED)
    with pytest.raises(AssertionError):
        after(state, Event.THAWED)
