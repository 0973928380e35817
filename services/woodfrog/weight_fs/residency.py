"""How much of each tree is on this node, by tier, and the stream of its changes."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from woodfrog.clients.weight_fs import Residency, ResidencyUpdate
from woodfrog.weight_fs.cache import CachedTree, NodeCache
from woodfrog.weight_fs.page_cache import cached_bytes

log = logging.getLogger(__name__)
_PAUSE_S = 0.05  # changes within it are told as one


class ResidencyWatch:
    """async with ResidencyWatch(cache, 2.0) as watch. A watcher that is slow is told less often, never less."""

    def __init__(self, cache: NodeCache, interval_s: float) -> None:
        self._cache = cache
        self._interval_s = interval_s
        self._view: Mapping[str, Residency] = {}
        self._newer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> "ResidencyWatch":
        self.task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def follow(self) -> AsyncIterator[ResidencyUpdate]:
        """First everything, then what changed since the last step."""
        newer = self._newer
        seen = self._look()
        yield ResidencyUpdate(True, tuple(seen.values()), (), self._cache.bytes_max)
        while True:
            await asyncio.shield(newer)
            newer, view = self._newer, self._view
            changed = tuple(each for digest, each in view.items() if seen.get(digest) != each)
            gone = tuple(sorted(seen.keys() - view.keys()))
            seen = view
            if changed or gone:
                yield ResidencyUpdate(False, changed, gone)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        measure_at = loop.time()
        while True:
            if loop.time() >= measure_at:
                await self._measure()
                measure_at = loop.time() + self._interval_s
            self._view = self._look()
            self._newer.set_result(None)
            self._newer = loop.create_future()
            await asyncio.sleep(_PAUSE_S)
            try:
                async with asyncio.timeout_at(measure_at):
                    await self._cache.changed.wait()
            except TimeoutError:
                pass
            self._cache.changed.clear()

    async def _measure(self) -> None:
        for tree in list(self._cache.trees.values()):
            try:
                tree.page_cache_bytes = await asyncio.to_thread(cached_bytes, _paths(tree))
            except OSError as error:  # evicted meanwhile, or a sick disk, which its readers report
                log.debug("page cache not measured", extra={"error": str(error)})

    def _look(self) -> Mapping[str, Residency]:
        return {digest: residency(tree) for digest, tree in self._cache.trees.items()}


def residency(tree: CachedTree) -> Residency:
    return Residency(
        manifest_digest=tree.digest,
        kind=tree.manifest.kind.value,
        size_bytes=tree.presence.size_bytes,
        disk_bytes=tree.presence.present_bytes,
        page_cache_bytes=tree.page_cache_bytes,
        complete=tree.complete,
    )


def _paths(tree: CachedTree) -> list[Path]:
    return [tree.files.path(index) for index in range(len(tree.manifest.files))]
