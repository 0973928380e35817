"""The shell around the table of ready replicas: one stream to the scheduler, kept up; and the queue of releases."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence

from opentelemetry import trace

from woodfrog.errors import Unavailable, WoodfrogError
from woodfrog.model.placement import ReadyReplica, ReplicaUsage
from woodfrog.router.placements import Placements
from woodfrog.router.replicas import ReplicaTable

log = logging.getLogger(__name__)
_REPORT_S = 0.1
_REPORT_URGENT_S = 0.005  # a burst that wakes a replica is one report
_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)
_RELEASES_MAX = 4096
_RELEASE_TRIES = 3


class Tracking:
    """Feeds the table and says what runs here. A lost scheduler leaves the table as it was."""

    def __init__(
        self, table: ReplicaTable, placements: Placements, forget: Callable[[ReadyReplica], None]
    ) -> None:
        """`forget` is told of each replica that left."""
        self._table = table
        self._placements = placements
        self._forget = forget
        self._touched = asyncio.Event()
        self._urgent = asyncio.Event()
        self.delivered = False  #: the scheduler's list came once
        self.connected = False

    def touch(self) -> None:
        """Call after each change of the table's counts."""
        self._touched.set()
        if self._table.urgent:
            self._urgent.set()

    async def run(self) -> None:
        """Never returns."""
        failures = 0
        while True:
            try:
                async for update in self._placements.track(self._reports()):
                    if not self.connected:
                        log.info("scheduler connected", extra={"replicas": len(update.ready)})
                    self.connected = self.delivered = True
                    failures = 0
                    for replica in self._table.apply(update.ready, update.gone, full=update.full):
                        self._forget(replica)
            except WoodfrogError as error:
                if failures == 0:
                    text = "scheduler lost, known replicas stay in use"
                    log.warning(text, extra={"error": error.message})
            self.connected = False
            await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
            failures += 1

    async def _reports(self) -> AsyncIterator[Sequence[ReplicaUsage]]:
        yield self._table.report(full=True)
        while True:
            await self._touched.wait()
            try:
                async with asyncio.timeout(_REPORT_S):
                    await self._still_urgent()
            except TimeoutError:
                pass
            self._touched.clear()
            self._urgent.clear()
            yield self._table.report()

    async def _still_urgent(self) -> None:
        """Short requests one after the other make a replica idle and busy many times a second: only what stays is news."""
        while True:
            await self._urgent.wait()
            await asyncio.sleep(_REPORT_URGENT_S)
            if self._table.urgent:
                return
            self._urgent.clear()


class Releases:
    """Ends placements without making a request wait for it."""

    def __init__(self, placements: Placements) -> None:
        self._placements = placements
        self._queue: asyncio.Queue[tuple[str, trace.Span, bool]] = asyncio.Queue(_RELEASES_MAX)

    def put(self, placement_id: str, span: trace.Span, *, replica_failed: bool) -> None:
        """`span` is the parent of the call's."""
        try:
            self._queue.put_nowait((placement_id, span, replica_failed))
        except asyncio.QueueFull:
            # The scheduler is away; a placement ends with this router's stream too.
            log.warning("release dropped, too many wait", extra={"placement": placement_id})

    async def run(self) -> None:
        """Never returns."""
        while True:
            placement_id, span, failed = await self._queue.get()
            with trace.use_span(span):
                await self._release(placement_id, failed)

    async def _release(self, placement_id: str, failed: bool) -> None:
        for pause_s in _BACKOFF_S[:_RELEASE_TRIES]:
            try:
                await self._placements.release(placement_id, replica_failed=failed)
                return
            except Unavailable:
                await asyncio.sleep(pause_s)
            except WoodfrogError as error:
                log.warning("release refused", extra={"error": error.message})
                return
