"""The session against a real etcd, which is killed, stopped, cut off and compacted."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from pathlib import Path

import pytest
from etcd3.etcdrpc import rpc_pb2
from tests.capabilities import need
from tests.memory.simulated_etcd import SimulatedEtcd
from tests.service.cut_proxy import CutProxy
from tests.service.etcd import EtcdServer

from woodfrog.coordination import Change, Delete, Listing, Put, Registration, Session, operations
from woodfrog.errors import Aborted, AlreadyExists, InvalidArgument, NotFound, Unavailable

pytestmark = need("etcd")
WAIT_S = 60.0
RESUMED_S = 15.0  # 0.02 to 0.2 were seen; the rest is for a busy machine


async def test_values_round_trip(session: Session) -> None:
    assert await session.get("a") is None
    revision = await session.put("a", b"\0\xff")
    item = await session.get("a")
    assert item
    assert (item.value, item.mod_revision) == (b"\0\xff", revision)
    assert await session.delete("a")
    assert not await session.delete("a")
    with pytest.raises(InvalidArgument) as caught:
        await session.put("a", bytes(70_000))
    assert caught.value.reason == "VALUE_TOO_LARGE"
    with pytest.raises(NotFound) as lost:
        await session.put("a", b"", lease=17)
    assert lost.value.reason == "LEASE_NOT_FOUND"


async def test_create_does_not_overwrite(session: Session) -> None:
    await session.create("a", b"first")
    with pytest.raises(AlreadyExists):
        await session.create("a", b"first")
    item = await session.get("a")
    assert item
    assert item.value == b"first"


async def test_of_twenty_replaces_of_one_revision_one_wins(session: Session) -> None:
    revision = await session.create("a", b"0")
    replaces = [session.replace("a", str(i).encode(), revision) for i in range(20)]
    outcomes = await asyncio.gather(*replaces, return_exceptions=True)
    (winner,) = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, int)]
    assert sum(isinstance(outcome, Aborted) for outcome in outcomes) == 19
    item = await session.get("a")
    assert item
    assert item.value == str(winner).encode()
    with pytest.raises(Aborted):
        await session.delete("a", revision)
    assert await session.delete("a", item.mod_revision)
    with pytest.raises(Aborted, match="is gone"):
        await session.replace("a", b"", item.mod_revision)


async def test_replace_keeps_the_lease(session: Session) -> None:
    async with aclosing(await session.grant(2)) as lease:
        revision = await session.create("a", b"0", lease.id)
        await session.replace("a", b"1", revision)
        item = await session.get("a")
        assert item
        assert item.lease == lease.id
    assert await session.get("a") is None


async def test_list_of_3000_keys_comes_in_pages(session: Session) -> None:
    await _create_many(session, "many/", 3000)
    await session.put("many0", b"outside")
    listing = await session.list("many/")
    assert [item.key for item in listing.items] == [f"many/{i:05}" for i in range(3000)]
    assert (await session.list("")).items[-1].key == "many0"


async def test_list_pages_are_of_one_revision(session: Session) -> None:
    """Each pair of keys is written in one transaction; a list that mixes revisions sees a torn pair."""
    await _create_many(session, "many/", 1000)
    first, last = "many/00000", "many/00999"

    async def write_pairs() -> None:
        for value in range(100):
            writes = [operations.write(key, str(value).encode()) for key in (first, last)]
            await session.txn([operations.exists(first)], writes)

    writer = asyncio.create_task(write_pairs())
    while not writer.done():
        items = (await session.list("many/")).items
        assert items[0].mod_revision in (items[-1].mod_revision, items[0].create_revision)
    await writer


async def test_kill9_during_10000_watched_creates(etcd: EtcdServer, session: Session) -> None:
    """Each event once and in order, though writers and watch lose their connections three times."""
    count = 10_000
    seen: list[Change] = []
    async with aclosing(session.watch("w/", 1)) as watch:

        async def read() -> None:
            while len(seen) < count:
                seen.append(await anext(watch))

        reader = asyncio.create_task(read())
        pending = list(range(count))
        created: dict[str, int] = {}

        async def write() -> None:
            while pending:
                key = f"w/{pending.pop():05}"
                while key not in created:
                    try:
                        created[key] = await session.create(key, key.encode())
                    except Unavailable:
                        continue

        async with asyncio.TaskGroup() as group:
            for _ in range(32):
                group.create_task(write())
            for mark in (2000, 4500, 7000):
                await _until(lambda mark=mark: len(created) >= mark)  # type: ignore[misc]
                etcd.kill9()
                await etcd.start()
                up, newest = time.monotonic(), max(created.values())
                await _until(lambda newest=newest: _revision(seen) > newest)  # type: ignore[misc]
                assert time.monotonic() - up < RESUMED_S
        await asyncio.wait_for(reader, WAIT_S)
    puts = [change.item for change in seen if isinstance(change, Put)]
    assert {item.key: item.mod_revision for item in puts} == created
    assert len(puts) == count
    assert [item.mod_revision for item in puts] == sorted(item.mod_revision for item in puts)


async def test_watch_from_a_compacted_revision_lists_again(session: Session) -> None:
    first = await session.put("a/x", b"1")
    await session.put("a/x", b"2")
    last = await session.put("a/y", b"3")
    await _compact(session, last)
    async with aclosing(session.watch("a/", first)) as watch:
        listing = await asyncio.wait_for(anext(watch), WAIT_S)
        assert isinstance(listing, Listing)
        assert [item.value for item in listing.items] == [b"2", b"3"]
        await session.delete("a/x")
        assert await asyncio.wait_for(anext(watch), WAIT_S) == Delete("a/x", last + 1)


async def test_compaction_while_cut_off_lists_again(etcd: EtcdServer, session: Session) -> None:
    """A follower that misses deletions must not keep what they deleted."""
    await session.put("a/x", b"1")
    async with (
        CutProxy(etcd.endpoint) as proxy,
        Session([proxy.endpoint]) as cut,
        aclosing(cut.follow("a/")) as watch,
    ):
        assert isinstance(await anext(watch), Listing)
        await session.put("a/y", b"2")
        await asyncio.wait_for(anext(watch), WAIT_S)
        proxy.redirect(None)
        await session.delete("a/x")
        await _compact(session, await session.put("a/z", b"3"))
        proxy.redirect(etcd.endpoint)
        listing = await asyncio.wait_for(anext(watch), WAIT_S)
        assert isinstance(listing, Listing)
        assert [item.key for item in listing.items] == ["a/y", "a/z"]


@pytest.mark.parametrize("cut_after", [1, 120, 180, 240, 1000, 60_000])
async def test_stream_cut_with_old_events_pending(
    etcd: EtcdServer, session: Session, cut_after: int
) -> None:
    """The trap: to resume from the revision in the `created` answer loses all that was pending."""
    await _create_many(session, "w/", 3000)
    async with CutProxy(etcd.endpoint) as proxy, Session([proxy.endpoint]) as cut:
        proxy.cut_after = cut_after
        async with aclosing(cut.watch("w/", 1)) as watch:
            events = await asyncio.wait_for(_take(watch, 3000), WAIT_S)
        assert proxy.cuts == 1
    revisions = [change.item.mod_revision for change in events if isinstance(change, Put)]
    assert len(set(revisions)) == 3000
    assert revisions == sorted(revisions)


@pytest.mark.parametrize("cut_after", [None, 1, 3 << 20, 20 << 20])
async def test_history_larger_than_a_message_comes_in_fragments(
    etcd: EtcdServer, session: Session, cut_after: int | None
) -> None:
    """56 MB in one answer; where it is cut in the middle of a revision, that revision comes again as a whole."""
    value = bytes(56 << 10)

    async def write(revision: int) -> None:
        keys = [f"w/{revision:03}/{i:02}" for i in range(10)]
        guards = [operations.unchanged(key, 0) for key in keys]
        await session.txn(guards, [operations.write(key, value) for key in keys])

    for start in range(0, 100, 10):
        await asyncio.gather(*(write(start + i) for i in range(10)))
    async with CutProxy(etcd.endpoint) as proxy, Session([proxy.endpoint]) as cut:
        proxy.cut_after = cut_after
        async with aclosing(cut.watch("w/", 1)) as watch:
            events = await asyncio.wait_for(_take(watch, 1000), WAIT_S)
        assert proxy.cuts == (cut_after is not None)
    items = [change.item for change in events if isinstance(change, Put)]
    assert len({item.key for item in items}) == len(items) == 1000
    revisions = [item.mod_revision for item in items]
    assert revisions == sorted(revisions)


async def test_a_watch_that_etcd_forgot_is_made_anew() -> None:
    """Its connection answers pings all the while."""
    async with SimulatedEtcd() as etcd, Session([etcd.endpoint], silence_s=0.2) as session:
        etcd.watches_forgotten = 1
        async with aclosing(session.watch("a", 1)) as watch:
            assert isinstance(await asyncio.wait_for(anext(watch), WAIT_S), Put)
        assert etcd.progress_asked == 1
        assert etcd.calls["Watch"] == 2


async def test_progress_told_too_early_loses_nothing() -> None:
    """As etcd before 3.5.8 does when it is asked."""
    async with SimulatedEtcd() as etcd, Session([etcd.endpoint], silence_s=0.2) as session:
        etcd.progress_revision = 1000
        async with aclosing(session.watch("a", 1)) as watch:
            change = await asyncio.wait_for(anext(watch), WAIT_S)
        assert isinstance(change, Put)
        assert change.item.mod_revision == 2


async def test_an_idle_watch_that_lives_is_kept(etcd: EtcdServer) -> None:
    """It answers what it is asked, and nothing that happens meanwhile is passed over."""
    async with (
        Session([etcd.endpoint], silence_s=0.1) as session,
        aclosing(session.follow("a")) as watch,
    ):
        assert isinstance(await anext(watch), Listing)
        for i in range(5):
            waiting = asyncio.create_task(_take(watch, 1))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(waiting), 0.5)
            await session.put("b", b"")  # the store moves on, the watch does not see it
            await session.put("a", str(i).encode())
            (change,) = await asyncio.wait_for(waiting, WAIT_S)
            assert isinstance(change, Put)
            assert change.item.value == str(i).encode()


async def test_only_reads_and_guarded_writes_are_tried_again() -> None:
    async with SimulatedEtcd() as etcd, Session([etcd.endpoint]) as session:
        etcd.calls.clear()
        etcd.broken = True
        outcomes = await asyncio.gather(
            *(session.put("a", b""), session.delete("a"), session.get("a")),
            session.txn([operations.exists("a")], [operations.write("a", b"")]),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [Unavailable] * 4
        assert (etcd.calls["Put"], etcd.calls["DeleteRange"]) == (1, 1)
        assert etcd.calls["Range"] > 1
        assert etcd.calls["Txn"] > 1


async def test_silent_connection_is_noticed(etcd: EtcdServer, session: Session) -> None:
    """As of a machine that lost its power: nothing is closed, nothing answers."""
    async with (
        CutProxy(etcd.endpoint) as proxy,
        Session([proxy.endpoint]) as cut,
        aclosing(cut.follow("a/")) as watch,
    ):
        assert isinstance(await anext(watch), Listing)
        await cut.put("a/x", b"1")
        assert isinstance(await anext(watch), Put)
        proxy.silence()
        await session.put("a/x", b"2")
        change = await asyncio.wait_for(anext(watch), 12.0)
        assert isinstance(change, Put)
        assert change.item.value == b"2"


async def test_follow_sees_that_etcd_lost_its_data(tmp_path: Path) -> None:
    old, new = EtcdServer(tmp_path), EtcdServer(tmp_path / "new")
    async with old, CutProxy(old.endpoint) as proxy, Session([proxy.endpoint]) as session:
        for i in range(10):
            await session.put(f"a/{i}", b"")
        async with aclosing(session.follow("a/")) as watch:
            assert isinstance(await anext(watch), Listing)
            await session.delete("a/0")
            assert isinstance(await asyncio.wait_for(anext(watch), WAIT_S), Delete)
            async with new:
                proxy.redirect(new.endpoint)
                listing = await asyncio.wait_for(anext(watch), WAIT_S)
                assert isinstance(listing, Listing)
                assert listing.items == ()
                await session.put("a/new", b"")
                assert isinstance(await asyncio.wait_for(anext(watch), WAIT_S), Put)


async def test_lease_is_kept_alive_for_three_ttls(session: Session) -> None:
    async with aclosing(await session.grant(1)) as lease:
        await session.put("a", b"", lease.id)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(lease.lost.wait(), 3.0)
        assert await session.get("a")
    assert await session.get("a") is None


async def test_lost_is_signalled_before_etcd_expires_the_lease(
    etcd: EtcdServer, session: Session
) -> None:
    async with CutProxy(etcd.endpoint) as proxy, Session([proxy.endpoint]) as cut:
        async with aclosing(await cut.grant(2)) as lease, aclosing(session.follow("a")) as watch:
            assert isinstance(await anext(watch), Listing)
            await cut.put("a", b"", lease.id)
            assert isinstance(await anext(watch), Put)
            proxy.silence()
            expired = asyncio.create_task(_take(watch, 1))
            await asyncio.wait_for(lease.lost.wait(), WAIT_S)
            assert not expired.done()
            assert isinstance((await asyncio.wait_for(expired, WAIT_S))[0], Delete)


async def test_lease_revoked_by_another_is_lost(session: Session) -> None:
    async with aclosing(await session.grant(3)) as lease:
        await _revoke(session, lease.id)
        await asyncio.wait_for(lease.lost.wait(), 3.0)


async def test_registration_comes_back_after_etcd_stood_still(
    etcd: EtcdServer, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        Registration(session, "node", b"here", ttl_s=1),
        aclosing(session.follow("node")) as watch,
    ):
        before = await session.get("node")
        assert before
        etcd.pause()
        await _until(lambda: "lease lost" in caplog.messages)
        etcd.resume()
        async with asyncio.timeout(WAIT_S):
            after = before
            while after.lease == before.lease:
                change = await anext(watch)
                after = change.item if isinstance(change, Put) else after
        assert after.value == b"here"
        await _revoke(session, before.lease)
        assert await session.get("node") == after
    assert await session.get("node") is None


async def test_registration_outlives_a_restart_of_etcd(etcd: EtcdServer, session: Session) -> None:
    async with Registration(session, "node", b"here", ttl_s=2):
        etcd.kill9()
        await etcd.start()
        async with aclosing(session.follow("node")) as watch:
            listing = await asyncio.wait_for(anext(watch), WAIT_S)
            assert isinstance(listing, Listing)
            assert listing.items
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(watch), 3.0)


async def test_successor_takes_the_key_over(session: Session) -> None:
    """As a service that was killed and started again within the ttl: the old lease's end must not delete the key."""
    abandoned = await session.grant(1)
    await session.put("node", b"old", abandoned.id)
    async with Registration(session, "node", b"new", ttl_s=5):
        await abandoned.aclose()
        item = await session.get("node")
        assert item
        assert item.value == b"new"


async def test_unreachable_etcd_is_one_clear_error(etcd: EtcdServer) -> None:
    etcd.kill9()
    started = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        async with Session([etcd.endpoint]):
            pass
    assert time.monotonic() - started < 30.0
    assert caught.value.reason == "ETCD_UNREACHABLE"
    assert etcd.endpoint in caught.value.message
    assert "check that it runs" in caught.value.message


async def test_one_of_two_endpoints_is_enough(etcd: EtcdServer) -> None:
    async with EtcdServer(etcd.folder / "dead") as dead:
        pass
    async with Session([dead.endpoint, etcd.endpoint]) as session:
        await session.put("a", b"1")
        assert await session.get("a")


async def test_follow_waits_for_etcd_to_come_back(etcd: EtcdServer, session: Session) -> None:
    await session.put("a/x", b"1")
    etcd.kill9()
    async with aclosing(session.follow("a/")) as watch:
        listing = asyncio.create_task(_take(watch, 1))
        await etcd.start()
        assert isinstance((await asyncio.wait_for(listing, WAIT_S))[0], Listing)


async def test_closing_the_session_ends_its_watches(etcd: EtcdServer) -> None:
    async with Session([etcd.endpoint]) as session:
        watch = session.follow("a/")
        await anext(watch)
        reader = asyncio.create_task(_take(watch, 1))
        await session.put("b", b"")
    with pytest.raises(Unavailable) as caught:
        await asyncio.wait_for(reader, 5.0)
    assert caught.value.reason == "SESSION_CLOSED"
    with pytest.raises(Unavailable):
        await session.get("a")


def _revision(seen: list[Change]) -> int:
    """Of the last change; 0 where there is none."""
    return seen[-1].item.mod_revision if seen and isinstance(seen[-1], Put) else 0


async def _take(watch: AsyncIterator[Change], count: int) -> list[Change]:
    return [await anext(watch) for _ in range(count)]


async def _create_many(session: Session, prefix: str, count: int) -> None:
    """`prefix00000` and so on, each at its own revision."""
    for start in range(0, count, 100):
        keys = [f"{prefix}{i:05}" for i in range(start, min(start + 100, count))]
        await asyncio.gather(*(session.create(key, b"0") for key in keys))


async def _compact(session: Session, revision: int) -> None:
    request = rpc_pb2.CompactionRequest(revision=revision, physical=True)
    await session.connection.call(session.connection.kv.Compact, request)


async def _revoke(session: Session, lease: int) -> None:
    """Whether or not etcd still has it."""
    request = rpc_pb2.LeaseRevokeRequest(ID=lease)
    with suppress(NotFound):
        await session.connection.call(session.connection.leases.LeaseRevoke, request)


async def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.01)
