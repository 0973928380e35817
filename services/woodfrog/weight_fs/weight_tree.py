"""What the mount shows, as plain calls: `/` lists the trees, `/<manifest hex>/<path>` are their files.

No kernel is needed to drive it. Inodes are numbered as trees come into sight and never change while anyone looks, also
when a tree is evicted and fetched anew: the bytes behind a digest are the same, so what the kernel caches stays right.
"""

import errno
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from woodfrog.errors import DataLoss, NotFound
from woodfrog.model import digest as digests
from woodfrog.model.manifest import CHUNK_BYTES, Manifest
from woodfrog.weight_fs import policy
from woodfrog.weight_fs.cache import CachedTree, NodeCache
from woodfrog.weight_fs.fetch import Fetcher, Priority
from woodfrog.weight_fs.on_disk import disk_errors, on_disk

ROOT_INODE = 1
READ_BYTES_MAX = 1 << 20  # the kernel asks for no more at once


@dataclass(frozen=True, slots=True)
class Attributes:
    inode: int
    folder: bool
    size_bytes: int
    stored_bytes: int  # without holes
    link_count: int


@dataclass(eq=False, slots=True)
class _Node:
    attributes: Attributes
    file: int | None = None  # index in the manifest; None for a folder
    children: dict[bytes, "_Node"] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class _Sight:
    """One manifest's nodes."""

    digest: str
    nodes: list[_Node]  # the first is its folder
    lookup_count: int = 0  # how often the kernel has to forget before the nodes may go


@dataclass(eq=False, slots=True)
class _Handle:
    tree: CachedTree
    file: int
    first: int  # number of the file's first chunk
    size_bytes: int
    chunk: int = -1  # that was read last
    run: int = 0  # chunks read one after the other before it


class WeightTree:
    """Errors are woodfrog.errors classes, and OSError for what the caller did wrong."""

    def __init__(self, cache: NodeCache, fetcher: Fetcher) -> None:
        self._cache = cache
        self._fetcher = fetcher
        self._sights: dict[str, _Sight] = {}
        self._nodes: dict[int, tuple[_Sight, _Node]] = {}
        self._inodes = itertools.count(ROOT_INODE + 1)
        self._handles: dict[int, _Handle] = {}  # by descriptor
        self._buffer = memoryview(bytearray(READ_BYTES_MAX))

    async def lookup(self, parent: int, name: bytes) -> Attributes | None:
        """None when there is no such name. What it finds is to be forgotten once more."""
        if parent == ROOT_INODE:
            digest = digests.PREFIX + name.decode("ascii", "replace")
            if not digests.valid(digest):
                return None
            try:
                sight = self._sight(await self._cache.open(digest))
            except NotFound:
                return None
            node = sight.nodes[0]
        else:
            sight, folder = self._nodes[parent]
            if name not in folder.children:
                return None
            node = folder.children[name]
        sight.lookup_count += 1
        return node.attributes

    def attributes(self, inode: int) -> Attributes:
        if inode == ROOT_INODE:
            return Attributes(ROOT_INODE, True, 0, 0, 2 + len(self._cache.trees))
        return self._nodes[inode][1].attributes

    def entries(self, inode: int, start: int) -> Iterator[tuple[bytes, Attributes, int]]:
        """(name, attributes, where to go on) after `start`. Each that is passed to the kernel: `count` it."""
        if inode == ROOT_INODE:
            sights = [self._sight(tree) for tree in list(self._cache.trees.values())]
            for sight in sorted(sights, key=lambda sight: sight.nodes[0].attributes.inode):
                attributes = sight.nodes[0].attributes
                if attributes.inode > start:
                    yield digests.hex_of(sight.digest).encode(), attributes, attributes.inode
            return
        children = self._nodes[inode][1].children.items()
        for place, (name, node) in enumerate(itertools.islice(children, start, None), start + 1):
            yield name, node.attributes, place

    def count(self, inode: int) -> None:
        """The kernel learned of the inode once more."""
        self._nodes[inode][0].lookup_count += 1

    def forget(self, forgotten: Iterable[tuple[int, int]]) -> None:
        for inode, count in forgotten:
            if inode != ROOT_INODE:
                sight, _ = self._nodes[inode]
                sight.lookup_count -= count
                assert sight.lookup_count >= 0
                self._prune(sight)

    async def open(self, inode: int) -> int:
        """A handle to read from. The tree comes back when it was evicted."""
        sight, node = self._nodes[inode]  # the root is never opened so
        if node.file is None:
            raise IsADirectoryError(errno.EISDIR, "a folder")
        tree = await self._cache.open(sight.digest)
        with disk_errors():
            fd = os.open(tree.files.path(node.file), os.O_RDONLY | os.O_CLOEXEC)
        tree.fds[fd] = node.file
        size_bytes = tree.manifest.files[node.file].size_bytes
        self._handles[fd] = _Handle(tree, node.file, tree.presence.first[node.file], size_bytes)
        self._cache.touch(tree)
        return fd

    def release(self, handle: int) -> None:
        tree = self._handles.pop(handle).tree
        del tree.fds[handle]
        os.close(handle)
        self._cache.touch(tree)

    def read_now(self, handle: int, offset: int, size: int) -> memoryview | None:
        """The bytes if they are at hand, valid until the next call; None when they have to be waited for."""
        opened = self._handles[handle]
        size = min(size, opened.size_bytes - offset)
        if size <= 0:
            return self._buffer[:0]
        if size > READ_BYTES_MAX or not self._present(opened, offset, size):
            return None
        try:
            count = os.preadv(handle, [self._buffer[:size]], offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # EAGAIN: not in the page cache
                return None
            count = os.preadv(handle, [self._buffer[:size]], offset)  # tmpfs: always in memory
        return self._buffer[:size] if count == size else None

    async def read(self, handle: int, offset: int, size: int) -> bytes:
        """The bytes, fetched first where they are not there. Raises DataLoss, Unavailable, ResourceExhausted."""
        opened = self._handles[handle]
        size = min(size, opened.size_bytes - offset)
        if size <= 0:
            return b""
        tree = opened.tree
        if not self._present(opened, offset, size):
            numbers = tree.presence.numbers(opened.file, offset, size)
            with self._fetcher.metrics.fault.time():
                await self._fetcher.ensure(tree, numbers, Priority.DEMAND)
        data = await on_disk(
            os.pread, handle, size, offset
        )  # the kernel releases it after its reads
        if len(data) != size:
            path = tree.manifest.files[opened.file].path
            raise DataLoss(
                "CACHE_DAMAGED",
                f"{path} in the cache of {tree.digest} is shorter than its manifest says; evict the tree",
                manifest=tree.digest,
            )
        return data

    def _present(self, opened: _Handle, offset: int, size: int) -> bool:
        """Whether the extent may be read. Fetches ahead of one who reads in order."""
        presence = opened.tree.presence
        if presence.complete:
            return True
        first, last = offset // CHUNK_BYTES, (offset + size - 1) // CHUNK_BYTES
        if last != opened.chunk:
            opened.run = opened.run + 1 if last == opened.chunk + 1 and opened.chunk >= 0 else 0
            opened.chunk = last
            end = presence.first[opened.file + 1] - opened.first
            ahead = policy.readahead(opened.run, last, end)
            self._fetcher.hint(opened.tree, (opened.first + chunk for chunk in ahead))
        return presence.all_present(opened.first + first, opened.first + last)

    def _sight(self, tree: CachedTree) -> _Sight:
        sight = self._sights.get(tree.digest)
        if sight is None:
            for old in list(self._sights.values()):
                self._prune(old)
            sight = _Sight(tree.digest, _grow(tree.manifest, self._inodes))
            self._sights[tree.digest] = sight
            self._nodes.update((node.attributes.inode, (sight, node)) for node in sight.nodes)
        return sight

    def _prune(self, sight: _Sight) -> None:
        """Drops the nodes of a tree that is neither here nor known to the kernel."""
        if sight.lookup_count == 0 and sight.digest not in self._cache.trees:
            del self._sights[sight.digest]
            for node in sight.nodes:
                del self._nodes[node.attributes.inode]


def _grow(manifest: Manifest, inodes: Iterator[int]) -> list[_Node]:
    """The nodes of a manifest; the first is its folder."""
    top = _Node(Attributes(next(inodes), True, 0, 0, 2))
    nodes = [top]
    for index, file in enumerate(manifest.files):
        *folders, name = os.fsencode(file.path).split(b"/")
        parent = top
        for folder in folders:
            if folder not in parent.children:
                node = _Node(Attributes(next(inodes), True, 0, 0, 2))
                nodes.append(node)
                parent.children[folder] = node
                links = parent.attributes.link_count + 1
                parent.attributes = replace(parent.attributes, link_count=links)
            parent = parent.children[folder]
        stored = sum(file.chunk_bytes(n) for n, chunk in enumerate(file.chunks) if chunk)
        node = _Node(Attributes(next(inodes), False, file.size_bytes, stored, 1), index)
        nodes.append(node)
        parent.children[name] = node
    return nodes
