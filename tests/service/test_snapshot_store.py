"""The snapshot store as a process, over real gRPC and HTTP."""

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from tests.service.processes import ServiceProcess, free_addresses

from woodfrog import rpc
from woodfrog.api.snapshot_store.v1 import manifests_pb2 as pb
from woodfrog.api.snapshot_store.v1.manifests_pb2_grpc import ManifestsStub
from woodfrog.clients.ingest import build_manifest, ingest
from woodfrog.clients.store import ChunkClient, ChunkState, StoreClient
from woodfrog.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from woodfrog.model import digest as digests
from woodfrog.model.manifest import CHUNK_BYTES, FileEntry, Kind, Manifest

SMALL = 70_000  # bytes of a chunk that is the only one of its file
SEED = 20_261_126


@dataclass
class Fixture:
    process: ServiceProcess
    data_dir: Path
    store: StoreClient
    chunks: ChunkClient

    async def ingest(self, root: Path) -> str:
        manifest = build_manifest(Kind.WEIGHTS, root, {"name": root.name})
        return await ingest(self.store, self.chunks, manifest, root)

    async def restart(self) -> None:
        self.process.kill9()
        await self.process.start()
        deadline = time.monotonic() + 10
        while True:  # the client's channel has its own backoff
            try:
                await self.store.list()
                return
            except Unavailable:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)

    def chunk_path(self, digest: str) -> Path:
        digits = digests.hex_of(digest)
        return self.data_dir / "chunks" / digits[:2] / digits

    def chunks_on_disk(self) -> set[str]:
        paths = (self.data_dir / "chunks").glob("*/*")
        return {digests.PREFIX + path.name for path in paths}

    def in_progress(self) -> list[Path]:
        return list((self.data_dir / "ingests").iterdir())


def process(folder: Path, **settings: object) -> ServiceProcess:
    listen, chunks_listen = free_addresses(2)
    settings |= {"listen": listen, "chunks_listen": chunks_listen, "data_dir": folder / "store"}
    env = {f"WOODFROG_SNAPSHOT_STORE_{n.upper()}": str(value) for n, value in settings.items()}
    return ServiceProcess("woodfrog.snapshot_store", listen, env, folder)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Fixture]:
    async with (
        process(tmp_path) as service,
        StoreClient(service.address) as store,
        ChunkClient() as chunks,
    ):
        yield Fixture(service, tmp_path / "store", store, chunks)
        log = service.log_path.read_text()
        assert "Traceback" not in log, log[-4000:]


def folder_of(root: Path, **files: bytes) -> Path:
    root.mkdir()
    for name, data in files.items():
        (root / name).write_bytes(data)
    return root


def manifest_of(*contents: bytes) -> Manifest:
    """One file of one chunk each."""
    files = [FileEntry(f"{i:03}", len(c), (digests.of_bytes(c),)) for i, c in enumerate(contents)]
    return Manifest(Kind.SNAPSHOT, tuple(files))


async def test_a_sparse_folder_comes_back_byte_for_byte(running: Fixture, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "weights", config=b"{}", empty=b"")
    (root / "deep").mkdir()
    with (root / "deep" / "pages").open("wb") as file:
        file.truncate(3 * CHUNK_BYTES + 5)
        os.pwrite(file.fileno(), os.urandom(CHUNK_BYTES + 9), CHUNK_BYTES - 3)
    digest = await running.ingest(root)
    stored = await running.store.get_manifest(digest)
    for entry in stored.manifest.files:
        data = b""
        for index, chunk in enumerate(entry.chunks):
            got = await running.chunks.get(stored.chunks_url, chunk) if chunk else None
            data += got if got is not None else bytes(entry.chunk_bytes(index))
        assert data == (root / entry.path).read_bytes()
    pages = stored.manifest.file("deep/pages")
    assert pages
    assert pages.chunks[3] is None
    (summary,) = await running.store.list()
    assert summary.kind == "weights"
    assert summary.size_bytes == 3 * CHUNK_BYTES + 5 + 2
    assert summary.stored_bytes == 3 * CHUNK_BYTES + 2
    assert abs(summary.create_time - time.time()) < 60
    assert await ingest(running.store, running.chunks, stored.manifest, root) == digest


async def test_ranges_and_head_are_served(running: Fixture, tmp_path: Path) -> None:
    data = os.urandom(SMALL)
    digest = await running.ingest(folder_of(tmp_path / "f", file=data))
    stored = await running.store.get_manifest(digest)
    url = f"{stored.chunks_url}/{digests.of_bytes(data)}"
    async with aiohttp.ClientSession() as session:
        async with session.get(url, headers={"Range": "bytes=100-199"}) as response:
            assert (response.status, await response.read()) == (206, data[100:200])
        async with session.head(url) as response:
            assert (response.status, response.content_length) == (200, SMALL)
        async with session.get(url, headers={"Range": f"bytes={SMALL}-"}) as response:
            assert response.status == 416


async def test_a_put_is_refused_in_one_sentence(running: Fixture) -> None:
    wanted, other = os.urandom(SMALL), os.urandom(SMALL)
    begun = await running.store.begin_ingest(manifest_of(wanted))
    put = running.chunks.put
    chunk = digests.of_bytes(wanted)
    with pytest.raises(InvalidArgument, match="their digest is"):
        await put(begun.chunks_url, chunk, other)
    with pytest.raises(FailedPrecondition, match="no ingest under way names"):
        await put(begun.chunks_url, digests.of_bytes(other), other)
    with pytest.raises(InvalidArgument, match="larger than"):
        await put(begun.chunks_url, chunk, bytes(CHUNK_BYTES + 1))
    with pytest.raises(InvalidArgument, match="is not a digest"):
        await put(begun.chunks_url, "..%2F..%2Fetc%2Fpasswd", other)
    with pytest.raises(NotFound) as missing:
        await running.chunks.get(begun.chunks_url, chunk)
    assert missing.value.reason == "CHUNK_MISSING"
    with pytest.raises(FailedPrecondition) as lacking:
        await running.store.commit(begun.id)
    assert lacking.value.reason == "CHUNKS_MISSING"
    await put(begun.chunks_url, chunk, wanted)
    assert await running.store.commit(begun.id) == begun.manifest_digest
    assert await running.store.commit(begun.id) == begun.manifest_digest
    assert running.in_progress() == []


async def test_a_too_long_put_without_length_is_refused(running: Fixture) -> None:
    begun = await running.store.begin_ingest(manifest_of(b"wanted"))

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(9):
            yield bytes(1 << 20)

    async with aiohttp.ClientSession() as session:
        url = f"{begun.chunks_url}/{begun.missing[0]}"
        async with session.put(url, data=endless()) as response:
            assert response.status == 413
            assert "larger than" in await response.text()


async def test_a_put_that_breaks_off_leaves_nothing(running: Fixture) -> None:
    data = os.urandom(SMALL)
    begun = await running.store.begin_ingest(manifest_of(data))
    host, _, port = begun.chunks_url.removeprefix("http://").partition("/")[0].partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"PUT /chunks/{begun.missing[0]} HTTP/1.1\r\nHost: x\r\nContent-Length: {SMALL}\r\n\r\n"
    writer.write(head.encode() + data[:1000])
    await writer.drain()
    await until(lambda: len(running.in_progress()) == 2)  # the manifest and the chunk
    writer.close()
    await until(lambda: len(running.in_progress()) == 1)
    assert await running.store.verify_chunk(begun.missing[0]) is ChunkState.MISSING


@pytest.mark.parametrize(
    ("encoded", "why"),
    [
        (b"not JSON", "Expecting value"),
        (b"{\xff}", "decode"),
        (b"[]", "malformed"),
        (b'{"format":2}', "format 2"),
        (manifest_of(b"x").encode() + b" ", "canonical"),
        (Manifest(Kind.WEIGHTS, (FileEntry("../x", 0, ()),)).encode(), "plain relative path"),
        (Manifest(Kind.WEIGHTS, (FileEntry("/x", 0, ()),)).encode(), "plain relative path"),
        (Manifest(Kind.WEIGHTS, (FileEntry("x", 1 << 60, ()),)).encode(), "out of range"),
        (Manifest(Kind.WEIGHTS, (FileEntry("x", 9, ()),)).encode(), "0 chunks for 9 bytes"),
        (Manifest(Kind.WEIGHTS, (FileEntry("x", 9, ("md5:1",)),)).encode(), "not a digest"),
        (Manifest(Kind.WEIGHTS, (FileEntry("x", 0, ()),) * 2).encode(), "sorted and unique"),
        (
            Manifest(
                Kind.WEIGHTS,
                (
                    FileEntry("a", 1, (digests.of_bytes(b"x"),)),
                    FileEntry("b", 2, (digests.of_bytes(b"x"),)),
                ),
            ).encode(),
            "with 1 and 2 bytes",
        ),
        (
            json.dumps(
                {"attributes": [1], "files": [], "format": 1, "kind": "weights"},
                separators=(",", ":"),
            ).encode(),
            "cannot be ingested",
        ),
    ],
)
async def test_a_malformed_manifest_is_refused(encoded: bytes, why: str, shared: str) -> None:
    channel = rpc.open_channel(shared)
    try:
        stub = ManifestsStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(InvalidArgument) as refused:
            await rpc.call(stub.BeginIngest, pb.BeginIngestRequest(manifest=encoded), timeout_s=5)
    finally:
        await channel.close(None)
    assert refused.value.reason == "MANIFEST_INVALID"
    assert why in refused.value.message
    assert "\n" not in refused.value.message


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one service for tests that leave nothing in it."""
    service = process(tmp_path_factory.mktemp("shared"))
    try:
        asyncio.run(service.start())
        yield service.address
    finally:
        service.kill9()


async def test_shared_chunks_survive_a_delete(running: Fixture, tmp_path: Path) -> None:
    common, only = os.urandom(SMALL), os.urandom(SMALL)
    first = await running.ingest(folder_of(tmp_path / "first", common=common, only=only))
    second = await running.ingest(folder_of(tmp_path / "second", common=common))
    third = manifest_of(only)  # an ingest under way needs what the first alone has committed
    begun = await running.store.begin_ingest(third)
    assert begun.missing == ()
    assert await running.store.delete(first) == 0
    assert running.chunks_on_disk() == {digests.of_bytes(common), digests.of_bytes(only)}
    await running.store.abort(begun.id)
    await running.store.abort(begun.id)
    assert running.chunks_on_disk() == {digests.of_bytes(common)}
    assert await running.store.delete(second) == SMALL
    assert running.chunks_on_disk() == set()
    with pytest.raises(NotFound) as gone:
        await running.store.get_manifest(second)
    assert gone.value.reason == "MANIFEST_NOT_FOUND"


async def test_a_held_manifest_cannot_be_deleted(running: Fixture, tmp_path: Path) -> None:
    digest = await running.ingest(folder_of(tmp_path / "f", file=os.urandom(SMALL)))
    for holder in ("model/smollm2", "model/other"):
        await running.store.hold(digest, holder)
        await running.store.hold(digest, holder)
    await running.restart()
    (summary,) = await running.store.list()
    assert summary.holders == ("model/other", "model/smollm2")
    await running.store.unhold(digest, "model/other")
    with pytest.raises(FailedPrecondition, match="held by model/smollm2"):
        await running.store.delete(digest)
    await running.store.unhold(digest, "model/smollm2")
    await running.store.unhold(digest, "model/smollm2")
    with pytest.raises(InvalidArgument, match="holder"):
        await running.store.hold(digest, "../x")
    with pytest.raises(NotFound):
        await running.store.hold(digests.of_bytes(b"?"), "model/x")
    assert await running.store.delete(digest) == SMALL


async def test_a_damaged_chunk_is_put_aside_and_comes_again(
    running: Fixture, tmp_path: Path
) -> None:
    data = os.urandom(SMALL)
    root = folder_of(tmp_path / "f", file=data, other=os.urandom(SMALL))
    digest = await running.ingest(root)
    chunk = digests.of_bytes(data)
    url = (await running.store.get_manifest(digest)).chunks_url
    assert await running.store.verify_chunk(chunk) is ChunkState.WHOLE
    with running.chunk_path(chunk).open("r+b") as file:
        file.seek(SMALL // 2)
        file.write(b"damage")
    with pytest.raises(DataLoss) as damaged:
        await running.chunks.get(url, chunk)
    assert damaged.value.reason == "CHUNK_DAMAGED"
    assert chunk in damaged.value.message
    assert await running.store.verify_chunk(chunk) is ChunkState.DAMAGED
    assert await running.store.verify_chunk(chunk) is ChunkState.MISSING
    assert (running.data_dir / "damaged" / digests.hex_of(chunk)).exists()
    with pytest.raises(NotFound):
        await running.chunks.get(url, chunk)
    manifest = build_manifest(Kind.WEIGHTS, root, {"name": "f"})
    assert (await running.store.begin_ingest(manifest)).missing == (chunk,)
    assert await running.ingest(root) == digest
    assert await running.chunks.get(url, chunk) == data


async def test_a_damaged_manifest_is_named_and_mended(running: Fixture, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "f", file=os.urandom(SMALL))
    digest = await running.ingest(root)
    path = running.data_dir / "manifests" / f"{digests.hex_of(digest)}.json"
    path.write_bytes(path.read_bytes().replace(b"file", b"fiLe"))
    before = running.chunks_on_disk()
    for _ in range(2):  # found by reading it, then at the start
        with pytest.raises(DataLoss) as damaged:
            await running.store.get_manifest(digest)
        assert damaged.value.reason == "MANIFEST_DAMAGED"
        assert await running.store.list() == ()
        await running.restart()
    assert running.chunks_on_disk() == before
    assert await running.ingest(root) == digest
    assert (await running.store.get_manifest(digest)).manifest.digest == digest


async def test_a_changed_file_fails_the_ingest(running: Fixture, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "f", file=os.urandom(SMALL))
    manifest = build_manifest(Kind.WEIGHTS, root, {})
    (root / "file").write_bytes(os.urandom(SMALL))
    with pytest.raises(FailedPrecondition) as changed:
        await ingest(running.store, running.chunks, manifest, root)
    assert changed.value.reason == "FILE_CHANGED"
    assert await running.store.list() == ()
    assert running.in_progress() == []


async def test_a_store_without_room_refuses(tmp_path: Path) -> None:
    async with process(tmp_path, reserve_bytes=1 << 60) as service:
        async with StoreClient(service.address) as store:
            with pytest.raises(ResourceExhausted) as full:
                await store.begin_ingest(manifest_of(b"x"))
            assert full.value.reason == "STORE_FULL"
            assert full.value.retry_after_s


async def test_an_idle_ingest_is_dropped(tmp_path: Path) -> None:
    async with process(tmp_path, ingest_idle_s=0.4) as service, ChunkClient() as chunks:
        async with StoreClient(service.address) as store:
            begun = await store.begin_ingest(manifest_of(b"one", b"two"))
            await chunks.put(begun.chunks_url, begun.missing[0], b"one")
            await until(lambda: not any((tmp_path / "store" / "chunks").glob("*/*")))
            with pytest.raises(NotFound) as gone:
                await store.commit(begun.id)
            assert gone.value.reason == "INGEST_NOT_FOUND"


async def test_a_second_store_cannot_take_the_folder(running: Fixture, tmp_path: Path) -> None:
    second = process(tmp_path)
    try:
        with pytest.raises(AssertionError, match="DATA_DIR_IN_USE"):
            await second.start()
    finally:
        second.kill9()


async def test_sigterm_ends_it(running: Fixture) -> None:
    begun = await running.store.begin_ingest(manifest_of(b"x"))
    with pytest.raises(NotFound):
        await running.chunks.get(begun.chunks_url, begun.missing[0])  # leaves a connection open
    assert running.process.stop() == 0
    with pytest.raises(Unavailable):
        await running.chunks.get(begun.chunks_url, begun.missing[0])


async def test_kill9_at_any_moment_leaves_the_old_or_the_new_state(
    running: Fixture, tmp_path: Path
) -> None:
    """Four clients ingest and delete folders that share chunks, while the store is killed at random moments."""
    rng = random.Random(SEED)
    pool = [rng.randbytes(rng.randrange(1, SMALL)) for _ in range(12)]
    committed: set[str] = set()  # certainly there
    attempted: dict[str, Manifest] = {}

    async def client(number: int) -> None:
        for step in range(1000):
            names = rng.sample(range(len(pool)), 4)
            root = folder_of(
                tmp_path / f"{number}-{rng.random()}", **{f"f{n}": pool[n] for n in names}
            )
            manifest = build_manifest(Kind.WEIGHTS, root, {"by": number, "step": step})
            attempted[manifest.digest] = manifest
            try:
                digest = await ingest(running.store, running.chunks, manifest, root)
                committed.add(digest)
                if rng.random() < 0.5:
                    committed.discard(digest)
                    await running.store.delete(digest)
                    del attempted[digest]
            except (Unavailable, NotFound):
                pass  # NotFound: the ingest or the answer to a delete went with the process

    for _ in range(4):
        clients = [asyncio.create_task(client(number)) for number in range(4)]
        goal = len(attempted) + rng.randrange(8, 40)
        await until(lambda: len(attempted) >= goal)  # noqa: B023
        for _ in range(rng.randrange(300)):  # some way into whatever is under way then
            await asyncio.sleep(0)
        running.process.kill9()
        for task in clients:
            task.cancel()
        for result in await asyncio.gather(*clients, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError), result
        await running.restart()
        await check_whole(running, committed, attempted)
        committed |= {summary.manifest_digest for summary in await running.store.list()}


async def check_whole(
    running: Fixture, committed: set[str], attempted: dict[str, Manifest]
) -> None:
    listed = {summary.manifest_digest for summary in await running.store.list()}
    assert committed <= listed <= attempted.keys()
    assert running.in_progress() == []
    needed: set[str] = set()
    for digest in listed:
        stored = await running.store.get_manifest(digest)
        assert stored.manifest == attempted[digest]
        needed |= stored.manifest.chunk_digests
    assert running.chunks_on_disk() == needed
    for chunk in needed:
        assert await running.store.verify_chunk(chunk) is ChunkState.WHOLE


async def test_an_ingest_survives_a_restart(running: Fixture, tmp_path: Path) -> None:
    files = {f"f{number}": os.urandom(CHUNK_BYTES) for number in range(12)}
    root = folder_of(tmp_path / "f", **files)
    manifest = build_manifest(Kind.SNAPSHOT, root, {})
    sent: list[int] = []
    task = asyncio.create_task(
        ingest(running.store, running.chunks, manifest, root, lambda done, _: sent.append(done))
    )
    await until(lambda: len(sent) >= 3)
    await running.restart()
    assert await task == manifest.digest
    await check_whole(running, {manifest.digest}, {manifest.digest: manifest})


async def test_a_cancelled_ingest_leaves_nothing(running: Fixture, tmp_path: Path) -> None:
    files = {f"f{number}": os.urandom(CHUNK_BYTES) for number in range(12)}
    root = folder_of(tmp_path / "f", **files)
    sent: list[int] = []
    manifest = build_manifest(Kind.SNAPSHOT, root, {})
    task = asyncio.create_task(
        ingest(running.store, running.chunks, manifest, root, lambda done, _: sent.append(done))
    )
    await until(lambda: len(sent) >= 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not running.chunks_on_disk() and not running.in_progress())


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
