"""What becomes of idle replicas when plans are made, and when none can be."""

from collections.abc import Sequence

import pytest
from tests.unit.scheduler.cell import Cell, every, only, replica
from tests.unit.scheduler.test_planning import FROG, served, wakes

from woodfrog.clock import FakeClock
from woodfrog.errors import Unavailable
from woodfrog.model.placement import WhatIf
from woodfrog.model.rung import Rung
from woodfrog.scheduler import events as on
from woodfrog.scheduler.board import Limits as BoardLimits
from woodfrog.scheduler.plan import Item, Limits, Prices, Solution
from woodfrog.scheduler.plan_worker import PlanWorker
from woodfrog.scheduler.planner import Planner
from woodfrog.scheduler.plans import FAILURES_MAX, Plans


class SimulatedWorker(PlanWorker):
    """In this process; `broken`, it fails as one that dies or hangs does."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = False
        self.asked: list[bool] = []

    async def solve(
        self,
        items: Sequence[Item],
        limits: Limits,
        prices: Prices,
        within_s: float,
        *,
        asked: bool = False,
    ) -> Solution | None:
        self.asked.append(asked)
        return (
            None if self.broken else Planner().solve(items, limits, prices, within_s, asked=asked)
        )


def parked() -> tuple[Cell, SimulatedWorker, Plans]:
    """A model that is wanted often enough to be kept by a plan for longer than by the clock."""
    cell = Cell(FROG)
    served(cell, replica("f1", FROG, "a"))
    wakes(cell, "frog", 400.0)
    assert only(on.Descend, cell.wait(6.0)).rung is Rung.PARKED
    cell.do(on.DescendFinished("f1", Rung.PARKED))
    worker = SimulatedWorker()
    return cell, worker, Plans(cell.state, FakeClock(cell.now), {}, worker=worker)


async def test_when_plans_fail_again_and_again_the_old_one_counts_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cell, worker, plans = parked()
    planned = await plans.next()
    assert planned is not None
    cell.do(planned)
    worker.broken = True
    for _ in range(FAILURES_MAX - 1):
        assert await plans.next() is None
    assert not every(on.Descend, cell.wait(BoardLimits().freeze_s + 60.0))
    dropped = await plans.next()
    assert dropped == on.Planned({})
    assert only(on.Descend, cell.do(dropped)).rung is Rung.FROZEN
    assert await plans.next() is None  # nothing goes by a plan
    told = [record.message for record in caplog.records]
    assert told == ["no plan is made, idle replicas go by the clock"]


async def test_one_failure_between_others_changes_nothing() -> None:
    cell, worker, plans = parked()
    for broken in (False, True, True, False, True, True):
        worker.broken = broken
        planned = await plans.next()
        assert (planned is None) == broken
        if planned is not None:
            cell.do(planned)
    assert cell.state.planned


async def test_only_the_leaders_plans_are_where_the_next_begins() -> None:
    _, worker, plans = parked()
    await plans.next()
    shown = await plans.what_if(WhatIf())
    assert [model.rung for model in shown.models] == [Rung.PARKED]
    assert worker.asked == [False, True]
    worker.broken = True
    with pytest.raises(Unavailable):
        await plans.what_if(WhatIf())
