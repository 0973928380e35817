import pytest

from woodfrog import errors
from woodfrog.router.slots import final


def verdict(
    error: errors.WoodfrogError, *, waited_s: float = 0.0, left_s: float = 10.0
) -> errors.WoodfrogError | None:
    return final(error, "m", waited_s=waited_s, left_s=left_s)


def test_lost_scheduler_is_asked_again_until_the_deadline() -> None:
    error = errors.Unavailable("RPC_UNAVAILABLE", "connection refused")
    assert verdict(error) is None
    end = verdict(error, left_s=0.0)
    assert isinstance(end, errors.Unavailable)
    assert (end.reason, end.retry_after_s) == ("SCHEDULER_LOST", 1.0)
    assert "connection refused" in end.message


def test_scheduler_that_stops_is_asked_again_and_at_the_end_keeps_its_word() -> None:
    error = errors.Unavailable("SCHEDULER_STOPPING", "the scheduler stops; try again")
    assert verdict(error) is None
    assert verdict(error, left_s=-1.0) is error


def test_failed_climb_is_final() -> None:
    error = errors.Unavailable("CLIMB_FAILED", "the engine ended")
    assert verdict(error) is error


@pytest.mark.parametrize(
    ("reason", "kept"), [("RPC_DEADLINE_EXCEEDED", False), ("ACQUIRE_DEADLINE", True)]
)
def test_deadline_is_unavailable_to_the_client(reason: str, kept: bool) -> None:
    end = verdict(errors.DeadlineExceeded(reason, "as the scheduler says", retry_after_s=3.0))
    assert isinstance(end, errors.Unavailable)
    assert (end.reason, end.retry_after_s) == ("MODEL_WAKING", 3.0)
    assert (end.message == "as the scheduler says") is kept


def test_no_capacity_always_says_when_to_come_back() -> None:
    end = verdict(errors.ResourceExhausted("NO_CAPACITY", "full"))
    assert end is not None
    assert end.retry_after_s == 1.0
    end = verdict(errors.ResourceExhausted("NO_CAPACITY", "full", retry_after_s=7.0))
    assert end is not None
    assert end.retry_after_s == 7.0


def test_a_model_that_the_scheduler_has_not_heard_of_yet() -> None:
    error = errors.NotFound("MODEL_NOT_FOUND", "who?")
    assert verdict(error) is None
    assert verdict(error, waited_s=1.5) is error
    assert verdict(error, left_s=0.0) is error
