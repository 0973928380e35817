"""Brings a file of the node's cache into the page cache as huge folios, while the restore that will map it is under way.

What is there already costs well under a millisecond; what the kernel dropped is read at the disk's rate, and a fault
that comes first waits for less. A mapping of huge folios takes one fault for 2 MiB instead of one for 64 KiB.
"""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

_HUGE_BYTES = 2 << 20
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_MADV_HUGEPAGE, _MADV_POPULATE_READ = 14, 22
_MAP_FAILED = ctypes.c_void_p(-1).value
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def page_in(path: Path, extents: Iterable[tuple[int, int]] | None = None) -> None:
    """The extents (offset, length) of a file, or all of it. Blocks; a hint, so a file that is gone is no error."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    size = os.fstat(fd).st_size
    reserved = size + 2 * _HUGE_BYTES
    base = _LIBC.mmap(
        None, reserved, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1, 0
    )
    try:
        if base in (None, _MAP_FAILED) or size == 0:
            return
        address = -(-base // _HUGE_BYTES) * _HUGE_BYTES
        flags = mmap.MAP_SHARED | _MAP_FIXED
        if _LIBC.mmap(address, size, mmap.PROT_READ, flags, fd, 0) != address:
            return
        _LIBC.madvise(address, size, _MADV_HUGEPAGE)
        for start, length in blocks([(0, size)] if extents is None else extents):
            end = min(start + length, size)
            if start < end:
                _LIBC.madvise(address + start, end - start, _MADV_POPULATE_READ)
    finally:
        if base not in (None, _MAP_FAILED):
            _LIBC.munmap(base, reserved)
        os.close(fd)


def blocks(extents: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The 2 MiB blocks that the extents touch, joined where they meet."""
    found: list[tuple[int, int]] = []
    for offset, length in sorted(extents):
        start = offset // _HUGE_BYTES * _HUGE_BYTES
        end = -(-(offset + length) // _HUGE_BYTES) * _HUGE_BYTES
        if found and start <= sum(found[-1]):
            found[-1] = (found[-1][0], max(end, sum(found[-1])) - found[-1][0])
        else:
            found.append((start, end - start))
    return found
