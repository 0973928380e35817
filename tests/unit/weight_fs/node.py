"""A whole weight_fs on a temporary folder and a store in memory, without a kernel's mount."""

from pathlib import Path

from tests.memory.chunk_source import MemorySource

from woodfrog.clock import SystemClock
from woodfrog.model import digest as digests
from woodfrog.weight_fs.cache import NodeCache
from woodfrog.weight_fs.fetch import Fetcher
from woodfrog.weight_fs.weight_tree import ROOT_INODE, WeightTree


class Node:
    """async with Node(...) as node. Leaving it is no kinder to the cache than a kill."""

    def __init__(
        self,
        root: Path,
        source: MemorySource,
        *,
        bytes_max: int = 1 << 30,
        concurrency: int = 2,
        retry_s: float = 0.5,
    ) -> None:
        clock = SystemClock()
        self.cache = NodeCache(root, source, clock, bytes_max)
        self.fetcher = Fetcher(self.cache, source, clock, concurrency=concurrency, retry_s=retry_s)
        self.tree = WeightTree(self.cache, self.fetcher)

    async def __aenter__(self) -> "Node":
        self.cache.recover()
        await self.fetcher.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.fetcher.__aexit__()
        await self.cache.close()

    async def read(self, digest: str, path: str, offset: int = 0, size: int = 1 << 20) -> bytes:
        """Opens, reads and closes as the kernel would."""
        inode = ROOT_INODE
        walked: list[int] = []
        for name in (digests.hex_of(digest), *path.split("/")):
            found = await self.tree.lookup(inode, name.encode())
            assert found, name
            inode = found.inode
            walked.append(inode)
        try:
            handle = await self.tree.open(inode)
            try:
                data = self.tree.read_now(handle, offset, size)
                if data is None:
                    return await self.tree.read(handle, offset, size)
                return bytes(data)
            finally:
                self.tree.release(handle)
        finally:
            self.tree.forget((inode, 1) for inode in walked)
