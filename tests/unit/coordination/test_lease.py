from hypothesis import given
from hypothesis import strategies as st

from woodfrog.coordination.connection import PAUSE_MIN_S
from woodfrog.coordination.lease import LeaseTimer


@given(st.integers(1, 3600), st.floats(0, 1e6), st.floats(0, 10))
def test_deadline_comes_before_etcds_own(ttl_s: int, sent: float, travel_s: float) -> None:
    timer = LeaseTimer(ttl_s, sent)
    etcd_expires = sent + travel_s + ttl_s
    assert sent < timer.due < timer.deadline < etcd_expires


def test_a_renewal_is_due_when_two_more_can_still_fail() -> None:
    timer = LeaseTimer(ttl_s=9, sent=100.0)
    assert timer.due == 103.0
    assert timer.deadline >= timer.due + 3 * timer.try_s


@given(st.integers(1, 3600))
def test_a_silent_member_leaves_time_to_ask_two_others(ttl_s: int) -> None:
    timer = LeaseTimer(ttl_s, sent=0.0)
    third = timer.due + 2 * (timer.try_s + PAUSE_MIN_S)
    assert timer.deadline - third > ttl_s / 8
