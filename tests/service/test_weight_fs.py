"""weight_fs as a process: its mount read through the kernel, with a real snapshot store behind it."""

import asyncio
import errno
import mmap
import os
import random
import shutil
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from tests.capabilities import need
from tests.memory.chunk_source import manifest_of, write_files
from tests.service.processes import ServiceProcess, free_addresses

from woodfrog.clients.ingest import ingest
from woodfrog.clients.store import ChunkClient, StoreClient
from woodfrog.clients.weight_fs import WeightFsClient
from woodfrog.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from woodfrog.host.cgroup import Cgroups
from woodfrog.model import digest as digests
from woodfrog.model.manifest import CHUNK_BYTES, Kind
from woodfrog.model.snapshot import Fingerprint, SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.node_agent.climb import Climber
from woodfrog.node_agent.criu import Criu
from woodfrog.node_agent.gpus import Adapters, Gpus
from woodfrog.node_agent.prefetch import Prefetcher
from woodfrog.node_agent.sandbox import SandboxConfig, SandboxPool
from woodfrog.weight_fs.stale_mount import mounted

pytestmark = need("root", "fuse")
R = TypeVar("R")
Make = Callable[..., Awaitable["Node"]]
READ_TIMEOUT_S = 30.0
_R = random.Random(20_261_126)
FILES = {
    "pages": _R.randbytes(2 * CHUNK_BYTES) + bytes(CHUNK_BYTES) + _R.randbytes(70_001),
    "img/core-1.img": _R.randbytes(3000),
    "img/deep/er/mm.img": _R.randbytes(CHUNK_BYTES + 1),
    "empty": b"",
    **{f"many/{n:03}": bytes(n) for n in range(400)},
}
OTHER = {"w": _R.randbytes(2 * CHUNK_BYTES)}
STORED = [manifest_of(FILES, Kind.SNAPSHOT), manifest_of(OTHER)]
SNAPSHOT, WEIGHTS = (manifest.digest for manifest in STORED)


@dataclass
class Store:
    process: ServiceProcess
    data_dir: Path

    def chunk_path(self, digest: str) -> Path:
        digits = digests.hex_of(digest)
        return self.data_dir / "chunks" / digits[:2] / digits


@pytest.fixture(scope="module")
def filled_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("store")
    listen, chunks_listen = free_addresses(2)
    settings = {"LISTEN": listen, "CHUNKS_LISTEN": chunks_listen, "DATA_DIR": folder / "data"}
    env = {f"WOODFROG_SNAPSHOT_STORE_{name}": str(value) for name, value in settings.items()}
    process = ServiceProcess("woodfrog.snapshot_store", listen, env, folder)

    async def fill() -> None:
        await process.start()
        async with StoreClient(listen) as store, ChunkClient() as chunks:
            for manifest, files in zip(STORED, (FILES, OTHER), strict=True):
                root = write_files(folder / manifest.kind.value, files)
                assert await ingest(store, chunks, manifest, root) == manifest.digest

    try:
        asyncio.run(fill())
        yield Store(process, folder / "data")
    finally:
        process.kill9()


@pytest.fixture
async def store(filled_store: Store) -> AsyncIterator[Store]:
    """It is left whole and running, whatever the test did."""
    yield filled_store
    filled_store.process.kill9()
    for aside in filled_store.data_dir.rglob("*.test-aside"):
        shutil.copy(aside, aside.with_suffix(""))
        aside.unlink()
    await filled_store.process.start()


@dataclass
class Node:
    process: ServiceProcess
    client: WeightFsClient
    cache_dir: Path
    mount_dir: Path

    async def restart(self) -> None:
        self.process.kill9()
        await self.process.start()
        async with asyncio.timeout(60):
            while True:  # the client's channel has its own backoff
                try:
                    async for _ in self.client.watch():
                        return
                except Unavailable:
                    await asyncio.sleep(0.01)

    def mounted(self) -> str | None:
        return mounted(self.mount_dir, Path("/proc/self/mountinfo").read_bytes())


def weight_fs(folder: Path, store: str, **settings: object) -> ServiceProcess:
    (listen,) = free_addresses(1)
    settings |= {
        "listen": listen,
        "store": store,
        "cache_dir": folder / "cache",
        "mount_dir": folder / "mount",
        "residency_interval_s": 0.2,
    }
    env = {f"WOODFROG_WEIGHT_FS_{name.upper()}": str(value) for name, value in settings.items()}
    return ServiceProcess("woodfrog.weight_fs", listen, env, folder)


@pytest.fixture
async def make(tmp_path: Path, filled_store: Store) -> AsyncIterator[Make]:
    made: list[Node] = []

    async def start(**settings: object) -> Node:
        process = weight_fs(tmp_path, filled_store.process.address, **settings)
        client = await WeightFsClient(process.address).__aenter__()
        node = Node(process, client, tmp_path / "cache", tmp_path / "mount")
        made.append(node)
        await process.start()
        return node

    yield start
    for node in made:
        await node.client.__aexit__()
        node.process.kill9()
        while node.mounted():
            os.system(f"umount -l '{node.mount_dir}'")  # noqa: ASYNC221


@pytest.fixture
async def node(make: Make) -> Node:
    return await make()


async def off_loop(call: Callable[..., R], *args: object) -> R:
    """A read of the mount, which may wait: in a thread, and never for ever."""
    return await asyncio.wait_for(asyncio.to_thread(call, *args), READ_TIMEOUT_S)


def pread(path: Path, offset: int, size: int) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, size, offset)
    finally:
        os.close(fd)


def same(folder: Path, files: dict[str, bytes]) -> bool:
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    return found == files


async def test_every_byte_in_every_way(node: Node) -> None:
    tree = await node.client.open(SNAPSHOT)
    assert tree.manifest == STORED[0]
    assert (tree.cache_path, tree.residency.disk_bytes) == (None, 0)
    assert tree.mount_path == node.mount_dir / digests.hex_of(SNAPSHOT)
    pages = tree.mount_path / "pages"

    def preads(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            offset, size = chance.randrange(len(FILES["pages"])), chance.randrange(1, 300_000)
            assert pread(pages, offset, size) == FILES["pages"][offset : offset + size]

    def mapped() -> None:
        with pages.open("rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
                assert memory[-70_001:] == FILES["pages"][-70_001:]
                assert memory[:] == FILES["pages"]

    def in_parallel() -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(preads, range(4)))

    await off_loop(in_parallel)
    await off_loop(mapped)
    assert await off_loop(same, tree.mount_path, FILES)


async def test_attributes_and_listings(node: Node) -> None:
    await node.client.open(WEIGHTS)
    tree = await node.client.open(SNAPSHOT)

    def look() -> None:
        top = tree.mount_path.stat()
        assert (stat.filemode(top.st_mode), top.st_nlink) == ("dr-xr-xr-x", 4)
        pages = (tree.mount_path / "pages").stat()
        assert (stat.filemode(pages.st_mode), pages.st_nlink) == ("-r--r--r--", 1)
        assert pages.st_size == len(FILES["pages"])
        assert pages.st_blocks == -(-(2 * CHUNK_BYTES + 70_001) // 512)
        assert pages.st_uid == pages.st_gid == 0
        assert sorted(os.listdir(tree.mount_path / "many")) == [f"{n:03}" for n in range(400)]
        hexes = {digests.hex_of(digest) for digest in (SNAPSHOT, WEIGHTS)}
        assert set(os.listdir(node.mount_dir)) == hexes
        space = os.statvfs(node.mount_dir)
        assert space.f_flag & os.ST_RDONLY
        assert space.f_blocks * space.f_frsize == 64 << 30
        assert os.stat(tree.mount_path / "pages").st_ino == pages.st_ino

    await off_loop(look)
    device = (await off_loop(os.stat, node.mount_dir)).st_dev
    bdi = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    assert bdi.read_text() == "4096\n"


async def test_unknown_names(node: Node) -> None:
    for name in ("0" * 64, "no-digest"):
        with pytest.raises(FileNotFoundError):
            await off_loop(os.stat, node.mount_dir / name)
    tree = await node.client.open(WEIGHTS)
    with pytest.raises(FileNotFoundError):
        await off_loop(os.stat, tree.mount_path / "v")
    with pytest.raises(NotADirectoryError):
        await off_loop(os.stat, tree.mount_path / "w" / "v")
    with pytest.raises(NotFound) as caught:
        await node.client.open(digests.PREFIX + "0" * 64)
    assert caught.value.reason == "MANIFEST_NOT_FOUND"
    with pytest.raises(NotFound):
        await node.client.pin(SNAPSHOT, "replica-1")


async def test_a_tree_that_nobody_opened_is_found_by_its_name(node: Node) -> None:
    path = node.mount_dir / digests.hex_of(WEIGHTS) / "w"
    assert await off_loop(pread, path, 5, 10) == OTHER["w"][5:15]


async def test_nothing_can_be_written(node: Node) -> None:
    tree = await node.client.open(WEIGHTS)
    path = tree.mount_path / "w"
    attempts: list[Callable[[], object]] = [
        lambda: os.open(path, os.O_WRONLY),
        lambda: os.open(path, os.O_RDWR),
        lambda: os.open(tree.mount_path / "new", os.O_CREAT | os.O_WRONLY),
        lambda: os.truncate(path, 0),
        lambda: path.unlink(),
        lambda: path.rename(tree.mount_path / "v"),
        lambda: path.chmod(0o777),
        lambda: os.utime(path),
        lambda: os.link(path, tree.mount_path / "v"),
        lambda: os.symlink("w", tree.mount_path / "v"),
        lambda: os.mkdir(node.mount_dir / "v"),
        lambda: os.rmdir(tree.mount_path),
        lambda: os.setxattr(path, "user.a", b"b"),
    ]
    for attempt in attempts:
        with pytest.raises(OSError) as caught:
            await off_loop(attempt)
        assert caught.value.errno == errno.EROFS


async def test_fetch_by_extents_then_all_of_it(node: Node) -> None:
    extents = [("pages", CHUNK_BYTES + 5, 10), ("img/core-1.img", 0, 0), ("pages", 0, 0)]
    first = await node.client.fetch(SNAPSHOT, extents[:2])
    assert (first.fetched_bytes, first.present_bytes) == (CHUNK_BYTES + 3000, 0)
    second = await node.client.fetch(SNAPSHOT, extents)
    assert second.fetched_bytes == CHUNK_BYTES + 70_001
    assert second.present_bytes == CHUNK_BYTES + 3000
    await node.client.fetch(SNAPSHOT)
    tree = await node.client.open(SNAPSHOT)
    assert tree.residency.complete
    assert tree.cache_path
    assert tree.cache_path.is_relative_to(node.cache_dir)
    assert same(tree.cache_path, FILES)
    modes = {stat.filemode(path.stat().st_mode) for path in tree.cache_path.rglob("*")}
    assert modes == {"-r--r--r--", "drwxr-xr-x"}
    with pytest.raises(InvalidArgument, match="nowhere"):
        await node.client.fetch(SNAPSHOT, [("nowhere", 0, 0)])


async def test_residency_is_streamed(node: Node) -> None:
    weight = sum(len(data) for data in FILES.values() if data.strip(b"\0")) - CHUNK_BYTES
    async with asyncio.timeout(60):
        watch = node.client.watch()
        first = await anext(watch)
        assert (first.full, first.trees, first.gone) == (True, (), ())
        assert first.cache_bytes_max > 0
        await node.client.fetch(SNAPSHOT)
        async for update in watch:
            assert (update.full, update.gone) == (False, ())
            (found,) = update.trees
            assert (found.manifest_digest, found.kind) == (SNAPSHOT, "snapshot")
            assert found.disk_bytes <= found.size_bytes == weight
            if found.complete and found.page_cache_bytes >= weight:
                break
        again = await anext(node.client.watch())
        assert again == first._replace(trees=(found,))
        await evicted(node, SNAPSHOT)
        async for update in watch:
            if update.gone:
                assert update.gone == (SNAPSHOT,)
                break


async def evicted(node: Node, digest: str) -> int:
    """Waits for the kernel to let go of the files, which it does in its own time after their close."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await node.client.evict(digest)
            except FailedPrecondition:
                await asyncio.sleep(0.01)


async def test_a_damaged_chunk_is_an_error_that_names_it_and_never_zeros(
    node: Node, store: Store
) -> None:
    chunk = STORED[0].files[-1].chunks[1]
    assert STORED[0].files[-1].path == "pages"
    assert chunk
    path = store.chunk_path(chunk)
    shutil.copy(path, path.with_suffix(".test-aside"))
    with path.open("r+b") as file:
        file.seek(1234)
        file.write(b"damage")
    pages = node.mount_dir / digests.hex_of(SNAPSHOT) / "pages"
    with pytest.raises(OSError) as caught:
        await off_loop(pread, pages, CHUNK_BYTES + 8192, 4096)
    assert caught.value.errno == errno.EIO
    assert chunk in node.process.log_tail()
    assert await off_loop(pread, pages, 0, 4096) == FILES["pages"][:4096]
    with pytest.raises(DataLoss, match=chunk) as lost:
        await node.client.fetch(SNAPSHOT)
    assert lost.value.reason == "CHUNK_DAMAGED"
    assert lost.value.metadata["path"] == "pages"
    program = (
        f"import mmap; f = open({str(pages)!r}, 'rb'); "
        f"print(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[{CHUNK_BYTES + 99}])"
    )
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=-1)
    said, _ = await asyncio.wait_for(child.communicate(), READ_TIMEOUT_S)
    assert (child.returncode, said) == (-signal.SIGBUS, b"")
    assert not (await node.client.open(SNAPSHOT)).cache_path


async def test_a_store_that_is_away_for_a_moment_is_waited_for(node: Node, store: Store) -> None:
    tree = await node.client.open(WEIGHTS)
    store.process.kill9()
    started = time.monotonic()
    reading = asyncio.create_task(off_loop(pread, tree.mount_path / "w", 100, 4096))
    present = asyncio.create_task(off_loop(os.listdir, tree.mount_path))
    assert await present == ["w"]  # others are served meanwhile
    await asyncio.wait([reading], timeout=0.5)
    assert not reading.done()
    await store.process.start()
    assert await reading == OTHER["w"][100:4196]
    assert time.monotonic() - started < 60


async def test_a_store_that_stays_away_is_an_error(make: Make, store: Store) -> None:
    node = await make(fetch_retry_s=0.3)
    tree = await node.client.open(WEIGHTS)
    await node.client.fetch(WEIGHTS, [("w", 0, 1)])
    store.process.kill9()
    with pytest.raises(OSError) as caught:
        await off_loop(pread, tree.mount_path / "w", CHUNK_BYTES, 4096)
    assert caught.value.errno == errno.EIO
    with pytest.raises(
        OSError
    ) as caught:  # its name is not known here, so the store would be asked
        await off_loop(os.stat, node.mount_dir / digests.hex_of(SNAPSHOT))
    assert caught.value.errno == errno.EIO
    with pytest.raises(Unavailable):
        await node.client.fetch(WEIGHTS)
    assert await off_loop(pread, tree.mount_path / "w", 0, 4096) == OTHER["w"][:4096]


async def test_killed_and_started_again_it_serves_what_it_had_without_the_store(
    node: Node, store: Store
) -> None:
    await node.client.fetch(WEIGHTS)
    await node.client.fetch(SNAPSHOT, [("pages", 0, CHUNK_BYTES)])
    await node.client.pin(WEIGHTS, "replica-1")
    node.process.kill9()
    assert node.mounted()  # what a kill leaves behind
    store.process.kill9()
    await node.restart()
    tree = await node.client.open(WEIGHTS)
    assert await off_loop(same, tree.mount_path, OTHER)
    pages = node.mount_dir / digests.hex_of(SNAPSHOT) / "pages"
    assert await off_loop(pread, pages, 77, 4096) == FILES["pages"][77 : 77 + 4096]
    with pytest.raises(FailedPrecondition) as caught:
        await node.client.evict(WEIGHTS)
    assert caught.value.reason == "TREE_PINNED"


async def test_killed_in_the_middle_of_a_fetch_it_never_shows_half_a_chunk(node: Node) -> None:
    for delay_s in (0.01, 0.02, 0.04):
        fetching = asyncio.create_task(node.client.fetch(SNAPSHOT))
        await asyncio.wait([fetching], timeout=delay_s)
        await node.restart()
        await asyncio.gather(fetching, return_exceptions=True)
    await node.client.fetch(SNAPSHOT)
    tree = await node.client.open(SNAPSHOT)
    assert await off_loop(same, tree.mount_path, FILES)
    assert tree.cache_path
    assert same(tree.cache_path, FILES)


async def test_the_limit_evicts_and_what_was_evicted_comes_back(make: Make) -> None:
    node = await make(cache_bytes_max=18 << 20)
    await node.client.fetch(WEIGHTS)
    await evictable(node, WEIGHTS)
    await node.client.fetch(SNAPSHOT)
    update = await anext(node.client.watch())
    assert [tree.manifest_digest for tree in update.trees] == [SNAPSHOT]
    await node.client.pin(SNAPSHOT, "replica-1")
    with pytest.raises(ResourceExhausted) as caught:
        await node.client.fetch(WEIGHTS)
    assert caught.value.reason == "CACHE_FULL"
    await node.client.unpin("", "replica-*")
    path = node.mount_dir / digests.hex_of(WEIGHTS)
    assert await off_loop(same, path, OTHER)
    used = sum(file.stat().st_blocks * 512 for file in node.cache_dir.rglob("*") if file.is_file())
    assert used <= (18 << 20) + (1 << 20)


async def test_a_tree_is_pinned_in_the_step_that_opens_it(node: Node) -> None:
    await node.client.open(SNAPSHOT, "replica-1")
    with pytest.raises(FailedPrecondition) as caught:
        await node.client.evict(SNAPSHOT)
    assert caught.value.reason == "TREE_PINNED"
    await node.client.pin(SNAPSHOT, "replica-2")
    await node.client.unpin("", "replica-*", kept=("replica-1",))
    with pytest.raises(FailedPrecondition, match="pinned by replica-1;"):
        await node.client.evict(SNAPSHOT)


async def test_an_agent_finds_out_at_its_pin_that_a_tree_which_it_knew_was_evicted(
    node: Node, tmp_path: Path
) -> None:
    pool = SandboxPool(Cgroups("unused"), SandboxConfig(tmp_path, tmp_path), 0)
    climber = Climber(node.client, pool, Criu(tmp_path), Gpus((), Adapters("", "", "")), 1.0)
    await node.client.fetch(SNAPSHOT)
    assert (await climber.tree(SNAPSHOT, "replica-1")).cache_path
    with pytest.raises(FailedPrecondition):
        await node.client.evict(SNAPSHOT)
    await climber.let_go("replica-1")
    await evictable(node, SNAPSHOT)
    assert await node.client.evict(SNAPSHOT) > 0
    again = await climber.tree(SNAPSHOT, "replica-2")  # no news of the eviction reached it
    assert again.cache_path is None
    assert await off_loop(same, again.mount_path, FILES)


async def test_an_agent_prefetches_both_trees_and_keeps_neither(
    node: Node, store: Store, tmp_path: Path
) -> None:
    pool = SandboxPool(Cgroups("unused"), SandboxConfig(tmp_path, tmp_path), 0)
    climber = Climber(node.client, pool, Criu(tmp_path), Gpus((), Adapters("", "", "")), 1.0)
    prefetcher = Prefetcher("n", climber, node.client)
    spec = ModelSpec("m", WEIGHTS, 1)
    pointer = SnapshotPointer("m", SNAPSHOT, Fingerprint({}, {}, WEIGHTS), 1, 1.0)
    whole = sum(len(data) for data in (*FILES.values(), *OTHER.values())) - CHUNK_BYTES
    given_up = asyncio.create_task(prefetcher.prefetch(spec, pointer))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait([given_up])
    assert given_up.cancelled()
    moved = await asyncio.gather(*(prefetcher.prefetch(spec, pointer) for _ in range(2)))
    assert max(moved) <= whole
    assert min(moved) > 0
    for digest, files in ((SNAPSHOT, FILES), (WEIGHTS, OTHER)):
        tree = await node.client.open(digest)
        assert tree.cache_path
        assert same(tree.cache_path, files)
    store.process.kill9()  # nothing is fetched any more
    assert await prefetcher.prefetch(spec, pointer) == 0
    assert not climber.owners
    for digest in (SNAPSHOT, WEIGHTS):
        await evictable(node, digest)
        assert await node.client.evict(digest) > 0


async def test_a_prefetch_says_why_it_failed(make: Make, tmp_path: Path) -> None:
    node = await make(cache_bytes_max=13 << 20)  # the larger tree fits, both do not
    pool = SandboxPool(Cgroups("unused"), SandboxConfig(tmp_path, tmp_path), 0)
    climber = Climber(node.client, pool, Criu(tmp_path), Gpus((), Adapters("", "", "")), 1.0)
    prefetcher = Prefetcher("n", climber, node.client)
    spec = ModelSpec("m", WEIGHTS, 1)
    with pytest.raises(ResourceExhausted) as caught:
        await prefetcher.prefetch(
            spec, SnapshotPointer("m", SNAPSHOT, Fingerprint({}, {}, WEIGHTS), 1, 1.0)
        )
    assert caught.value.reason == "CACHE_FULL"
    with pytest.raises(NotFound) as missing:
        await prefetcher.prefetch(ModelSpec("m", digests.of_bytes(b"no"), 1), None)
    assert missing.value.reason == "MANIFEST_NOT_FOUND"
    assert not climber.owners


async def evictable(node: Node, digest: str) -> None:
    """Waits for the seal, during which a tree stays."""
    seal = node.cache_dir / digests.hex_of(digest) / "complete.json"
    async with asyncio.timeout(60):
        while not seal.exists():
            await asyncio.sleep(0.01)


async def test_adopts_what_this_node_made(node: Node, store: Store, tmp_path: Path) -> None:
    files = {"pages": _R.randbytes(100_000), "img/core.img": b"core"}
    manifest = manifest_of(files, Kind.SNAPSHOT)
    made = write_files(tmp_path / "made", files)
    with pytest.raises(InvalidArgument) as caught:
        await node.client.adopt(STORED[1], made)
    assert caught.value.reason == "TREE_MISMATCH"
    store.process.kill9()
    cache_path = await node.client.adopt(manifest, made)
    assert not made.exists()
    assert same(cache_path, files)
    tree = await node.client.open(manifest.digest)
    assert tree.cache_path == cache_path
    assert await off_loop(same, tree.mount_path, files)
    await evictable(node, manifest.digest)
    await node.restart()
    assert (await node.client.open(manifest.digest)).cache_path == cache_path


async def test_an_evicted_tree_lives_on_for_who_maps_its_files(node: Node) -> None:
    await node.client.fetch(WEIGHTS)
    tree = await node.client.open(WEIGHTS)
    assert tree.cache_path
    with (tree.cache_path / "w").open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    assert await node.client.evict(WEIGHTS) == 2 * CHUNK_BYTES
    assert not tree.cache_path.exists()
    with memory:
        assert memory[:] == OTHER["w"]
    assert await off_loop(pread, tree.mount_path / "w", 0, 10) == OTHER["w"][:10]


async def test_a_reader_that_is_killed_while_it_waits_stops_nobody(
    node: Node, store: Store
) -> None:
    tree = await node.client.open(WEIGHTS)
    store.process.kill9()
    program = f"open({str(tree.mount_path / 'w')!r}, 'rb').read(10)"
    children = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", program) for _ in range(3)
    ]
    await asyncio.wait([asyncio.create_task(children[0].wait())], timeout=0.3)
    for child in children:
        child.kill()
    assert await off_loop(os.listdir, tree.mount_path) == ["w"]
    await store.process.start()
    assert [await child.wait() for child in children] == [-signal.SIGKILL] * 3
    assert await off_loop(pread, tree.mount_path / "w", 0, 10) == OTHER["w"][:10]


async def test_stopping_leaves_no_mount_also_with_readers_waiting(node: Node, store: Store) -> None:
    tree = await node.client.open(WEIGHTS)
    store.process.kill9()
    reading = asyncio.create_task(off_loop(pread, tree.mount_path / "w", 0, 10))
    await asyncio.wait([reading], timeout=0.2)
    assert await asyncio.to_thread(node.process.stop) == 0
    with pytest.raises(OSError):
        await reading
    assert node.mounted() is None
    assert os.listdir(node.mount_dir) == []


async def test_a_mount_taken_away_ends_the_process(node: Node) -> None:
    os.system(f"umount '{node.mount_dir}'")  # noqa: ASYNC221
    assert await node.process.exited() == 1
    assert "MOUNT_ENDED" in node.process.log_tail()


async def test_refuses_a_folder_on_which_something_else_is_mounted(
    make: Make, tmp_path: Path
) -> None:
    (tmp_path / "mount").mkdir()
    os.system(f"mount -t tmpfs none '{tmp_path / 'mount'}'")  # noqa: ASYNC221
    try:
        with pytest.raises(AssertionError, match="none is mounted on it"):
            await make()
    finally:
        os.system(f"umount '{tmp_path / 'mount'}'")  # noqa: ASYNC221
