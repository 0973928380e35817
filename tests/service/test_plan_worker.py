"""Plans by the process that makes them."""

import asyncio
import multiprocessing
import os
import signal

from tests.unit.scheduler.test_plan import FREE, ladder, of, rungs

from woodfrog.model.rung import Rung
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
