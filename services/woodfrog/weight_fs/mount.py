"""The FUSE mount: translates between the kernel and `WeightTree`. Every pyfuse3 import is here.

pyfuse3 has one session a process. It runs on our loop, so nothing in this process may touch the mount itself except from
a thread. A handler that raised anything but FUSEError would leave its caller waiting for ever: `_answered` sees to it.
"""

import asyncio
import errno
import functools
import logging
import os
import select
import stat
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import pyfuse3.asyncio

from woodfrog.errors import NotFound, Unavailable, WoodfrogError
from woodfrog.weight_fs import stale_mount
from woodfrog.weight_fs.cache import NodeCache
from woodfrog.weight_fs.weight_tree import Attributes, WeightTree

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")
_FOREVER_S = 3600.0  # what is there never changes
_NEGATIVE_S = 1.0  # what is not there may come
_TASKS_MAX = 400  # requests under way; reads that wait for the store must not keep others out
_BURST_MAX = 8  # requests answered before the loop gets a turn
_READY_S = 10.0
_BLOCK_BYTES = 4096


class Mount:
    """async with Mount(...) as mount: the tree is at `folder` until `ended`, or until it is left."""

    def __init__(
        self, tree: WeightTree, cache: NodeCache, folder: Path, *, readahead_kib: int
    ) -> None:
        self._operations = _Operations(tree, cache)
        self._folder = folder
        self._readahead_kib = readahead_kib
        self.ended: asyncio.Task[None]

    async def __aenter__(self) -> "Mount":
        stale_mount.clear(self._folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        options = {"ro", "allow_other", "default_permissions", f"fsname={stale_mount.NAME}"}
        readiness = _Readiness()
        pyfuse3.asyncio.enable()
        pyfuse3.asyncio.wait_readable = readiness.wait_readable
        pyfuse3.asyncio.notify_closing = readiness.notify_closing
        pyfuse3.asyncio.Lock = _UnfairLock
        pyfuse3.init(self._operations, str(self._folder), options)
        self.ended = asyncio.create_task(pyfuse3.main(max_tasks=_TASKS_MAX))
        try:
            async with asyncio.timeout(_READY_S):
                await asyncio.to_thread(self._set_readahead)
        except BaseException as error:
            await self.__aexit__()
            if isinstance(error, TimeoutError):
                raise Unavailable(
                    "MOUNT_SILENT",
                    f"the kernel did not greet the mount on {self._folder} within {_READY_S:.0f} s; "
                    "look at its log",
                ) from None
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self.ended.done():
            pyfuse3.terminate()
            await asyncio.wait([self.ended])
        pyfuse3.close(unmount=True)

    def _set_readahead(self) -> None:
        """Blocking. Only after the first answer from the mount: the kernel's greeting sets the default anew."""
        device = os.stat(self._folder).st_dev
        path = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        try:
            path.write_text(str(self._readahead_kib))
        except OSError as error:  # slower, not wrong
            log.warning("cannot set read-ahead", extra={"error": str(error)})


def _answered(
    operation: Callable[Concatenate["_Operations", P], Awaitable[R]],
) -> Callable[Concatenate["_Operations", P], Coroutine[Any, Any, R]]:
    """The outermost frame of a request: every failure becomes an errno."""

    @functools.wraps(operation)
    async def answer(self: "_Operations", /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await operation(self, *args, **kwargs)
        except WoodfrogError as error:
            if isinstance(error, NotFound):
                raise pyfuse3.FUSEError(errno.ENOENT) from None
            extra = {"reason": error.reason, "error": error.message}
            log.warning("answered with EIO", extra={"operation": operation.__name__, **extra})
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from None
        except Exception as error:
            log.error("operation failed", extra={"operation": operation.__name__}, exc_info=error)
        raise pyfuse3.FUSEError(errno.EIO)

    return answer


class _Operations(pyfuse3.Operations):  # type: ignore[misc]
    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, tree: WeightTree, cache: NodeCache) -> None:
        super().__init__()
        self._tree = tree
        self._cache = cache

    @_answered
    async def lookup(self, parent: int, name: bytes, _: Any) -> Any:
        found = await self._tree.lookup(parent, name)
        if found is None:
            entry = pyfuse3.EntryAttributes()
            entry.st_ino = 0
            entry.entry_timeout = _NEGATIVE_S
            return entry
        return _entry(found)

    async def forget(self, forgotten: Sequence[tuple[int, int]]) -> None:
        self._tree.forget(forgotten)

    @_answered
    async def getattr(self, inode: int, _: Any) -> Any:
        return _entry(self._tree.attributes(inode))

    @_answered
    async def opendir(self, inode: int, _: Any) -> int:
        return inode

    @_answered
    async def readdir(self, inode: int, start: int, token: Any) -> None:
        for name, attributes, after in self._tree.entries(inode, start):
            if not pyfuse3.readdir_reply(token, name, _entry(attributes), after):
                break
            self._tree.count(attributes.inode)

    @_answered
    async def releasedir(self, inode: int) -> None:
        pass

    @_answered
    async def open(self, inode: int, flags: int, _: Any) -> Any:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, "read-only")
        return pyfuse3.FileInfo(fh=await self._tree.open(inode), keep_cache=True)

    @_answered
    async def read(self, handle: int, offset: int, size: int) -> memoryview | bytes:
        # The memoryview is copied to the kernel before anything else runs.
        at_hand = self._tree.read_now(handle, offset, size)
        return await self._tree.read(handle, offset, size) if at_hand is None else at_hand

    @_answered
    async def release(self, handle: int) -> None:
        self._tree.release(handle)

    @_answered
    async def statfs(self, _: Any) -> Any:
        found = pyfuse3.StatvfsData()
        found.f_bsize = found.f_frsize = _BLOCK_BYTES
        found.f_blocks = self._cache.bytes_max // _BLOCK_BYTES
        free_bytes = max(0, self._cache.bytes_max - self._cache.used_bytes)
        found.f_bfree = found.f_bavail = free_bytes // _BLOCK_BYTES
        found.f_files = sum(len(tree.manifest.files) for tree in self._cache.trees.values())
        found.f_namemax = 255
        return found

    async def _refuse(self, *_: object) -> Any:
        raise pyfuse3.FUSEError(errno.EROFS)

    # The kernel refuses these itself as long as nobody remounts read-write.
    setattr = mknod = mkdir = unlink = rmdir = symlink = rename = link = _refuse
    create = write = setxattr = removexattr = _refuse


def _entry(attributes: Attributes) -> Any:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = attributes.inode
    entry.st_mode = (stat.S_IFDIR | 0o555) if attributes.folder else (stat.S_IFREG | 0o444)
    entry.st_nlink = attributes.link_count
    entry.st_size = attributes.size_bytes
    entry.st_blocks = -(-attributes.stored_bytes // 512)
    entry.st_blksize = 1 << 20
    entry.entry_timeout = _FOREVER_S
    entry.attr_timeout = _NEGATIVE_S if attributes.inode == pyfuse3.ROOT_INODE else _FOREVER_S
    return entry


class _Readiness:
    """Waits for the FUSE device in place of pyfuse3's own function.

    pyfuse3 reads the device blocking and with the GIL held, after it was seen readable: a request whose caller was
    killed in between is taken back, and the whole process would stand still until the next one. So the device is
    looked at once more right before, which also lets requests that queue up be answered without a turn of the loop.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self._fd = -1
        self._burst = 0
        self._waiter: asyncio.Future[None] | None = None

    async def wait_readable(self, fd: int) -> None:
        if fd != self._fd:
            self._poll.register(fd, select.POLLIN)
            self._fd = fd
        while self._burst >= _BURST_MAX or not self._poll.poll(0):
            self._burst = 0
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            loop.add_reader(fd, _wake, self._waiter)
            try:
                await self._waiter
            finally:
                loop.remove_reader(fd)
        self._burst += 1

    def notify_closing(self, _: int) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(pyfuse3.asyncio.ClosedResourceError())


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class _UnfairLock:
    """pyfuse3's workers take turns on the device by it. Unlike asyncio's, the one that runs may take it again at once."""

    def __init__(self) -> None:
        self._locked = False
        self._waiters: list[asyncio.Future[None]] = []

    async def __aenter__(self) -> None:
        while self._locked:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        self._locked = True

    async def __aexit__(self, *_: object) -> None:
        self._locked = False
        if self._waiters:
            _wake(self._waiters.pop())
