"""What the router tells the scheduler, and when."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager

from opentelemetry.trace import INVALID_SPAN

from woodfrog.errors import FailedPrecondition, Unavailable
from woodfrog.model.placement import Acquired, ReadyReplica, ReplicaUsage, TrackUpdate
from woodfrog.router.replicas import ReplicaTable
from woodfrog.router.tracking import Releases, Tracking


class MemoryPlacements:
    """Notes reports and releases; each stream gives what is put into `updates`, None ends it."""

    def __init__(self) -> None:
        self.updates: asyncio.Queue[TrackUpdate | None] = asyncio.Queue()
        self.reports: asyncio.Queue[tuple[float, Sequence[ReplicaUsage]]] = asyncio.Queue()
        self.released: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()
        self.failures: list[Exception] = []  # of the next releases

    async def acquire(
        self, model: str, excluded: Collection[str] = (), *, timeout_s: float
    ) -> Acquired:
        raise AssertionError("not asked here")

    async def release(self, placement_id: str, *, replica_failed: bool = False) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.released.put_nowait((placement_id, replica_failed))

    async def track(
        self, reports: AsyncIterator[Sequence[ReplicaUsage]]
    ) -> AsyncIterator[TrackUpdate]:
        reading = asyncio.create_task(self._read(reports))
        try:
            while (update := await self.updates.get()) is not None:
                yield update
        finally:
            reading.cancel()
        raise Unavailable("TRACK_ENDED", "the scheduler is gone")

    async def _read(self, reports: AsyncIterator[Sequence[ReplicaUsage]]) -> None:
        async for report in reports:
            self.reports.put_nowait((asyncio.get_running_loop().time(), report))


class Tracked:
    def __init__(self) -> None:
        self.placements = MemoryPlacements()
        self.table = ReplicaTable()
        self.forgotten: list[str] = []
        self.tracking = Tracking(
            self.table, self.placements, lambda r: self.forgotten.append(r.socket_path)
        )

    @staticmethod
    @asynccontextmanager
    async def running() -> AsyncIterator["Tracked"]:
        self = Tracked()
        task = asyncio.create_task(self.tracking.run())
        try:
            async with asyncio.timeout(10):
                yield self
        finally:
            task.cancel()
            await asyncio.wait((task,))

    def start(self, replica_id: str) -> None:
        self.table.start(replica_id)
        self.tracking.touch()

    def end(self, replica_id: str) -> None:
        self.table.end(replica_id)
        self.tracking.touch()


def replica(name: str) -> ReadyReplica:
    return ReadyReplica(name, "m", "node", f"/run/{name}.sock", 4)


async def test_a_replica_that_gets_busy_or_idle_is_told_at_once_and_the_rest_in_batches() -> None:
    async with Tracked.running() as tracked:
        reports = tracked.placements.reports
        _, first = await reports.get()
        assert first == [], "the stream begins with all that runs"
        loop = asyncio.get_running_loop()
        began = loop.time()
        tracked.start("a")
        tracked.start("a")
        at, report = await reports.get()
        assert report == [ReplicaUsage("a", 2, 2)], "a burst is one report"
        assert at - began < 0.09
        began = loop.time()
        tracked.start("a")
        tracked.end("a")
        at, report = await reports.get()
        assert report == [ReplicaUsage("a", 2, 1)]
        assert at - began > 0.09
        began = loop.time()
        tracked.end("a")
        tracked.end("a")
        at, report = await reports.get()
        assert report == [ReplicaUsage("a", 0, 0)]
        assert at - began < 0.09


async def test_a_lost_stream_is_opened_again_with_all_that_runs() -> None:
    async with Tracked.running() as tracked:
        placements, table = tracked.placements, tracked.table
        await placements.reports.get()
        placements.updates.put_nowait(TrackUpdate(True, (replica("a"), replica("b"))))
        tracked.start("a")
        _, report = await placements.reports.get()
        assert tracked.tracking.delivered
        placements.updates.put_nowait(None)
        _, report = await placements.reports.get()
        assert report == [ReplicaUsage("a", 1, 0)]
        assert set(table.ids) == {"a", "b"}, "what is known stays while the scheduler is away"
        placements.updates.put_nowait(TrackUpdate(True, (replica("b"),)))
        while "a" in table.ids:
            await asyncio.sleep(0)
        assert tracked.forgotten == ["/run/a.sock"]
        assert tracked.tracking.delivered


async def test_releases_go_on_after_failures() -> None:
    placements = MemoryPlacements()
    releases = Releases(placements)
    task = asyncio.create_task(releases.run())
    lost = Unavailable("RPC_UNAVAILABLE", "away")
    placements.failures = [lost, lost, FailedPrecondition("ODD", "refused"), lost, lost, lost]
    for name in ("refused", "given up", "kept"):
        releases.put(name, INVALID_SPAN, replica_failed=name == "kept")
    async with asyncio.timeout(10):
        assert await placements.released.get() == ("kept", True)
    task.cancel()
    await asyncio.wait((task,))
