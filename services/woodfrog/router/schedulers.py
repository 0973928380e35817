"""All schedulers as one: each is told what runs here, what any of them says is ready is ready, one is asked for placements."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

from woodfrog.clock import Clock
from woodfrog.errors import Unavailable, WoodfrogError
from woodfrog.model.placement import (
    ANYONE,
    Acquired,
    Caller,
    ReadyReplica,
    ReplicaUsage,
    RouterReport,
    TenantUse,
    TrackUpdate,
)
from woodfrog.router.placements import Placements
from woodfrog.router.replicas import ReplicaTable
from woodfrog.router.scheduler_link import SchedulerLink

log = logging.getLogger(__name__)
_REPORT_S = 0.1
_REPORT_URGENT_S = 0.005  # a burst that wakes a replica is one report
_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)


class TenantUses(Protocol):
    """What tenants ask of this router, and of the others."""

    def running(self) -> Iterable[TenantUse]:
        """What is under way here, with no beginnings."""

    def report(self) -> Iterable[TenantUse]:
        """What changed here since the last report; it counts as sent."""

    def hear(self, elsewhere: Iterable[TenantUse], *, full: bool) -> None:
        """What changed at other routers; `full`: nothing else is under way there."""


class _Nobodys:
    """Where there are no tenants."""

    def running(self) -> Iterable[TenantUse]:
        return ()

    def report(self) -> Iterable[TenantUse]:
        return ()

    def hear(self, elsewhere: Iterable[TenantUse], *, full: bool) -> None:
        pass


class Schedulers:
    """Feeds the table and `tenants`. When none is connected any more the table stays as it was, but for what others run."""

    def __init__(
        self,
        table: ReplicaTable,
        placements: Mapping[str, Placements],
        forget: Callable[[ReadyReplica], None],
        ended: Callable[[str], None],
        clock: Clock,
        tenants: TenantUses | None = None,
    ) -> None:
        """`placements` by address, the one to ask first before all others; `forget` is told of each replica that left,
        `ended` the id of each from which nothing comes any more.
        """
        self._table = table
        self._links = [SchedulerLink(name, each) for name, each in placements.items()]
        self._forget = forget
        self._ended = ended
        self._clock = clock
        self._tenants = tenants or _Nobodys()
        self._touched = asyncio.Event()
        self._urgent = asyncio.Event()
        self.delivered = False  #: the list of one of them came once

    def touch(self) -> None:
        """Call after each change of the table's counts, and of what a tenant has under way."""
        self._touched.set()
        if self._table.urgent:
            self._urgent.set()

    async def acquire(
        self,
        model: str,
        excluded: Collection[str] = (),
        caller: Caller = ANYONE,
        *,
        timeout_s: float,
    ) -> tuple[Acquired, SchedulerLink]:
        """From the first that is connected, so that one scheduler joins the requests to one climb; if it is lost
        meanwhile, from the next. Raises woodfrog.errors classes; cancelling it gives the wait up.
        """
        deadline = self._clock.now() + timeout_s
        connected = [link for link in self._links if link.connected]
        for link in connected or self._links:
            left_s = max(deadline - self._clock.now(), 0.001)
            try:
                placements = link.placements
                return await placements.acquire(model, excluded, caller, timeout_s=left_s), link
            except Unavailable as error:
                if error.reason == "CLIMB_FAILED":
                    raise
                lost = error
        raise lost

    async def run(self) -> None:
        """Never returns."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._report())
            for link in self._links:
                group.create_task(self._follow(link))
                group.create_task(link.run_releases())

    # --- what is ready ---

    async def _follow(self, link: SchedulerLink) -> None:
        failures = 0
        while True:
            try:
                async for update in link.placements.track(link.reports(self._running)):
                    failures = 0
                    self._heard(link, update)
            except WoodfrogError as error:
                if failures == 0:
                    extra = {"scheduler": link.name, "error": error.message}
                    log.warning("scheduler lost", extra=extra)
            self._lost(link)
            await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
            failures += 1

    def _heard(self, link: SchedulerLink, update: TrackUpdate) -> None:
        if not link.connected:
            extra = {"scheduler": link.name, "replicas": len(update.ready)}
            log.info("scheduler connected", extra=extra)
        link.hear(update)
        self.delivered = True
        # What was ready when all were lost may be in nobody's list now.
        self._apply(update.ready, [*self._table.ids] if update.full else update.gone)
        for replica_id in self._nobodys(update.ended):
            self._ended(replica_id)
        if link is self._first():  # each tells the same of other routers
            self._hear(update.elsewhere, update.tenants, full=update.full)

    def _lost(self, link: SchedulerLink) -> None:
        was_first = link is self._first()
        said = link.lose()
        rest = self._first()
        if rest is not None:
            self._apply((), said)
        if was_first:  # with none left nobody tells when what runs elsewhere ends
            usage, tenants = (rest.elsewhere, rest.tenants) if rest is not None else ({}, {})
            self._hear(usage.values(), tenants.values(), full=True)

    def _first(self) -> SchedulerLink | None:
        """Of those that are connected."""
        return next((link for link in self._links if link.connected), None)

    def _hear(
        self, elsewhere: Iterable[ReplicaUsage], tenants: Iterable[TenantUse], *, full: bool
    ) -> None:
        self._table.hear(elsewhere, full=full)
        if self._table.urgent:
            self._urgent.set()
        self._tenants.hear(tenants, full=full)

    def _apply(self, ready: Iterable[ReadyReplica], gone: Iterable[str]) -> None:
        """Of `gone` what nobody says is ready."""
        for replica in self._table.apply(ready, self._nobodys(gone)):
            self._forget(replica)

    def _nobodys(self, names: Iterable[str]) -> list[str]:
        lists = [link.ready for link in self._links]
        return [name for name in names if not any(name in said for said in lists)]

    # --- what runs ---

    async def _report(self) -> None:
        """Never returns."""
        while True:
            await self._touched.wait()
            try:
                async with asyncio.timeout(_REPORT_S):
                    await self._still_urgent()
            except TimeoutError:
                pass
            self._touched.clear()
            self._urgent.clear()
            self._tell()

    async def _still_urgent(self) -> None:
        """Short requests one after the other make a replica idle and busy many times a second: only what stays is news."""
        while True:
            await self._urgent.wait()
            await asyncio.sleep(_REPORT_URGENT_S)
            if self._table.urgent:
                return
            self._urgent.clear()

    def _tell(self) -> None:
        report = RouterReport(tuple(self._table.report()), tuple(self._tenants.report()))
        for link in self._links:
            link.tell(report)

    def _running(self) -> RouterReport:
        """All that runs; what changed before is told to everybody."""
        self._tell()
        return RouterReport(tuple(self._table.running()), tuple(self._tenants.running()))
