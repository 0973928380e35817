"""Plans by the process that makes them."""

import asyncio
import multiprocessing
import os
import random
import signal

import pytest
from tests.unit.scheduler.test_plan import FREE, cell, ladder, of, rungs

from woodfrog.model.rung import Rung
from woodfrog.scheduler.plan import Prices, Resource
from woodfrog.scheduler.plan_worker import PlanWorker


async def test_it_plans_again_after_its_process_was_killed_and_leaves_none() -> None:
    worker = PlanWorker()
    try:
        first = await worker.solve([ladder("frog", 1.0)], of(), FREE, 5.0)
        assert first is not None
        assert rungs(first) == {"frog": Rung.HOT}
        [process] = multiprocessing.active_children()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        assert await worker.solve([ladder("frog", 1.0)], of(), FREE, 5.0) is None
        assert await worker.solve([ladder("frog", 1.0)], of(), FREE, 5.0) is not None
    finally:
        worker.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("count", [1, 20_000])  # the pipe takes all of it, or does not
async def test_one_that_hangs_is_ended_and_the_next_plan_is_made_by_another(count: int) -> None:
    worker = PlanWorker(more_s=0.1)
    frog = [ladder("frog", 1.0)]
    try:
        assert await worker.solve(frog, of(), FREE, 30.0) is not None
        [process] = multiprocessing.active_children()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        many = [ladder(f"m{n}", 1.0) for n in range(count)]
        async with asyncio.timeout(30.0):
            assert await worker.solve(many, of(), FREE, 0.1) is None
        assert multiprocessing.active_children() == []
        assert await worker.solve(frog, of(), FREE, 30.0) is not None
    finally:
        worker.close()


async def test_what_people_ask_for_is_not_where_the_next_plan_begins() -> None:
    worker = PlanWorker()
    items, limits = cell(random.Random(9), nodes=20, models=200)
    dear = Prices({Resource.GPU: 1e-11, Resource.PINNED: 1e-12})
    try:
        for prices, people in ((FREE, False), (dear, True)):
            found = await worker.solve(items, limits, prices, 30.0, asked=people)
            assert found is not None
            assert found.iterations > 0
        again = await worker.solve(items, limits, FREE, 30.0)
        assert again is not None
        assert again.iterations == 0
    finally:
        worker.close()


async def test_who_gives_up_a_plan_does_not_leave_its_answer_to_the_next() -> None:
    worker = PlanWorker()
    try:
        assert await worker.solve([ladder("frog", 1.0)], of(), FREE, 5.0) is not None
        for _ in range(5):
            given_up = asyncio.create_task(worker.solve([ladder("toad", 1.0)], of(), FREE, 5.0))
            await asyncio.sleep(0)
            given_up.cancel()
            await asyncio.gather(given_up, return_exceptions=True)
            found = await worker.solve([ladder("frog", 1.0)], of(), FREE, 5.0)
            assert found is not None
            assert [*found.choices] == ["frog"]
    finally:
        worker.close()
    assert multiprocessing.active_children() == []
