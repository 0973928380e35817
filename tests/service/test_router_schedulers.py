"""What the router tells its schedulers, and when; what it makes of what each says; whom it asks."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager

import pytest
from opentelemetry.trace import INVALID_SPAN

from woodfrog.clock import SystemClock
from woodfrog.errors import FailedPrecondition, Unavailable
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
from woodfrog.model.rung import Rung
from woodfrog.router import schedulers as schedulers_module
from woodfrog.router.replicas import ReplicaTable
from woodfrog.router.scheduler_link import SchedulerLink
from woodfrog.router.schedulers import Schedulers

SLOW_S = 1.0  # what need not be told at once is told so late here, where it matters


class MemoryPlacements:
    """Notes reports and releases; each stream gives what is put into `updates`, None ends it."""

    def __init__(self) -> None:
        self.updates: asyncio.Queue[TrackUpdate | None] = asyncio.Queue()
        self.reports: asyncio.Queue[tuple[float, RouterReport]] = asyncio.Queue()
        self.released: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()
        self.failures: list[Exception] = []  # of the next releases
        self.acquires: asyncio.Queue[asyncio.Future[Acquired]] = asyncio.Queue()

    async def acquire(
        self,
        model: str,
        excluded: Collection[str] = (),
        caller: Caller = ANYONE,
        *,
        timeout_s: float,
    ) -> Acquired:
        answer: asyncio.Future[Acquired] = asyncio.get_running_loop().create_future()
        self.acquires.put_nowait(answer)
        return await answer

    async def release(self, placement_id: str, *, replica_failed: bool = False) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.released.put_nowait((placement_id, replica_failed))

    async def track(self, reports: AsyncIterator[RouterReport]) -> AsyncIterator[TrackUpdate]:
        reading = asyncio.create_task(self._read(reports))
        try:
            while (update := await self.updates.get()) is not None:
                yield update
        finally:
            reading.cancel()
        raise Unavailable("TRACK_ENDED", "the scheduler is gone")

    async def _read(self, reports: AsyncIterator[RouterReport]) -> None:
        async for report in reports:
            self.reports.put_nowait((asyncio.get_running_loop().time(), report))


class MemoryTenants:
    def __init__(self) -> None:
        self.uses: list[TenantUse] = []
        self.heard: list[tuple[bool, TenantUse]] = []

    def running(self) -> list[TenantUse]:
        return [TenantUse("t", 5)]

    def report(self) -> list[TenantUse]:
        uses, self.uses = self.uses, []
        return uses

    def hear(self, elsewhere: Iterable[TenantUse], *, full: bool) -> None:
        self.heard += ((full, use) for use in elsewhere or [TenantUse("", 0)])


class Tracked:
    """Of the schedulers "one" and "two"; the first is `placements`."""

    def __init__(self) -> None:
        self.one, self.two = MemoryPlacements(), MemoryPlacements()
        self.table = ReplicaTable()
        self.forgotten: list[str] = []
        self.ended: list[str] = []
        self.tenants = MemoryTenants()
        self.schedulers = Schedulers(
            self.table,
            {"one": self.one, "two": self.two},
            lambda r: self.forgotten.append(r.replica_id),
            self.ended.append,
            SystemClock(),
            self.tenants,
        )

    @staticmethod
    @asynccontextmanager
    async def running() -> AsyncIterator["Tracked"]:
        self = Tracked()
        task = asyncio.create_task(self.schedulers.run())
        try:
            async with asyncio.timeout(60):
                for placements in (self.one, self.two):
                    _, first = await placements.reports.get()
                    assert first == RouterReport((), (TenantUse("t", 5),)), (
                        "a stream begins with all that runs"
                    )
                yield self
        finally:
            task.cancel()
            await asyncio.wait((task,))

    def start(self, replica_id: str) -> None:
        self.table.start(replica_id)
        self.schedulers.touch()

    def end(self, replica_id: str) -> None:
        self.table.end(replica_id)
        self.schedulers.touch()

    async def told(self, *ids: str) -> None:
        """Until exactly these are in the table."""
        while set(self.table.ids) != set(ids):
            await asyncio.sleep(0)


def replica(name: str) -> ReadyReplica:
    return ReadyReplica(name, "m", "node", f"/run/{name}.sock", 4)


def listed(*names: str) -> TrackUpdate:
    return TrackUpdate(True, tuple(map(replica, names)))


async def test_a_replica_that_gets_busy_or_idle_is_told_at_once_and_the_rest_in_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(schedulers_module, "_REPORT_S", SLOW_S)
    async with Tracked.running() as tracked:
        loop = asyncio.get_running_loop()

        async def report() -> tuple[float, tuple[ReplicaUsage, ...]]:
            at, report = await tracked.one.reports.get()
            assert (await tracked.two.reports.get())[1] == report, "each scheduler is told all"
            return at - began, report.usage

        began = loop.time()
        tracked.start("a")
        tracked.start("a")
        after, usage = await report()
        assert usage == (ReplicaUsage("a", 2, 2),), "a burst is one report"
        assert after < SLOW_S / 2
        began = loop.time()
        tracked.start("a")
        tracked.end("a")
        after, usage = await report()
        assert usage == (ReplicaUsage("a", 2, 1),)
        assert after > 0.9 * SLOW_S
        began = loop.time()
        tracked.end("a")
        tracked.end("a")
        after, usage = await report()
        assert usage == (ReplicaUsage("a", 0, 0),)
        assert after < SLOW_S / 2


async def test_a_slot_that_came_free_is_told_at_once_when_others_have_filled_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(schedulers_module, "_REPORT_S", SLOW_S)
    async with Tracked.running() as tracked:
        tracked.one.updates.put_nowait(listed("a"))
        await tracked.told("a")
        for _ in range(3):
            tracked.start("a")
        await tracked.one.reports.get()
        began = asyncio.get_running_loop().time()
        tracked.end("a")
        assert not tracked.table.urgent
        others = (ReplicaUsage("a", 1),)
        tracked.one.updates.put_nowait(TrackUpdate(False, elsewhere=others))
        at, report = await tracked.one.reports.get()
        assert report.usage == (ReplicaUsage("a", 2, 0),)
        assert at - began < SLOW_S / 2


async def test_a_lost_stream_is_opened_again_with_all_that_runs() -> None:
    async with Tracked.running() as tracked:
        one, two = tracked.one, tracked.two
        one.updates.put_nowait(listed("a", "b"))
        tracked.start("a")
        await one.reports.get()
        assert tracked.schedulers.delivered
        one.updates.put_nowait(None)
        _, report = await one.reports.get()
        assert report.usage == (ReplicaUsage("a", 1, 0),)
        assert set(tracked.table.ids) == {"a", "b"}, "what is known stays while all are away"
        one.updates.put_nowait(listed("b"))
        await tracked.told("b")
        assert tracked.forgotten == ["a"]
        assert (await two.reports.get())[1].usage == (ReplicaUsage("a", 1, 1),)
        assert two.reports.empty(), "the other's stream stood"


async def test_starts_while_a_scheduler_is_away_are_told_it_later() -> None:
    async with Tracked.running() as tracked:
        tracked.two.updates.put_nowait(None)
        for _ in range(2):
            tracked.start("a")
            tracked.end("a")
            tracked.start("b")
            await tracked.one.reports.get()
        began: dict[str, int] = {}
        while began != {"a": 2, "b": 2}:
            for usage in (await tracked.two.reports.get())[1].usage:
                began[usage.replica_id] = began.get(usage.replica_id, 0) + usage.started


async def test_what_tenants_asked_while_a_scheduler_was_away_is_not_told_it() -> None:
    """Else the other routers count twice what another told, or let them make up for minutes that have passed."""
    async with Tracked.running() as tracked:
        one, two = tracked.one, tracked.two
        two.updates.put_nowait(listed("a"))
        await tracked.told("a")
        two.updates.put_nowait(None)
        while tracked.schedulers._links[1].connected:
            await asyncio.sleep(0)
        tracked.tenants.uses = [TenantUse("t", 1, 3, 9)]
        tracked.start("a")
        assert (await one.reports.get())[1].tenants == (TenantUse("t", 1, 3, 9),)
        assert (await two.reports.get())[1].tenants == (TenantUse("t", 5),), "what runs now"


async def test_ready_is_what_one_of_the_connected_says_is() -> None:
    async with Tracked.running() as tracked:
        one, two = tracked.one, tracked.two
        one.updates.put_nowait(listed("a", "b"))
        await tracked.told("a", "b")
        two.updates.put_nowait(listed("b", "c"))
        await tracked.told("a", "b", "c")
        one.updates.put_nowait(TrackUpdate(False, gone=("a", "b")))
        await tracked.told("b", "c")
        assert tracked.forgotten == ["a"], "the other still says that b is ready"
        one.updates.put_nowait(TrackUpdate(False, ready=(replica("d"),)))
        await tracked.told("b", "c", "d")
        two.updates.put_nowait(None)
        await tracked.told("d")
        one.updates.put_nowait(None)
        await one.reports.get()
        assert list(tracked.table.ids) == ["d"], "nobody is left who could say otherwise"
        two.updates.put_nowait(listed("e"))
        await tracked.told("e")


async def test_what_tenants_asked_is_told_to_each_and_believed_of_the_first() -> None:
    async with Tracked.running() as tracked:
        one, two, heard = tracked.one, tracked.two, tracked.tenants.heard
        tracked.tenants.uses = [TenantUse("t", 1, 1, 9)]
        tracked.schedulers.touch()
        for placements in (one, two):
            assert (await placements.reports.get())[1] == RouterReport(
                (), (TenantUse("t", 1, 1, 9),)
            )
        use = TenantUse("t", 2, 3, 4)
        busy = (ReplicaUsage("a", 4),)
        two.updates.put_nowait(TrackUpdate(True, (replica("a"),), elsewhere=busy, tenants=(use,)))
        await tracked.told("a")
        assert heard == [(True, use)], "the other is not there"
        assert tracked.table.pick("m") is None, "all its slots are used elsewhere"
        one.updates.put_nowait(TrackUpdate(True, (replica("b"),), elsewhere=busy, tenants=(use,)))
        await tracked.told("a", "b")
        two.updates.put_nowait(TrackUpdate(False, (replica("c"),), tenants=(use,)))
        await tracked.told("a", "b", "c")
        two.updates.put_nowait(listed("a", "c", "d"))  # it is new, and knows of no router yet
        await tracked.told("a", "b", "c", "d")
        assert heard[1:] == [(True, use)], "what began counts once"
        assert tracked.table.pick("m", {"b", "c", "d"}) is None, "as the first said"
        one.updates.put_nowait(TrackUpdate(False, gone=("b",)))
        one.updates.put_nowait(None)
        two.updates.put_nowait(None)
        while heard[-1] != (True, TenantUse("", 0)):
            await asyncio.sleep(0)
        assert tracked.table.pick("m", {"c"}) == replica("a"), "nobody tells what others run"


async def test_what_a_lost_scheduler_alone_said_of_other_routers_is_over() -> None:
    """A router may have died before it told the others of it, and then none says that it has ended."""
    async with Tracked.running() as tracked:
        one, two, heard = tracked.one, tracked.two, tracked.tenants.heard
        two.updates.put_nowait(TrackUpdate(True, (replica("a"),), tenants=(TenantUse("t", 1),)))
        await tracked.told("a")
        two.updates.put_nowait(TrackUpdate(False, (replica("b"),), tenants=(TenantUse("u", 1),)))
        await tracked.told("a", "b")
        two.updates.put_nowait(TrackUpdate(False, gone=("b",), tenants=(TenantUse("t", 0),)))
        await tracked.told("a")
        busy = (ReplicaUsage("a", 4),)
        one.updates.put_nowait(TrackUpdate(True, (replica("c"),), elsewhere=busy))
        await tracked.told("a", "c")
        assert tracked.table.pick("m", {"c"}) is None
        one.updates.put_nowait(None)
        await tracked.told("a")
        assert tracked.table.pick("m") == replica("a")
        assert heard[-1] == (True, TenantUse("u", 1)), "as the other says"


async def test_what_one_says_has_ended_may_be_alive_to_another() -> None:
    """Who lost a node may have lost only its stream to it."""
    async with Tracked.running() as tracked:
        tracked.one.updates.put_nowait(listed("a", "b"))
        tracked.two.updates.put_nowait(listed("b"))
        await tracked.told("a", "b")
        tracked.one.updates.put_nowait(TrackUpdate(False, (), ("a", "b"), ("a", "b")))
        await tracked.told("b")
        assert tracked.ended == ["a"]
        tracked.two.updates.put_nowait(TrackUpdate(False, (), ("b",), ("b",)))
        await tracked.told()
        assert tracked.ended == ["a", "b"]


async def test_a_suspect_is_used_again_when_a_scheduler_offers_it() -> None:
    async with Tracked.running() as tracked:
        for placements in (tracked.one, tracked.two):
            placements.updates.put_nowait(listed("a"))
        await tracked.told("a")
        tracked.table.suspect("a")
        tracked.one.updates.put_nowait(TrackUpdate(False, gone=("a",)))
        tracked.one.updates.put_nowait(TrackUpdate(False, ready=(replica("b"),)))
        await tracked.told("a", "b")
        assert tracked.table.pick("m", {"b"}) is None, "the other has not heard that it failed"
        tracked.one.updates.put_nowait(TrackUpdate(False, ready=(replica("a"),)))
        while tracked.table.pick("m", {"b"}) is None:
            await asyncio.sleep(0)


async def test_the_first_that_is_up_is_asked_and_the_next_when_it_is_lost_meanwhile() -> None:
    acquired = Acquired("p", replica("a"), Rung.FROZEN)
    lost = Unavailable("RPC_UNAVAILABLE", "connection reset")
    async with Tracked.running() as tracked:
        one, two, schedulers = tracked.one, tracked.two, tracked.schedulers
        two.updates.put_nowait(listed("there"))
        await tracked.told("there")
        asking = asyncio.create_task(schedulers.acquire("m", timeout_s=5))
        (await two.acquires.get()).set_result(acquired)
        assert (await asking)[1].name == "two", "the first is not connected"
        one.updates.put_nowait(listed("here"))
        await tracked.told("here", "there")
        asking = asyncio.create_task(schedulers.acquire("m", timeout_s=5))
        (await one.acquires.get()).set_exception(lost)
        (await two.acquires.get()).set_result(acquired)
        granted, by = await asking
        assert (granted, by.name) == (acquired, "two")
        by.release("p", INVALID_SPAN, replica_failed=False)
        assert await two.released.get() == ("p", False), "who granted it is told"
        asking = asyncio.create_task(schedulers.acquire("m", timeout_s=5))
        (await one.acquires.get()).set_exception(Unavailable("CLIMB_FAILED", "it broke"))
        with pytest.raises(Unavailable, match="it broke"):
            await asking
        assert two.acquires.empty(), "that is an answer"
        asking = asyncio.create_task(schedulers.acquire("m", timeout_s=5))
        for placements in (one, two):
            (await placements.acquires.get()).set_exception(lost)
        with pytest.raises(Unavailable, match="connection reset"):
            await asking


async def test_releases_go_on_after_failures() -> None:
    placements = MemoryPlacements()
    link = SchedulerLink("one", placements)
    task = asyncio.create_task(link.run_releases())
    lost = Unavailable("RPC_UNAVAILABLE", "away")
    placements.failures = [lost, lost, FailedPrecondition("ODD", "refused"), lost, lost, lost]
    for name in ("refused", "given up", "kept"):
        link.release(name, INVALID_SPAN, replica_failed=name == "kept")
    async with asyncio.timeout(60):
        assert await placements.released.get() == ("kept", True)
    task.cancel()
    await asyncio.wait((task,))


async def test_a_scheduler_that_stays_away_costs_no_memory() -> None:
    link = SchedulerLink("one", MemoryPlacements())
    for number in range(10_000):
        use = TenantUse(f"t{number}", 1, 1, 2)
        link.tell(RouterReport((ReplicaUsage(f"r{number}", 0, 1),), (use,)))
    reports = link.reports(lambda: RouterReport((ReplicaUsage("r0", 1, 0),)))
    report = await anext(reports)
    assert len(report.usage) <= 4096
    assert report.usage[-2:] == (ReplicaUsage("r9999", 0, 1), ReplicaUsage("r0", 1, 0))
    assert report.tenants == ()
