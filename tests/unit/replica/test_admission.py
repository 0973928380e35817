"""Slots are never oversold, everybody gets a turn in order, and the queue has an end."""

import pytest

from woodfrog.errors import ResourceExhausted
from woodfrog.replica.admission import Admission


async def test_slots_are_granted_in_order() -> None:
    admission = Admission(slots=2, waiting_max=8)
    first, second, third, fourth = admission.take(4)
    assert [t.granted.done() for t in (first, second, third, fourth)] == [True, True, False, False]
    assert (admission.active, admission.waiting) == (2, 2)
    second.give_back()
    assert third.granted.done()
    assert not fourth.granted.done()


async def test_all_or_none() -> None:
    admission = Admission(slots=2, waiting_max=1)
    with pytest.raises(ResourceExhausted) as refusal:
        admission.take(4)
    assert refusal.value.reason == "QUEUE_FULL"
    assert refusal.value.retry_after_s
    assert refusal.value.retry_after_s > 0
    assert (admission.active, admission.waiting) == (0, 0)
    assert len(admission.take(3)) == 3


async def test_a_waiting_ticket_that_is_given_back_takes_no_slot() -> None:
    admission = Admission(slots=1, waiting_max=2)
    running, waiting, last = admission.take(3)
    waiting.give_back()
    running.give_back()
    running.give_back()
    assert last.granted.done()
    assert (admission.active, admission.waiting) == (1, 0)


async def test_empty_when_nobody_runs_or_waits() -> None:
    admission = Admission(slots=1, waiting_max=1)
    await admission.empty()
    first, second = admission.take(2)
    first.give_back()
    assert not admission._empty.is_set()
    second.give_back()
    await admission.empty()


async def test_time_to_come_back_follows_how_long_slots_are_held() -> None:
    admission = Admission(slots=1, waiting_max=0)
    admission.take(1)

    def retry_after_s() -> float:
        with pytest.raises(ResourceExhausted) as refusal:
            admission.take(1)
        return refusal.value.retry_after_s or 0.0

    before = retry_after_s()
    for _ in range(30):
        admission.observe(20.0)
    assert before < retry_after_s() <= 20.0
