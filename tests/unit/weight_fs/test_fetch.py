import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.memory.chunk_source import MemorySource
from tests.unit.weight_fs.node import Node

from woodfrog.errors import DataLoss, ResourceExhausted, Unavailable
from woodfrog.model import digest as digests
from woodfrog.model.manifest import CHUNK_BYTES, FileEntry, Kind, Manifest
from woodfrog.weight_fs.cache import CachedTree
from woodfrog.weight_fs.fetch import Moved, Priority

FILES = {name: random.Random(name).randbytes(3000) for name in "abcdef"}
CHUNKS = [digests.of_bytes(data) for data in FILES.values()]
ALL = range(len(FILES))


@pytest.fixture
def source() -> MemorySource:
    return MemorySource()


@pytest.fixture
async def node(tmp_path: Path, source: MemorySource) -> AsyncIterator[Node]:
    async with Node(tmp_path / "cache", source, concurrency=1) as node:
        yield node


@pytest.fixture
async def tree(node: Node, source: MemorySource) -> CachedTree:
    return await node.cache.open(source.add(FILES).digest)


async def until_asked(source: MemorySource, count: int) -> None:
    async with asyncio.timeout(60):
        while len(source.served) < count:
            await asyncio.sleep(0)


async def test_many_waiters_one_transfer(
    node: Node, source: MemorySource, tree: CachedTree
) -> None:
    moved = await asyncio.gather(
        *(node.fetcher.ensure(tree, ALL, Priority.PREFETCH) for _ in range(5))
    )
    assert sorted(source.served) == sorted(CHUNKS)
    assert moved[0] == Moved(fetched_bytes=18_000)
    assert tree.complete
    again = await node.fetcher.ensure(tree, ALL, Priority.DEMAND)
    assert again == Moved(present_bytes=18_000)


async def test_a_fault_goes_before_what_is_read_ahead(
    node: Node, source: MemorySource, tree: CachedTree
) -> None:
    source.open.clear()
    node.fetcher.hint(tree, ALL)
    await until_asked(source, 1)
    fault = asyncio.create_task(node.fetcher.ensure(tree, [4], Priority.DEMAND))
    await asyncio.sleep(0)
    source.open.set()
    await fault
    await node.fetcher.ensure(tree, ALL, Priority.PREFETCH)
    assert source.served == [CHUNKS[n] for n in (0, 4, 1, 2, 3, 5)]


async def test_what_somebody_waits_for_goes_before_what_is_fetched_ahead_of_any_use(
    node: Node, source: MemorySource, tree: CachedTree
) -> None:
    source.open.clear()
    ahead = asyncio.create_task(node.fetcher.ensure(tree, ALL, Priority.AHEAD))
    await until_asked(source, 1)
    climb = asyncio.create_task(node.fetcher.ensure(tree, [5, 1], Priority.PREFETCH))
    await asyncio.sleep(0)
    source.open.set()
    await climb
    await ahead
    assert source.served == [CHUNKS[n] for n in (0, 5, 1, 2, 3, 4)]


async def test_a_short_absence_of_the_store_is_not_seen(
    node: Node, source: MemorySource, tree: CachedTree
) -> None:
    source.down = True
    reading = asyncio.create_task(node.read(tree.digest, "a"))
    await until_asked(source, 1)
    source.down = False
    assert await reading == FILES["a"]


async def test_a_long_absence_is_an_error_and_later_reads_try_again(
    node: Node, source: MemorySource, tree: CachedTree
) -> None:
    source.down = True
    with pytest.raises(Unavailable, match=CHUNKS[0]):
        await node.read(tree.digest, "a")
    source.down = False
    assert await node.read(tree.digest, "a") == FILES["a"]


async def test_a_store_that_hangs_is_an_error(
    node: Node, source: MemorySource, tree: CachedTree
) -> None:
    source.open.clear()
    with pytest.raises(Unavailable):
        await node.read(tree.digest, "a")


async def test_damage_on_the_way_is_fetched_again(
    node: Node, source: MemorySource, tree: CachedTree
) -> None:
    source.damaged_once.add(CHUNKS[0])
    assert await node.read(tree.digest, "a") == FILES["a"]
    assert source.verified == [CHUNKS[0]]


async def test_damage_in_the_store_is_told_to_it_once_and_named(
    node: Node, source: MemorySource, tree: CachedTree
) -> None:
    source.damaged.add(CHUNKS[0])
    with pytest.raises(DataLoss, match=CHUNKS[0]) as caught:
        await node.read(tree.digest, "a")
    assert caught.value.reason == "CHUNK_DAMAGED"
    assert caught.value.metadata["path"] == "a"
    assert node.cache.used_bytes == 0
    assert source.verified == [CHUNKS[0]]
    assert await node.read(tree.digest, "b") == FILES["b"]
    source.damaged.clear()
    assert await node.read(tree.digest, "a") == FILES["a"]


async def test_a_chunk_that_the_store_lost_is_data_loss(
    node: Node, source: MemorySource, tree: CachedTree
) -> None:
    del source.chunks[CHUNKS[0]]
    with pytest.raises(DataLoss, match=CHUNKS[0]):
        await node.read(tree.digest, "a")


async def test_a_chunk_of_another_length_is_data_loss(node: Node, source: MemorySource) -> None:
    manifest = Manifest(Kind.WEIGHTS, (FileEntry("a", 5000, (CHUNKS[0],)),), {})
    source.add(FILES)
    source.manifests[manifest.digest] = manifest
    with pytest.raises(DataLoss, match="has 3000 bytes"):
        await node.read(manifest.digest, "a")


async def test_a_cache_full_of_what_is_in_use_refuses(tmp_path: Path, source: MemorySource) -> None:
    async with Node(tmp_path, source, bytes_max=3 * 4096) as node:
        tree = await node.cache.open(source.add(FILES).digest)
        with pytest.raises(ResourceExhausted, match="CACHE_BYTES_MAX"):
            await node.fetcher.ensure(tree, ALL, Priority.PREFETCH)
        assert await node.read(tree.digest, "a") == FILES["a"]
        assert node.cache.used_bytes <= 3 * 4096


async def test_stopping_fails_those_who_wait(tmp_path: Path, source: MemorySource) -> None:
    async with Node(tmp_path, source) as node:
        tree = await node.cache.open(source.add(FILES).digest)
        source.open.clear()
        waiting = asyncio.create_task(node.fetcher.ensure(tree, ALL, Priority.DEMAND))
        await until_asked(source, 1)
    with pytest.raises(Unavailable, match="stopping"):
        await waiting
    with pytest.raises(Unavailable, match="stopping"):
        await node.fetcher.ensure(tree, ALL, Priority.DEMAND)


async def test_a_reader_in_order_is_fetched_ahead_of(node: Node, source: MemorySource) -> None:
    data = random.Random(2).randbytes(1000)
    big = b"".join(data + bytes(CHUNK_BYTES - 1000 - 1) + bytes([n]) for n in range(1, 5))
    tree = await node.cache.open(source.add({"pages": big}).digest)
    top = await node.tree.lookup(1, digests.hex_of(tree.digest).encode())
    assert top
    found = await node.tree.lookup(top.inode, b"pages")
    assert found
    handle = await node.tree.open(found.inode)
    for chunk in range(2):
        await node.tree.read(handle, chunk * CHUNK_BYTES, 1 << 20)
    async with asyncio.timeout(60):
        while not tree.complete:
            await node.cache.changed.wait()
            node.cache.changed.clear()
    node.tree.release(handle)
