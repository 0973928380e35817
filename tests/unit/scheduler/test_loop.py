"""The shell where two things happen in one moment."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.scheduler.cell import facts, replica, spec

from woodfrog.clock import FakeClock
from woodfrog.errors import Unavailable
from woodfrog.model.node import NodeUpdate
from woodfrog.model.rung import Rung
from woodfrog.scheduler import events as on
from woodfrog.scheduler.loop import SchedulerLoop, Waits
from woodfrog.scheduler.state import SchedulerState

FROG = spec()
SERVES = on.NodeReported("a", NodeUpdate(True, facts("a"), (replica("f1", FROG, "a"),)))


async def run(story: Callable[[SchedulerLoop, SchedulerState], Awaitable[None]]) -> None:
    state = SchedulerState("e")
    async with asyncio.TaskGroup() as group:
        loop = SchedulerLoop(state, FakeClock(), Waits(1.0, 60.0, 1.0), group)
        try:
            loop.submit(on.CatalogListed((FROG,), (), ("a",)))
            await story(loop, state)
        finally:
            loop.end()
    state.check()


async def turns() -> None:
    """Lets everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("granted_first", [True, False])
async def test_a_grant_and_a_cancellation_cross(granted_first: bool) -> None:
    async def story(loop: SchedulerLoop, state: SchedulerState) -> None:
        caller = asyncio.create_task(loop.acquire("frog", frozenset(), "r", None))
        await turns()
        if granted_first:
            loop.submit(SERVES)
            caller.cancel()
        else:
            caller.cancel()
            loop.submit(SERVES)
        assert state.active("f1") == 1
        await turns()
        assert caller.cancelled()
        assert state.active("f1") == 0

    await run(story)


async def test_a_scheduler_that_stops_lets_nobody_wait() -> None:
    async def story(loop: SchedulerLoop, state: SchedulerState) -> None:
        caller = asyncio.create_task(loop.acquire("frog", frozenset(), "r", None))
        await turns()
        loop.refuse_all()
        loop.submit(SERVES)
        with pytest.raises(Unavailable) as stopping:
            await caller
        assert stopping.value.reason == "SCHEDULER_STOPPING"
        await turns()
        assert state.active("f1") == 0

    await run(story)


async def test_a_broken_invariant_ends_everything() -> None:
    async def story(loop: SchedulerLoop, state: SchedulerState) -> None:
        loop.submit(on.AcquireRequested(7, "frog", 60.0))
        loop.submit(on.AcquireRequested(7, "frog", 60.0))

    with pytest.raises(ExceptionGroup) as broken:
        await run(story)
    assert broken.group_contains(AssertionError)


class SimulatedElection:
    """Won and over when the test says so. Who stands still does not see a term end, but can read its clock."""

    def __init__(self) -> None:
        self.term: Any = None
        self.changed = asyncio.Event()

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def won(self) -> Any:
        while self.term is None:
            await self.changed.wait()
        return self.term


class SimulatedCatalog:
    async def follow(self) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield


async def test_no_plan_decides_after_its_term_though_nobody_was_told_of_the_end() -> None:
    async def story(loop: SchedulerLoop, state: SchedulerState) -> None:
        election: Any = SimulatedElection()
        catalog: Any = SimulatedCatalog()
        loop.submit(SERVES)
        loop.start(catalog, election)
        election.term = SimpleNamespace(lost=asyncio.Event(), token=1)
        election.changed.set()
        await turns()
        assert loop.leads
        loop.submit(on.Planned({"f1": Rung.PARKED}))
        assert state.planned
        election.term = None
        loop.submit(on.Ticked())
        assert not state.planned

    await run(story)


async def test_orders_carry_the_term_in_which_they_are_given_from_the_first_event_on() -> None:
    state = SchedulerState("e")
    async with asyncio.TaskGroup() as group:
        loop = SchedulerLoop(state, FakeClock(), Waits(1.0, 60.0, 1.0), group)
        asked: list[int] = []

        async def descend(replica_id: str, rung: Rung, term: int) -> Rung:
            asked.append(term)
            return rung

        loop._client = lambda node: SimpleNamespace(descend=descend)  # type: ignore[assignment,method-assign,return-value]
        try:
            loop._election = SimpleNamespace(term=SimpleNamespace(token=7))  # type: ignore[assignment]
            orders = [on.Descend("f1", "a", Rung.FROZEN, led) for led in (True, False)]
            loop.submit(on.Ticked())
            loop._carry_out(orders[0], 0.0)
            loop._carry_out(orders[1], 0.0)
            loop._election = SimpleNamespace(term=SimpleNamespace(token=9))  # type: ignore[assignment]
            loop.submit(on.Ticked())
            await turns()
        finally:
            loop.end()
    assert asked == [7, 0]
