"""When plans are made: the leader's, one after another, and those that people ask for; and what happens when none can be."""

import asyncio
import logging
from collections.abc import Mapping

from woodfrog.clock import Clock
from woodfrog.errors import Unavailable
from woodfrog.model.placement import PlanView, WhatIf
from woodfrog.scheduler import planning
from woodfrog.scheduler.events import Planned
from woodfrog.scheduler.plan import Item, Resource, Solution
from woodfrog.scheduler.plan_worker import PlanWorker
from woodfrog.scheduler.state import SchedulerState

log = logging.getLogger(__name__)
FAILURES_MAX = 3  # in a row, until the last plan is too old to go by
_PRICES = {
    Resource.GPU: "gpu_price",
    Resource.PINNED: "pinned_price",
    Resource.MEMORY: "memory_price",
    Resource.DISK: "disk_price",
}
_AT_ONCE = 10  # models, before requests have their turn


class Plans:
    """Prices are for all that a node has of something; a plan that takes longer than `within_s` is made by a simpler rule.

    `close` it.
    """

    def __init__(
        self,
        state: SchedulerState,
        clock: Clock,
        prices: Mapping[Resource, float],
        within_s: float = 2.0,
        worker: PlanWorker | None = None,
    ) -> None:
        self._state = state
        self._clock = clock
        self._prices = prices
        self._within_s = within_s
        self._worker = worker or PlanWorker()
        self._one = asyncio.Lock()
        self._failures = 0  # in a row

    async def next(self) -> Planned | None:
        """What is to be planned now; None: nothing changes. After several that failed nothing goes by a plan."""
        made = await self._make(WhatIf(), asked=False)
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
        made = await self._make(given, asked=True)
        if made is None:
            raise Unavailable("PLAN_FAILED", "the process that makes plans died or hung; try again")
        return planning.told(self._state.view, *made)

    def close(self) -> None:
        self._worker.close()

    async def _make(self, given: WhatIf, asked: bool) -> tuple[dict[str, Item], Solution] | None:
        """The problem is put together in small steps, and solved beside the loop. None when that failed."""
        state, now = self._state, self._clock.now()
        memory = 1.0 if given.memory is None else given.memory
        items: dict[str, Item] = {}
        for count, item in enumerate(
            planning.items(state.view, state.demand, state.estimates, now, memory)
        ):
            if item is not None:
                items[item.model] = item
            if count % _AT_ONCE == 0:
                await asyncio.sleep(0)
        of = {
            resource: price if said is None else said
            for resource, price in self._prices.items()
            for said in [getattr(given, _PRICES[resource])]
        }
        limits = planning.limits(state.view, items, memory)
        prices = planning.prices(state.view, of)
        async with self._one:
            solution = await self._worker.solve(
                [*items.values()], limits, prices, self._within_s, asked=asked
            )
        return None if solution is None else (items, solution)
