import asyncio
from pathlib import Path

from tests.memory.chunk_source import MemorySource
from tests.unit.weight_fs.node import Node

from woodfrog.clients.weight_fs import Residency, ResidencyUpdate
from woodfrog.weight_fs.fetch import Priority
from woodfrog.weight_fs.residency import ResidencyWatch


def apply(view: dict[str, Residency], update: ResidencyUpdate) -> None:
    if update.full:
        view.clear()
    for tree in update.trees:
        view[tree.manifest_digest] = tree
    for digest in update.gone:
        del view[digest]


async def test_a_slow_watcher_is_told_all_of_it_at_once(tmp_path: Path) -> None:
    source = MemorySource()
    kept, dropped = source.add({"a": b"a" * 5000}), source.add({"b": b"b", "zero": bytes(9)})
    async with Node(tmp_path, source) as node, ResidencyWatch(node.cache, 0.05) as watch:
        await node.cache.open(dropped.digest)
        slow: dict[str, Residency] = {}
        fast: dict[str, Residency] = {}
        slow_watch = watch.follow()
        apply(slow, await anext(slow_watch))
        assert slow == {dropped.digest: Residency(dropped.digest, "weights", 1, 0, 0, False)}
        await node.cache.evict(dropped.digest)
        tree = await node.cache.open(kept.digest)
        await node.fetcher.ensure(tree, [0], Priority.PREFETCH)
        final = {kept.digest: Residency(kept.digest, "weights", 5000, 5000, 8192, True)}
        async with asyncio.timeout(60):
            async for update in watch.follow():
                apply(fast, update)
                if fast == final:
                    break
        update = await anext(slow_watch)
        assert (update.full, update.gone) == (False, (dropped.digest,))
        apply(slow, update)
        assert slow == final
