"""When plans are made: the leader's, one after another, and those that people ask for; and what happens when none can be."""

import asyncio
import logging
from dataclasses import dataclass

from woodfrog.clock import Clock
from woodfrog.errors import Unavailable
from woodfrog.model.placement import PlanView, WhatIf
from woodfrog.scheduler import planning
from woodfrog.scheduler.events import Planned
from woodfrog.scheduler.plan import Item, Solution
from woodfrog.scheduler.plan_worker import PlanWorker
from woodfrog.scheduler.state import SchedulerState

log = logging.getLogger(__name__)
FAILURES_MAX = 3  # in a row, until the last plan is too old to go by
_AT_ONCE = 10  # models, before requests have their turn


@dataclass(frozen=True, slots=True)
class Prices:
    """How plans are made; as the settings have it."""

    within_s: float = 2.0
    gpu_price: float = 0.001
    memory_price: float = 0.0001


class Plans:
    """`close` it."""

    def __init__(
        self,
        state: SchedulerState,
        clock: Clock,
        prices: Prices | None = None,
        worker: PlanWorker | None = None,
    ) -> None:
        self._state = state
        self._clock = clock
        self._prices = prices or Prices()
        self._worker = worker or PlanWorker()
        self._one = asyncio.Lock()
        self._failures = 0  # in a row

    async def next(self) -> Planned | None:
        """What is to be planned now; None: nothing changes. After several that failed nothing goes by a plan."""
        made = await self._make(WhatIf(), keep=True)
        if made is None:
            self._failures += 1
            if self._failures == FAILURES_MAX:
                log.error(
                    "no plan is made, idle replicas go by the clock",
                    extra={"failures": FAILURES_MAX},
                )
            return Planned({}) if self._failures >= FAILURES_MAX and self._state.planned else None
        self._failures = 0
        items, solution = made
        planned = items or self._state.planned
        return planning.rests(self._state.view, items, solution) if planned else None

    async def what_if(self, given: WhatIf) -> PlanView:
        """A plan for people; nothing is moved. Raises Unavailable PLAN_FAILED."""
        made = await self._make(given, keep=False)
        if made is None:
            raise Unavailable("PLAN_FAILED", "the process that makes plans died or hung; try again")
        return planning.told(self._state.view, *made)

    def close(self) -> None:
        self._worker.close()

    async def _make(self, given: WhatIf, keep: bool) -> tuple[dict[str, Item], Solution] | None:
        """The problem is put together in small steps, and solved beside the loop. None when that failed."""
        state, now, prices = self._state, self._clock.now(), self._prices
        items: dict[str, Item] = {}
        for count, item in enumerate(
            planning.items(state.view, state.demand, state.estimates, now)
        ):
            if item is not None:
                items[item.model] = item
            if count % _AT_ONCE == 0:
                await asyncio.sleep(0)
        gpu_price = prices.gpu_price if given.gpu_price is None else given.gpu_price
        memory_price = prices.memory_price if given.memory_price is None else given.memory_price
        limits = planning.limits(state.view, items, 1.0 if given.room is None else given.room)
        paid = planning.prices(state.view, gpu_price, memory_price)
        async with self._one:
            solution = await self._worker.solve(
                [*items.values()], limits, paid, prices.within_s, keep=keep
            )
        return None if solution is None else (items, solution)
