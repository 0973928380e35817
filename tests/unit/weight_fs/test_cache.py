"""The cache under everything at once: reads, evictions, kills, damage. Whatever happens, never a wrong byte."""

import asyncio
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.memory.chunk_source import MemorySource, write_files
from tests.unit.weight_fs.node import Node

from woodfrog.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    WoodfrogError,
)
from woodfrog.model import digest as digests
from woodfrog.model.manifest import CHUNK_BYTES, Manifest
from woodfrog.weight_fs.cache import CachedTree
from woodfrog.weight_fs.fetch import Priority
from woodfrog.weight_fs.presence import PRESENT

_R = random.Random(3)
TREES = [
    {
        "pages": _R.randbytes(CHUNK_BYTES) + bytes(CHUNK_BYTES) + _R.randbytes(5000),
        "img/core": b"c" * 300,
    },
    {"x": _R.randbytes(9000), "y/z": b"1", "empty": b""},
    {"w": _R.randbytes(70_000)},
]
BYTES_MAX = CHUNK_BYTES + 60_000  # the first and the last do not fit together
ROUNDING_BYTES = 64 << 10  # a seal measures anew, with blocks of the file system's own
PATHS = [(index, path) for index, files in enumerate(TREES) for path in files]
_places = st.sampled_from(PATHS)
_offsets = st.sampled_from([0, 1, 4999, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES])
_sizes = st.sampled_from([1, 4096, 100_000, 1 << 20])


class CacheMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="weight-fs-"))
        self.runner = asyncio.Runner()
        self.source = MemorySource()
        self.manifests = [self.source.add(files) for files in TREES]
        self.held: list[tuple[int, str, int]] = []
        self.boot()

    def boot(self) -> None:
        async def enter() -> Node:
            root = self.folder / "cache"
            return await Node(root, self.source, bytes_max=BYTES_MAX, retry_s=0.05).__aenter__()

        self.node = self.runner.run(enter())
        self.held.clear()

    def teardown(self) -> None:
        if hasattr(self, "node"):
            self.runner.run(self.node.__aexit__())
            self.runner.close()
            shutil.rmtree(self.folder)

    @invariant()
    def what_is_present_is_right(self) -> None:
        for tree in self.node.cache.trees.values():
            files = TREES[self.manifests.index(tree.manifest)]
            for number in range(len(tree.presence)):
                if tree.presence[number] == PRESENT:
                    entry, chunk = tree.presence.entry(number)
                    with (tree.files.files / entry.path).open("rb") as file:
                        file.seek(chunk * CHUNK_BYTES)
                        data = file.read(entry.chunk_bytes(chunk))
                    start = chunk * CHUNK_BYTES
                    assert data == files[entry.path][start : start + len(data)]
            assert not tree.stamps or tree.complete
            assert tree.jobs >= 0

    @invariant()
    def limit_holds(self) -> None:
        assert self.node.cache.used_bytes <= BYTES_MAX + ROUNDING_BYTES

    def allow(self, error: WoodfrogError, index: int) -> None:
        """Whether a read of that tree may end so."""
        if isinstance(error, Unavailable):
            assert self.source.down
        elif isinstance(error, DataLoss):
            assert self.source.damaged & self.manifests[index].chunk_digests
        else:
            assert isinstance(error, ResourceExhausted)
            assert any(tree.owners or tree.fds for tree in self.node.cache.trees.values())

    @rule(place=_places, offset=_offsets, size=_sizes)
    def read(self, place: tuple[int, str], offset: int, size: int) -> None:
        index, path = place
        digest = self.manifests[index].digest
        try:
            data = self.runner.run(self.node.read(digest, path, offset, size))
        except WoodfrogError as error:
            self.allow(error, index)
        else:
            assert data == TREES[index][path][offset : offset + size]

    @rule(index=st.integers(0, 2))
    def fetch(self, index: int) -> None:
        async def everything() -> None:
            tree = await self.node.cache.open(self.manifests[index].digest)
            await self.node.fetcher.ensure(tree, range(len(tree.presence)), Priority.PREFETCH)
            assert tree.complete

        try:
            self.runner.run(everything())
        except WoodfrogError as error:
            self.allow(error, index)

    @rule(place=_places)
    def hold_open(self, place: tuple[int, str]) -> None:
        index, path = place

        async def open_file() -> int:
            await self.node.cache.open(self.manifests[index].digest)
            inode = 1
            for name in (digests.hex_of(self.manifests[index].digest), *path.split("/")):
                found = await self.node.tree.lookup(inode, name.encode())
                assert found
                inode = found.inode
            return await self.node.tree.open(inode)

        try:
            self.held.append((index, path, self.runner.run(open_file())))
        except WoodfrogError as error:
            self.allow(error, index)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), offset=_offsets, size=_sizes)
    def read_held(self, data: st.DataObject, offset: int, size: int) -> None:
        index, path, handle = data.draw(st.sampled_from(self.held))

        async def read_on() -> bytes:
            now = self.node.tree.read_now(handle, offset, size)
            if now is None:
                return await self.node.tree.read(handle, offset, size)
            return bytes(now)

        try:
            found = self.runner.run(read_on())
        except WoodfrogError as error:
            self.allow(error, index)
        else:
            assert found == TREES[index][path][offset : offset + size]

    @precondition(lambda self: self.held)
    @rule()
    def release(self) -> None:
        self.node.tree.release(self.held.pop()[2])

    @rule(index=st.integers(0, 2))
    def evict(self, index: int) -> None:
        digest = self.manifests[index].digest
        try:
            self.runner.run(self.node.cache.evict(digest))
        except FailedPrecondition:
            assert self.node.cache.trees[digest].busy
        else:
            assert digest not in self.node.cache.trees

    @rule(index=st.integers(0, 2))
    def adopt(self, index: int) -> None:
        folder = write_files(self.folder / "made", TREES[index])
        try:
            tree = self.runner.run(self.node.cache.adopt(self.manifests[index], folder))
        except ResourceExhausted as error:
            self.allow(error, index)
            shutil.rmtree(folder)
        else:
            assert tree.complete
            assert not folder.exists()

    @rule(index=st.integers(0, 2), pinned=st.booleans())
    def pin(self, index: int, pinned: bool) -> None:
        digest = self.manifests[index].digest
        if pinned and digest in self.node.cache.trees:
            self.node.cache.pin(digest, "replica-1")
        else:
            self.node.cache.unpin(digest, "replica-*")

    @rule(down=st.booleans())
    def store_comes_or_goes(self, down: bool) -> None:
        self.source.down = down

    @rule(index=st.integers(0, 2), damaged=st.booleans())
    def store_is_damaged_or_mended(self, index: int, damaged: bool) -> None:
        chunks = self.manifests[index].chunk_digests
        self.source.damaged = set(chunks) if damaged else set()

    @rule(index=st.integers(0, 2))
    def a_sealed_tree_is_tampered_with(self, index: int) -> None:
        tree = self.node.cache.trees.get(self.manifests[index].digest)
        if tree is not None and tree.stamps is not None:
            _vandalise(tree.files.files, random.Random(index))
            self.runner.run(self.node.cache.recheck(tree))

    @rule(harm=st.none() | st.integers(0, 1000))
    def kill_and_start(self, harm: int | None) -> None:
        pins = {d: set(tree.owners) for d, tree in self.node.cache.trees.items()}
        self.runner.run(self.node.__aexit__())
        if harm is not None:
            for folder in (self.folder / "cache").glob("*/files"):
                _vandalise(folder, random.Random(harm))
        self.boot()
        assert {d: tree.owners for d, tree in self.node.cache.trees.items()} == pins


def _vandalise(folder: Path, chance: random.Random) -> None:
    """What a crash, a bad disk or a careless person may do to files."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        size = path.stat().st_size
        match chance.choice(["nothing", "flip", "tear", "cut", "remove"]):
            case "flip" if size:
                with path.open("r+b") as file:
                    file.seek(chance.randrange(size))
                    byte = file.read(1)
                    file.seek(-1, 1)
                    file.write(bytes([byte[0] ^ 1]))
            case "tear" if size:  # a chunk that was half written
                with path.open("r+b") as file:
                    file.seek(chance.randrange(0, size, CHUNK_BYTES))
                    file.write(b"half")
            case "cut":
                with path.open("r+b") as file:
                    file.truncate(size // 2)
            case "remove":
                path.unlink()


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


@pytest.fixture
def source() -> MemorySource:
    return MemorySource()


async def opened(node: Node, manifest: Manifest) -> CachedTree:
    tree = await node.cache.open(manifest.digest)
    await node.fetcher.ensure(tree, range(len(tree.presence)), Priority.PREFETCH)
    return tree


async def sealed(node: Node, tree: CachedTree) -> None:
    async with asyncio.timeout(60):
        while tree.stamps is None:
            await asyncio.sleep(0.001)


async def test_a_sealed_tree_is_served_after_a_restart_without_the_store(
    tmp_path: Path, source: MemorySource
) -> None:
    manifest = source.add(TREES[1])
    async with Node(tmp_path, source) as node:
        await sealed(node, await opened(node, manifest))
    source.down = True
    async with Node(tmp_path, source) as node:
        assert node.cache.trees[manifest.digest].complete
        assert await node.read(manifest.digest, "x") == TREES[1]["x"]


async def test_an_unsealed_tree_is_verified_in_the_background_and_sealed(
    tmp_path: Path, source: MemorySource
) -> None:
    manifest = source.add(TREES[0])
    async with Node(tmp_path, source) as node:
        await sealed(node, await opened(node, manifest))
    (tmp_path / digests.hex_of(manifest.digest) / "complete.json").unlink()
    source.served.clear()
    source.down = True
    async with Node(tmp_path, source) as node:
        tree = node.cache.trees[manifest.digest]
        assert tree.presence.present_bytes == 0
        await sealed(node, tree)
        assert tree.presence.present_bytes == tree.presence.size_bytes
    assert source.served == []


async def test_the_tree_used_longest_ago_goes_also_after_a_restart(
    tmp_path: Path, source: MemorySource
) -> None:
    manifests = [source.add({"w": _R.randbytes(8192)}) for _ in range(3)]
    async with Node(tmp_path, source, bytes_max=2 * 8192) as node:
        await sealed(node, await opened(node, manifests[0]))
        await sealed(node, await opened(node, manifests[1]))
        node.cache.touch(node.cache.trees[manifests[0].digest])
    async with Node(tmp_path, source, bytes_max=2 * 8192) as node:
        await opened(node, manifests[2])
        assert set(node.cache.trees) == {manifests[0].digest, manifests[2].digest}


async def test_two_processes_cannot_use_one_cache(tmp_path: Path, source: MemorySource) -> None:
    async with Node(tmp_path, source):
        with pytest.raises(FailedPrecondition, match="another weight_fs"):
            Node(tmp_path, source).cache.recover()


async def test_adopting_again_is_harmless(tmp_path: Path, source: MemorySource) -> None:
    manifest = source.add(TREES[1])
    async with Node(tmp_path / "cache", source) as node:
        folder = write_files(tmp_path / "made", TREES[1])
        tree = await node.cache.adopt(manifest, folder)
        assert await node.cache.adopt(manifest, folder) is tree
        write_files(folder, TREES[1])
        assert await node.cache.adopt(manifest, folder) is tree
        assert not folder.exists()
        assert await node.read(manifest.digest, "x") == TREES[1]["x"]


async def test_adopting_again_after_a_kill_finds_the_tree(
    tmp_path: Path, source: MemorySource
) -> None:
    manifest = source.add(TREES[0])
    async with Node(tmp_path / "cache", source) as node:
        tree = await node.cache.adopt(manifest, write_files(tmp_path / "made", TREES[0]))
        await sealed(node, tree)
        tree.files.unseal()  # as if it had been killed before
    source.down = True
    async with Node(tmp_path / "cache", source) as node:
        assert not node.cache.trees[manifest.digest].complete
        assert (await node.cache.adopt(manifest, tmp_path / "made")).complete


@pytest.mark.parametrize("which", ["missing", "other", "link", "inside", "above"])
async def test_adopts_nothing_but_the_manifests_files(
    tmp_path: Path, source: MemorySource, which: str
) -> None:
    manifest = source.add(TREES[1])
    async with Node(tmp_path / "cache", source) as node:
        tree = await opened(node, manifest) if which != "other" else None
        folder = {
            "missing": tmp_path / "none",
            "other": write_files(tmp_path / "made", TREES[2]),
            "link": tmp_path / "link",
            "inside": tree.files.files if tree else tmp_path,
            "above": tmp_path,
        }[which]
        (tmp_path / "link").symlink_to(tmp_path / "made")
        if which == "missing":
            await node.cache.evict(manifest.digest)
        with pytest.raises(InvalidArgument) as caught:
            await node.cache.adopt(manifest, folder)
        assert caught.value.reason == "TREE_MISMATCH"
        assert (tmp_path / "made" / "w").exists()
        assert await node.read(manifest.digest, "x") == TREES[1]["x"]


async def test_a_manifest_that_no_file_system_can_hold_is_refused(
    tmp_path: Path, source: MemorySource
) -> None:
    manifest = source.add({"a": b"1", "a/b": b"2"})
    async with Node(tmp_path, source) as node:
        with pytest.raises(InvalidArgument, match="'a' is a file and also the folder of 'a/b'"):
            await node.cache.open(manifest.digest)


async def test_pins_guard_and_survive_a_restart(tmp_path: Path, source: MemorySource) -> None:
    manifest = source.add(TREES[1])
    async with Node(tmp_path, source) as node:
        await opened(node, manifest)
        node.cache.pin(manifest.digest, "replica-1")
        node.cache.pin(manifest.digest, "replica-2")
    async with Node(tmp_path, source) as node:
        with pytest.raises(FailedPrecondition, match="pinned by replica-1, replica-2"):
            await node.cache.evict(manifest.digest)
        node.cache.unpin(manifest.digest, "replica-1")
        node.cache.unpin("", "repl*")
        await sealed(node, node.cache.trees[manifest.digest])
        assert await node.cache.evict(manifest.digest) > 0
        assert await node.cache.evict(manifest.digest) == 0
        assert list((tmp_path / ".trash").iterdir()) == []


async def touched(node: Node, manifest: Manifest) -> CachedTree:
    """A sealed tree whose file x was changed from outside."""
    tree = await opened(node, manifest)
    await sealed(node, tree)
    with (tree.files.files / "x").open("r+b") as file:
        file.write(b"!!")
    return tree


async def test_a_sealed_tree_that_was_changed_is_mended_before_it_is_read(
    tmp_path: Path, source: MemorySource
) -> None:
    manifest = source.add(TREES[1])
    async with Node(tmp_path, source) as node:
        tree = await touched(node, manifest)
        await node.cache.recheck(tree)
        assert not tree.complete
        assert await node.read(manifest.digest, "x") == TREES[1]["x"]
        await sealed(node, tree)
        assert (tree.files.files / "x").read_bytes() == TREES[1]["x"]


async def test_a_look_that_is_cut_off_forgets_no_suspicion(
    tmp_path: Path, source: MemorySource
) -> None:
    manifest = source.add(TREES[1])
    async with Node(tmp_path, source) as node:
        tree = await touched(node, manifest)
        looking = asyncio.create_task(node.cache.recheck(tree))
        while tree.stamps is not None:  # it has seen the change
            await asyncio.sleep(0)
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        assert not tree.complete
        assert await node.read(manifest.digest, "x") == TREES[1]["x"]


async def test_a_tree_with_open_files_stays(tmp_path: Path, source: MemorySource) -> None:
    manifests = [source.add({"w": _R.randbytes(8192)}) for _ in range(2)]
    async with Node(tmp_path, source, bytes_max=8192) as node:
        await sealed(node, await opened(node, manifests[0]))
        top = await node.tree.lookup(1, digests.hex_of(manifests[0].digest).encode())
        assert top
        file = await node.tree.lookup(top.inode, b"w")
        assert file
        handle = await node.tree.open(file.inode)
        with pytest.raises(FailedPrecondition, match="1 open files") as caught:
            await node.cache.evict(manifests[0].digest)
        assert caught.value.reason == "TREE_IN_USE"
        with pytest.raises(ResourceExhausted):
            await opened(node, manifests[1])
        node.tree.release(handle)
        await opened(node, manifests[1])
        assert manifests[0].digest not in node.cache.trees
