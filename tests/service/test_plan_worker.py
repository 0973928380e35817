"""Plans by the process that makes them."""

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
