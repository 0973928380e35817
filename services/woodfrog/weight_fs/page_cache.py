"""How much of a file the kernel holds in memory: cachestat(2), and mincore(2) where that is missing (before Linux 6.5)."""

import ctypes
import errno
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

_CACHESTAT = 451  # the same number on every architecture
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


class _Range(ctypes.Structure):
    _fields_ = [("off", ctypes.c_uint64), ("len", ctypes.c_uint64)]


class _Cachestat(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted")
    ]


def cached_bytes(paths: Iterable[Path]) -> int:
    """Sum over the files, in whole pages. Blocking; raises OSError."""
    total = 0
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            pages = by_cachestat(fd)
            total += by_mincore(fd) if pages is None else pages
        finally:
            os.close(fd)
    return total * mmap.PAGESIZE


def by_cachestat(fd: int) -> int | None:
    """Pages; None when the kernel cannot tell so."""
    everything, found = _Range(0, 0), _Cachestat()
    if _LIBC.syscall(_CACHESTAT, fd, ctypes.byref(everything), ctypes.byref(found), 0) == 0:
        return int(found.cache)
    if ctypes.get_errno() in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
        return None
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def by_mincore(fd: int) -> int:
    """Pages."""
    size = os.fstat(fd).st_size
    if size == 0:
        return 0
    address = _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
        if _LIBC.mincore(address, size, pages) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return len(pages.raw) - pages.raw.count(0)
    finally:
        _LIBC.munmap(address, size)
