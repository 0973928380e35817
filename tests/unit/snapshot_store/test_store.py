"""The store on a real folder: what a crash between any two changes of the disk leaves behind."""

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from woodfrog.clock import FakeClock
from woodfrog.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from woodfrog.model import digest as digests
from woodfrog.model.manifest import ENCODED_BYTES_MAX, FileEntry, Kind, Manifest
from woodfrog.snapshot_store.disk import DAMAGED_MAX, Disk
from woodfrog.snapshot_store.store import INGESTS_MAX, Store

IDLE_S = 60.0
SHARED, FIRST, SECOND = b"shared", b"only in the first", b"only in the second"


class Crash(BaseException):
    """The process ends here."""


class CrashingDisk(Disk):
    """Crashes before or after its n-th change, counting both."""

    def __init__(self, root: Path, crash_at: int) -> None:
        super().__init__(root)
        self.countdown = crash_at

    def _step(self) -> None:
        self.countdown -= 1
        if self.countdown == 0:
            raise Crash

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not name.startswith(("publish", "stage", "drop", "unlink", "add", "remove", "sync")):
            return value

        def stepped(*args: object) -> object:
            self._step()
            result = value(*args)
            self._step()
            return result

        return stepped


@contextmanager
def opened(disk: Disk, clock: FakeClock | None = None) -> Iterator[Store]:
    store = Store(disk, clock or FakeClock(), ingest_idle_s=IDLE_S, reserve_bytes=0)
    store.recover()
    try:
        yield store
        store.inventory.check()
    finally:
        disk.close()


def manifest_of(*contents: bytes) -> Manifest:
    files = [FileEntry(f"{i:03}", len(c), (digests.of_bytes(c),)) for i, c in enumerate(contents)]
    return Manifest(Kind.WEIGHTS, tuple(files))


def put(store: Store, disk: Disk, data: bytes, names: Iterator[int]) -> None:
    upload = disk.open_upload(str(next(names)))
    upload.write(data)
    chunk = upload.seal()
    store.publish(upload, chunk)
    upload.discard()


def ingest(store: Store, disk: Disk, *contents: bytes) -> str:
    begun = store.begin(manifest_of(*contents).encode())
    names = itertools.count()
    for content in contents:
        put(store, disk, content, names)
    return store.commit(begun.ingest_id)


def collect(store: Store) -> None:
    while store.collect():
        pass


def chunks_in(root: Path) -> set[str]:
    return {digests.PREFIX + path.name for path in (root / "chunks").glob("*/*")}


def story(disk: Disk, store: Store, done: Callable[[str], None]) -> None:
    """Two manifests that share a chunk; the first is held, let go and deleted; the second stays."""
    first = ingest(store, disk, SHARED, FIRST)
    done("first committed")
    store.hold(first, "model/m")
    done("held")
    store.unhold(first, "model/m")
    ingest(store, disk, SHARED, SECOND)
    done("second committed")
    store.delete(first)
    done("first deleted")
    collect(store)
    begun = store.begin(manifest_of(FIRST).encode())
    store.abort(begun.ingest_id)
    done("end")


def test_a_crash_at_any_step_leaves_the_old_or_the_new_state(tmp_path: Path) -> None:
    first = manifest_of(SHARED, FIRST).digest
    second = manifest_of(SHARED, SECOND).digest
    for crash_at in itertools.count(1):
        root = tmp_path / str(crash_at)
        done: list[str] = []
        disk = CrashingDisk(root, crash_at)
        with suppress(Crash), opened(disk) as store:
            story(disk, store, done.append)
        with opened(Disk(root)) as store:
            listed = {summary.manifest_digest for summary in store.list()}
            for digest in listed:
                assert store.get(digest)
                assert not store.inventory.missing(store.inventory.manifests[digest].content)
            needed = {c for d in listed for c in store.inventory.manifests[d].content.chunks}
        assert chunks_in(root) == needed
        assert list((root / "ingests").iterdir()) == []
        assert ("second committed" not in done) or second in listed
        assert ("first deleted" not in done) or first not in listed
        assert ("first committed" not in done) or first in listed or "second committed" in done
        if "end" in done:
            break
        shutil.rmtree(root)
    assert crash_at > 30


def test_an_idle_ingest_is_dropped_and_a_busy_one_is_not(tmp_path: Path) -> None:
    clock, disk, names = FakeClock(), Disk(tmp_path), itertools.count()
    with opened(disk, clock) as store:
        idle = store.begin(manifest_of(FIRST).encode())
        busy = store.begin(manifest_of(SECOND, SHARED).encode())
        clock.advance(IDLE_S - 1)
        put(store, disk, SECOND, names)
        clock.advance(2)
        store.expire()
        with pytest.raises(NotFound):
            store.commit(idle.ingest_id)
        put(store, disk, SHARED, names)
        assert store.commit(busy.ingest_id) == busy.manifest_digest
        with pytest.raises(FailedPrecondition, match="no ingest under way"):
            put(store, disk, FIRST, names)
    assert list((tmp_path / "ingests").glob("*.json")) == []


def test_the_same_manifest_joins_the_same_ingest(tmp_path: Path) -> None:
    with opened(Disk(tmp_path)) as store:
        encoded = manifest_of(FIRST).encode()
        first, second = store.begin(encoded), store.begin(encoded)
        assert first == second
        store.abort(first.ingest_id)
        third = store.begin(encoded)
        store.abort(first.ingest_id)  # late: it must not end its successor
        assert store.begin(encoded) == third


def test_garbage_that_is_needed_again_is_kept(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with opened(disk) as store:
        first = ingest(store, disk, SHARED, FIRST)
        assert store.delete(first) == len(SHARED) + len(FIRST)
        begun = store.begin(manifest_of(SHARED, SECOND).encode())  # before it was collected
        assert begun.missing == [digests.of_bytes(SECOND)]
        collect(store)
        put(store, disk, SECOND, itertools.count())
        store.commit(begun.ingest_id)
    assert chunks_in(tmp_path) == {digests.of_bytes(SHARED), digests.of_bytes(SECOND)}


def test_a_cut_chunk_is_missing_and_replaced(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with opened(disk) as store:
        ingest(store, disk, FIRST)
    disk.chunk_path(digests.of_bytes(FIRST)).write_bytes(FIRST[:3])
    with opened(disk) as store:
        assert store.begin(manifest_of(FIRST).encode()).missing == [digests.of_bytes(FIRST)]
        ingest(store, disk, FIRST)
        assert disk.chunk_whole(digests.of_bytes(FIRST))


def test_a_whole_chunk_is_not_put_aside(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with opened(disk) as store:
        ingest(store, disk, FIRST)
        assert not store.put_aside(digests.of_bytes(FIRST))
        assert not store.put_aside(digests.of_bytes(SECOND))
        assert store.inventory.present.keys() == {digests.of_bytes(FIRST)}


def test_few_damaged_chunks_are_kept(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    contents = [b"%d" % number for number in range(DAMAGED_MAX + 3)]
    with opened(disk) as store:
        ingest(store, disk, *contents)
        for content in contents:
            disk.chunk_path(digests.of_bytes(content)).write_bytes(b"damage")
            assert store.put_aside(digests.of_bytes(content))
    assert len(list((tmp_path / "damaged").iterdir())) == DAMAGED_MAX


def test_ingests_are_limited(tmp_path: Path) -> None:
    with opened(Disk(tmp_path)) as store:
        for number in range(INGESTS_MAX):
            store.begin(manifest_of(b"%d" % number).encode())
        with pytest.raises(ResourceExhausted) as full:
            store.begin(manifest_of(b"one more").encode())
        assert full.value.reason == "INGESTS_FULL"
        assert store.begin(manifest_of(b"0").encode())


class SmallDisk(Disk):
    def free_bytes(self) -> int:
        return 100


def test_room_is_promised_once(tmp_path: Path) -> None:
    with opened(SmallDisk(tmp_path)) as store:
        first = store.begin(manifest_of(b"1" * 60).encode())
        with pytest.raises(ResourceExhausted, match="120 bytes are to come, 100 are free"):
            store.begin(manifest_of(b"2" * 60).encode())
        assert store.begin(manifest_of(b"1" * 60, b"3" * 40).encode())  # 60 are promised already
        store.abort(first.ingest_id)


def test_a_manifest_too_long_is_refused(tmp_path: Path) -> None:
    with opened(Disk(tmp_path)) as store:
        with pytest.raises(InvalidArgument, match="the limit is"):
            store.begin(bytes(ENCODED_BYTES_MAX + 1))


def test_nothing_is_committed_while_a_chunk_is_missing(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with opened(disk) as store:
        begun = store.begin(manifest_of(FIRST, SECOND).encode())
        put(store, disk, SECOND, itertools.count())
        with pytest.raises(FailedPrecondition, match="1 chunks of manifest"):
            store.commit(begun.ingest_id)
        assert list((tmp_path / "manifests").iterdir()) == []


def test_a_hold_on_nothing_is_dropped_at_the_start(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with opened(disk) as store:
        store.hold(ingest(store, disk, FIRST), "model/m")
        assert store.list()[0].holders == ("model/m",)
    for path in (tmp_path / "manifests").iterdir():
        path.unlink()
    with opened(disk) as store:
        ingest(store, disk, FIRST)
        assert store.list()[0].holders == ()
    assert list((tmp_path / "holds").iterdir()) == []


def test_a_manifest_of_a_later_version_does_not_stop_the_store(tmp_path: Path) -> None:
    later = b'{"format": 99}'
    with opened(Disk(tmp_path)):
        pass
    name = digests.hex_of(digests.of_bytes(later))
    (tmp_path / "manifests" / f"{name}.json").write_bytes(later)
    with opened(Disk(tmp_path)) as store:
        assert store.list() == []
        assert store.delete(digests.of_bytes(later)) == 0


def test_holders_fit_the_name_of_a_file(tmp_path: Path) -> None:
    with opened(Disk(tmp_path)) as store:
        manifest = Manifest(Kind.WEIGHTS, (), {})
        store.commit(store.begin(manifest.encode()).ingest_id)
        longest = "model/" + "a" * 80 + "/" + "b" * 79
        store.hold(manifest.digest, longest)
        with pytest.raises(InvalidArgument, match="holder"):
            store.hold(manifest.digest, "a/" * 90)
    with opened(Disk(tmp_path)) as store:
        assert store.inventory.holders == {manifest.digest: {longest}}
