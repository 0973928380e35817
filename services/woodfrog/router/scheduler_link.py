"""What the router has with one scheduler: what that one says is ready, what it is still to be told, and what is given back."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from opentelemetry import trace

from woodfrog.errors import Unavailable, WoodfrogError
from woodfrog.model.placement import (
    ReadyReplica,
    ReplicaUsage,
    RouterReport,
    TenantUse,
    TrackUpdate,
)
from woodfrog.router.placements import Placements

log = logging.getLogger(__name__)
Count = TypeVar("Count", ReplicaUsage, TenantUse)
_RELEASES_MAX = 4096
_RELEASE_PAUSES_S = (0.05, 0.1, 0.2)
_UNTOLD_MAX = 4096  # replicas whose use a scheduler that is away is told of later


class SchedulerLink:
    """`schedulers.py` runs its stream."""

    def __init__(self, name: str, placements: Placements) -> None:
        self.name = name  #: its address
        self.placements = placements
        self.connected = False  #: its list came, on the stream that stands
        self.ready: dict[str, ReadyReplica] = {}  #: as it says; empty while it is not connected
        #: What other routers run, and tenants have under way there, as it says; as `ready`, and never 0.
        self.elsewhere: dict[str, ReplicaUsage] = {}
        self.tenants: dict[str, TenantUse] = {}
        self._untold: dict[str, ReplicaUsage] = {}
        self._untold_tenants: dict[str, TenantUse] = {}
        self._tells = False  # a stream stands that takes reports
        self._news = asyncio.Event()
        self._releases: asyncio.Queue[tuple[str, trace.Span, bool]] = asyncio.Queue(_RELEASES_MAX)

    def hear(self, update: TrackUpdate) -> None:
        if update.full:
            self._clear()
        for replica_id in update.gone:
            self.ready.pop(replica_id, None)
        self.ready.update({replica.replica_id: replica for replica in update.ready})
        for usage in update.elsewhere:
            _note(self.elsewhere, usage.replica_id, usage)
        for use in update.tenants:
            _note(self.tenants, use.tenant, TenantUse(use.tenant, use.active))
        self.connected = True

    def lose(self) -> list[str]:
        """The stream broke. Returns what it said was ready."""
        said = [*self.ready]
        self._clear()
        self.connected = self._tells = False
        self._untold_tenants.clear()
        return said

    def _clear(self) -> None:
        self.ready.clear()
        self.elsewhere.clear()
        self.tenants.clear()

    def tell(self, report: RouterReport) -> None:
        """Goes with the next report; what began and was not reported yet adds up.

        What tenants asked while the scheduler is away is never told it: another told of it, or it is so long ago that the
        others would make up for minutes that have passed.
        """
        for use in report.tenants if self._tells else ():
            untold = self._untold_tenants.get(use.tenant)
            self._untold_tenants[use.tenant] = use if untold is None else untold.then(use)
        for each in report.usage:
            before = self._untold.pop(each.replica_id, None)
            started = each.started + (before.started if before else 0)
            self._untold[each.replica_id] = ReplicaUsage(each.replica_id, each.active, started)
        while not self.connected and len(self._untold) > _UNTOLD_MAX:
            del self._untold[next(iter(self._untold))]
        if self._untold or self._untold_tenants:
            self._news.set()

    async def reports(self, running: Callable[[], RouterReport]) -> AsyncIterator[RouterReport]:
        """For one stream: first all that is `running`, then what is told. One that reads slowly gets the newest."""
        self._tells = True
        self.tell(running())
        while True:
            untold, self._untold = self._untold, {}
            tenants, self._untold_tenants = self._untold_tenants, {}
            self._news.clear()
            yield RouterReport(tuple(untold.values()), tuple(tenants.values()))
            await self._news.wait()

    def release(self, placement_id: str, span: trace.Span, *, replica_failed: bool) -> None:
        """Makes no request wait for it. `span` is the parent of the call's."""
        try:
            self._releases.put_nowait((placement_id, span, replica_failed))
        except asyncio.QueueFull:
            # The scheduler is away; a placement ends with this router's stream too.
            extra = {"placement": placement_id, "scheduler": self.name}
            log.warning("release dropped, too many wait", extra=extra)

    async def run_releases(self) -> None:
        """Never returns."""
        while True:
            placement_id, span, failed = await self._releases.get()
            with trace.use_span(span):
                await self._release(placement_id, failed)

    async def _release(self, placement_id: str, failed: bool) -> None:
        for pause_s in _RELEASE_PAUSES_S:
            try:
                await self.placements.release(placement_id, replica_failed=failed)
                return
            except Unavailable:
                await asyncio.sleep(pause_s)
            except WoodfrogError as error:
                log.warning("release refused", extra={"error": error.message})
                return


def _note(counts: dict[str, Count], name: str, count: Count) -> None:
    counts[name] = count
    if count.active <= 0:
        del counts[name]
