"""What the mount shows, driven without a kernel."""

import errno
from pathlib import Path

import pytest
from tests.memory.chunk_source import MemorySource, write_files
from tests.unit.weight_fs.node import Node

from woodfrog.errors import NotFound, Unavailable
from woodfrog.model import digest as digests
from woodfrog.model.manifest import Manifest
from woodfrog.weight_fs.weight_tree import ROOT_INODE

FILES = {"a/b/one": b"1" * 5000, "a/two": b"22", "three": b""}


async def walk(node: Node, inode: int, start: int = 0) -> dict[str, int]:
    return {name.decode(): found.inode for name, found, _ in node.tree.entries(inode, start)}


async def test_names_and_attributes(tmp_path: Path) -> None:
    source = MemorySource()
    manifest = source.add(FILES)
    async with Node(tmp_path, source) as node:
        assert await walk(node, ROOT_INODE) == {}
        top = await node.tree.lookup(ROOT_INODE, digests.hex_of(manifest.digest).encode())
        assert top
        assert (top.folder, top.link_count) == (True, 3)
        assert await walk(node, ROOT_INODE) == {digests.hex_of(manifest.digest): top.inode}
        inside = await walk(node, top.inode)
        assert list(inside) == ["a", "three"]
        assert list(await walk(node, inside["a"])) == ["b", "two"]
        two = await node.tree.lookup(inside["a"], b"two")
        assert two
        assert (two.folder, two.size_bytes, two.stored_bytes, two.link_count) == (False, 2, 2, 1)
        assert node.tree.attributes(two.inode) == two
        assert await node.tree.lookup(top.inode, b"four") is None
        with pytest.raises(OSError) as caught:
            await node.tree.open(inside["a"])
        assert caught.value.errno == errno.EISDIR


async def test_a_listing_goes_on_where_it_stopped(tmp_path: Path) -> None:
    source = MemorySource()
    manifests = [
        source.add({f"file{n}": bytes([n + 1]) for n in range(count)}) for count in (3, 4, 5)
    ]
    async with Node(tmp_path, source) as node:
        for manifest in manifests:
            await node.cache.open(manifest.digest)
        top = await node.tree.lookup(ROOT_INODE, _name(manifests[2]))
        assert top
        for inode in (ROOT_INODE, top.inode):
            everything = list(node.tree.entries(inode, 0))
            for place, (_, _, after) in enumerate(everything):
                assert list(node.tree.entries(inode, after)) == everything[place + 1 :]


async def test_unknown_names_do_not_trouble_the_store(tmp_path: Path) -> None:
    source = MemorySource()
    async with Node(tmp_path, source) as node:
        source.down = True
        assert await node.tree.lookup(ROOT_INODE, b".Trash") is None
        assert await node.tree.lookup(ROOT_INODE, b"\xff" * 64) is None
        with pytest.raises(Unavailable):
            await node.tree.lookup(ROOT_INODE, b"0" * 64)
        source.down = False
        assert await node.tree.lookup(ROOT_INODE, b"0" * 64) is None


async def test_an_evicted_tree_keeps_its_inodes_while_the_kernel_knows_them(tmp_path: Path) -> None:
    source = MemorySource()
    manifest = source.add(FILES)
    async with Node(tmp_path, source) as node:
        top = await node.tree.lookup(ROOT_INODE, _name(manifest))
        assert top
        file = await node.tree.lookup((await walk(node, top.inode))["a"], b"two")
        assert file
        await node.cache.evict(manifest.digest)
        assert await walk(node, ROOT_INODE) == {}
        handle = await node.tree.open(file.inode)  # comes back
        assert await node.tree.read(handle, 0, 100) == b"22"
        node.tree.release(handle)
        assert await node.tree.lookup(ROOT_INODE, _name(manifest)) == top
        await node.cache.evict(manifest.digest)
        node.tree.forget([(top.inode, 2), (file.inode, 1)])
        with pytest.raises(KeyError):
            node.tree.attributes(file.inode)
        fresh = await node.tree.lookup(ROOT_INODE, _name(manifest))
        assert fresh
        assert fresh.inode > file.inode


async def test_a_tree_gone_from_the_store_too_cannot_be_opened(tmp_path: Path) -> None:
    source = MemorySource()
    manifest = source.add(FILES)
    async with Node(tmp_path, source) as node:
        top = await node.tree.lookup(ROOT_INODE, _name(manifest))
        assert top
        inode = (await walk(node, top.inode))["three"]
        await node.cache.evict(manifest.digest)
        source.manifests.clear()
        with pytest.raises(NotFound):
            await node.tree.open(inode)


async def test_open_files_see_an_adopted_tree(tmp_path: Path) -> None:
    """The trap: their descriptors are those of the sparse files that adoption replaces."""
    source = MemorySource()
    manifest = source.add(FILES)
    async with Node(tmp_path / "cache", source) as node:
        top = await node.tree.lookup(ROOT_INODE, _name(manifest))
        assert top
        file = await node.tree.lookup((await walk(node, top.inode))["a"], b"two")
        assert file
        handle = await node.tree.open(file.inode)
        await node.cache.adopt(manifest, write_files(tmp_path / "made", FILES))
        assert bytes(node.tree.read_now(handle, 0, 100) or b"") == b"22"
        assert source.served == []
        node.tree.release(handle)


def _name(manifest: Manifest) -> bytes:
    return digests.hex_of(manifest.digest).encode()
