"""The node's cache: trees by manifest digest in one folder, under a limit of bytes on disk.

All of it runs on one loop; what blocks goes to threads. `_structure` is held while a tree's folder is made or replaced,
so that no two do it at once. A tree whose `busy` holds is never evicted.
"""

import asyncio
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from woodfrog.clock import Clock
from woodfrog.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    WoodfrogError,
)
from woodfrog.model import digest as digests
from woodfrog.model.manifest import Manifest
from woodfrog.weight_fs import policy
from woodfrog.weight_fs.on_disk import disk_errors, on_disk
from woodfrog.weight_fs.presence import PRESENT, SUSPECT, Presence
from woodfrog.weight_fs.source import ChunkSource
from woodfrog.weight_fs.tree_files import (
    Stamps,
    TreeFiles,
    load_manifest,
    make_plain,
    measure,
    mismatch,
)

log = logging.getLogger(__name__)
TRASH = ".trash"
_LOCK = ".lock"
_PINS = "pins.json"
_BLOCK_BYTES = 4096
_VERIFY_WAIT_S = 30.0
_ROOM_WAIT_S = 5.0  # a seal syncs a whole tree


@dataclass(eq=False, slots=True)
class CachedTree:
    digest: str
    files: TreeFiles
    presence: Presence
    stamps: Stamps | None  #: as sealed; None while it is not
    allocated_bytes: int  #: on disk, with what is being fetched
    last_use: float  #: wall clock, seconds
    owners: set[str] = field(default_factory=set)  #: who pins it
    fds: dict[int, int] = field(
        default_factory=dict
    )  #: open files of the mount: fd → index of the file
    jobs: int = 0  #: fetches, writes and seals under way
    page_cache_bytes: int = 0
    sealing: asyncio.Task[None] | None = None

    @property
    def manifest(self) -> Manifest:
        return self.files.manifest

    @property
    def busy(self) -> bool:
        return bool(self.owners or self.fds or self.jobs)

    @property
    def complete(self) -> bool:
        return self.presence.complete

    def reopen(self) -> None:
        """Points the mount's open files at the tree's files as they are now."""
        for fd, index in self.fds.items():
            new = os.open(self.files.path(index), os.O_RDONLY | os.O_CLOEXEC)
            os.dup2(new, fd, inheritable=False)
            os.close(new)


class NodeCache:
    def __init__(self, root: Path, source: ChunkSource, clock: Clock, bytes_max: int) -> None:
        self._root = root
        self._source = source
        self._clock = clock
        self.bytes_max = bytes_max
        self.trees: dict[str, CachedTree] = {}
        self.changed = asyncio.Event()  #: set at every change of residency; its reader clears it
        self.suspicion = asyncio.Event()  #: set when trees may have got suspect chunks; likewise
        self._settled = asyncio.Event()
        self._structure = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._trash_count = 0
        self._lock_fd = -1

    @property
    def used_bytes(self) -> int:
        return sum(tree.allocated_bytes for tree in self.trees.values())

    def recover(self) -> None:
        """Blocking; call once, first. Raises FailedPrecondition when another process uses the folder."""
        with disk_errors():
            self._root.mkdir(parents=True, exist_ok=True)
            self._lock()
            shutil.rmtree(self._root / TRASH, ignore_errors=True)
            (self._root / TRASH).mkdir(exist_ok=True)
            for folder in sorted(self._root.iterdir()):
                if digests.valid(digests.PREFIX + folder.name):
                    self._recover_tree(folder)
        self.suspicion.set()

    async def close(self) -> None:
        """Nothing is written after it. Leaves seals undone, as a kill would."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        os.close(self._lock_fd)

    async def open(self, digest: str) -> CachedTree:
        """The tree, made from the store's manifest if need be. Raises NotFound, Unavailable, DataLoss."""
        tree = self.trees.get(digest)
        if tree is not None:
            return tree
        if not digests.valid(digest):
            raise NotFound("MANIFEST_NOT_FOUND", f"{digest[:80]!r} is not a manifest's digest")
        manifest = await self._source.manifest(digest)
        _check_paths(manifest)
        async with self._structure:
            return await self._make(manifest)

    async def recheck(self, tree: CachedTree) -> None:
        """Believes a sealed tree no longer if its files were touched since; then every chunk is taken anew."""
        if tree.stamps is None or await on_disk(tree.files.stamps) == tree.stamps:
            return
        async with self._structure:
            if tree.stamps is None or self.trees.get(tree.digest) is not tree:
                return
            log.warning("sealed tree was changed from outside", extra={"manifest": tree.digest})
            tree.stamps = None
            for number in range(len(tree.presence)):  # whatever becomes of the survey
                tree.presence.set(number, SUSPECT)
            tree.jobs += 1
            try:
                tree.presence, _ = await on_disk(tree.files.survey)
                with disk_errors():
                    tree.reopen()
            finally:
                tree.jobs -= 1
            self.changed.set()
            self.suspicion.set()

    async def adopt(self, manifest: Manifest, path: Path) -> CachedTree:
        """Takes the folder over by rename. Raises InvalidArgument TREE_MISMATCH, ResourceExhausted CACHE_FULL."""
        _check_paths(manifest)
        if not path.exists():
            tree = await self._adopted_before(manifest.digest)
            if tree is not None:
                return tree
        async with self._structure:
            why = await on_disk(self._unfit, path, manifest)
            if why is not None:
                raise InvalidArgument("TREE_MISMATCH", f"folder {path} cannot be adopted: {why}")
            tree = await self._make(manifest)
            tree.jobs += 1
            try:
                if tree.complete:
                    await on_disk(shutil.rmtree, path)
                else:
                    await self._take_over(tree, path)
            finally:
                tree.jobs -= 1
        self.settle(tree)
        return tree

    async def _adopted_before(self, digest: str) -> CachedTree | None:
        """The complete tree, when the caller asks again because we died before we could answer."""
        tree = self.trees.get(digest)
        with suppress(TimeoutError):
            async with asyncio.timeout(_VERIFY_WAIT_S):
                while tree is not None and next(tree.presence.suspects(), None) is not None:
                    await self._settled.wait()
        return tree if tree is not None and tree.complete else None

    async def evict(self, digest: str) -> int:
        """Bytes freed; 0 when it is not here. Raises FailedPrecondition TREE_PINNED, TREE_IN_USE."""
        tree = self.trees.get(digest)
        if tree is not None and tree.sealing is not None:
            await asyncio.wait([tree.sealing])
        tree = self.trees.get(digest)
        if tree is None:
            return 0
        if tree.owners:
            owners = ", ".join(sorted(tree.owners)[:5])
            raise FailedPrecondition(
                "TREE_PINNED", f"tree {digest} is pinned by {owners}; unpin it first", owners=owners
            )
        if tree.busy:
            raise FailedPrecondition(
                "TREE_IN_USE",
                f"tree {digest} has {len(tree.fds)} open files on the mount and {tree.jobs} "
                "fetches under way; try again when they have ended",
            )
        await _delete([self._remove(tree)])
        return tree.allocated_bytes

    def pin(self, digest: str, owner: str) -> CachedTree:
        tree = self.trees.get(digest)
        if tree is None:
            raise NotFound("TREE_NOT_FOUND", f"tree {digest} is not here; open it first")
        tree.owners.add(owner)
        self._save_pins(tree)
        self.touch(tree)
        return tree

    def unpin(self, digest: str, owner: str, kept: Collection[str] = ()) -> None:
        """With no digest every tree; an owner that ends in "*" stands for all that start so, except those kept."""
        for tree in self.trees.values():
            gone = {each for each in tree.owners if _named(each, owner)}.difference(kept)
            if gone and digest in ("", tree.digest):
                tree.owners -= gone
                self._save_pins(tree)
                self.touch(tree)

    def touch(self, tree: CachedTree) -> None:
        tree.last_use = self._clock.wall()
        tree.files.touch(tree.last_use)

    async def reserve(self, tree: CachedTree, length: int) -> int:
        """Makes room for `length` bytes of `tree`, which must be busy, and charges it with what it returns."""
        need_bytes = -(-length // _BLOCK_BYTES) * _BLOCK_BYTES
        await self._charge(tree, need_bytes)
        return need_bytes

    def settle(self, tree: CachedTree) -> None:
        """Call after each change of presence, and when a job ends: tells of it, and seals what is complete."""
        self._tell()
        if tree.complete and tree.stamps is None and tree.jobs == 0 and tree.sealing is None:
            tree.jobs += 1
            tree.sealing = asyncio.create_task(self._seal(tree))
            self._tasks.add(tree.sealing)
            tree.sealing.add_done_callback(self._tasks.discard)

    def _tell(self) -> None:
        self.changed.set()
        self._settled.set()  # wakes who waits now
        self._settled.clear()

    async def _seal(self, tree: CachedTree) -> None:
        try:
            tree.stamps = await on_disk(tree.files.seal)
            tree.allocated_bytes = await on_disk(tree.files.allocated_bytes)
            log.info("tree sealed", extra={"manifest": tree.digest})
        except WoodfrogError as error:  # it is served all the same, and verified at the next start
            log.warning("cannot seal", extra={"manifest": tree.digest, "error": error.message})
        finally:
            tree.jobs -= 1
            tree.sealing = None
            self._tell()

    async def _charge(self, tree: CachedTree, need_bytes: int) -> None:
        """Evicts what is in the way; waits a while for trees that are busy only with work of ours."""
        assert tree.busy
        give_up_at = self._clock.now() + _ROOM_WAIT_S
        while True:
            try:
                emptied = self._make_room(need_bytes)
                break
            except ResourceExhausted:
                left_s = give_up_at - self._clock.now()
                if left_s <= 0 or not any(
                    each.jobs and not each.owners and not each.fds and each is not tree
                    for each in self.trees.values()
                ):
                    raise
                with suppress(TimeoutError):
                    async with asyncio.timeout(left_s):
                        await self._settled.wait()
        tree.allocated_bytes += need_bytes
        await _delete(emptied)

    def _make_room(self, need_bytes: int) -> list[Path]:
        """Evicts what policy says. The folders it returns are to be deleted."""
        over_bytes = self.used_bytes + need_bytes - self.bytes_max
        uses = (
            policy.TreeUse(tree.digest, tree.allocated_bytes, tree.last_use, tree.busy)
            for tree in self.trees.values()
        )
        chosen = policy.evict(uses, over_bytes)
        if chosen is None:
            raise ResourceExhausted(
                "CACHE_FULL",
                f"the cache holds {self.used_bytes} of at most {self.bytes_max} bytes, {need_bytes} "
                "more are needed, and what may go would not do: the rest is pinned, open or being "
                "fetched; unpin trees or raise WOODFROG_WEIGHT_FS_CACHE_BYTES_MAX",
                retry_after_s=5.0,
            )
        return [self._remove(self.trees[digest]) for digest in chosen]

    def _remove(self, tree: CachedTree) -> Path:
        """Takes a tree out. The folder it returns is to be deleted."""
        with disk_errors():
            path = self._to_trash(tree.files.root)
        del self.trees[tree.digest]
        self.changed.set()
        log.info("tree evicted", extra={"manifest": tree.digest})
        return path

    def _unfit(self, path: Path, manifest: Manifest) -> str | None:
        """Why the folder cannot become the manifest's tree; blocking."""
        if path.is_symlink() or not path.is_dir():
            return "it is not a folder"
        path, root = path.resolve(), self._root.resolve()
        if path.is_relative_to(root) or root.is_relative_to(path):
            return "it must lie outside the cache"
        if path.stat().st_dev != root.stat().st_dev:
            return "it is on another file system than the cache"
        return mismatch(path, manifest)

    async def _take_over(self, tree: CachedTree, path: Path) -> None:
        await on_disk(make_plain, path)
        more_bytes = await on_disk(measure, path) - tree.allocated_bytes
        await self._charge(tree, more_bytes)
        with disk_errors():  # from here without a wait, so that no read sees half of it
            old = self._to_trash(tree.files.files)
            try:
                path.rename(tree.files.files)
            except OSError:
                old.rename(tree.files.files)
                tree.allocated_bytes -= more_bytes
                raise
            tree.reopen()
        for number in range(len(tree.presence)):
            tree.presence.set(number, PRESENT)
        await _delete([old])

    async def _make(self, manifest: Manifest) -> CachedTree:
        """The tree, with empty files if it is new. Call with `_structure` held."""
        tree = self.trees.get(manifest.digest)
        if tree is None:
            root = self._root / digests.hex_of(manifest.digest)
            tree = await on_disk(_load, TreeFiles(root, manifest))
            self.trees[tree.digest] = tree
            self.touch(tree)
            self.settle(tree)
            self.suspicion.set()
        return tree

    def _recover_tree(self, folder: Path) -> None:
        manifest = load_manifest(folder)
        if manifest is None:
            log.warning("tree without its manifest dropped", extra={"folder": folder.name})
            shutil.rmtree(folder, ignore_errors=True)
            return
        try:
            tree = _load(TreeFiles(folder, manifest))
        except OSError as error:
            log.warning("unusable tree dropped", extra={"folder": folder.name, "error": str(error)})
            shutil.rmtree(folder, ignore_errors=True)
            return
        with suppress(OSError, ValueError):
            tree.owners = {str(owner) for owner in json.loads((folder / _PINS).read_bytes())}
        self.trees[tree.digest] = tree

    def _save_pins(self, tree: CachedTree) -> None:
        path = tree.files.root / _PINS
        with disk_errors():
            new = path.with_suffix(".new")
            new.write_text(json.dumps(sorted(tree.owners)))
            new.replace(path)

    def _to_trash(self, path: Path) -> Path:
        self._trash_count += 1
        return path.rename(self._root / TRASH / str(self._trash_count))

    def _lock(self) -> None:
        self._lock_fd = os.open(self._root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(
                "CACHE_IN_USE",
                f"another weight_fs uses the cache {self._root}; stop it, or choose another folder",
                path=self._root,
            ) from None


def _load(files: TreeFiles) -> CachedTree:
    presence, stamps = files.survey()
    return CachedTree(
        digest=digests.PREFIX + files.root.name,
        files=files,
        presence=presence,
        stamps=stamps,
        allocated_bytes=files.allocated_bytes(),
        last_use=files.last_use(),
    )


def _check_paths(manifest: Manifest) -> None:
    """Raises InvalidArgument when a path is a file and a folder at once, which no file system can hold."""
    paths = {file.path for file in manifest.files}
    for path in paths:
        for parent in Path(path).parents:
            if str(parent) in paths:
                raise InvalidArgument(
                    "MANIFEST_INVALID",
                    f"manifest path {str(parent)!r} is a file and also the folder of {path!r}",
                )


def _named(owner: str, pattern: str) -> bool:
    return owner.startswith(pattern[:-1]) if pattern.endswith("*") else owner == pattern


async def _delete(folders: list[Path]) -> None:
    for folder in folders:
        await on_disk(shutil.rmtree, folder, ignore_errors=True)
