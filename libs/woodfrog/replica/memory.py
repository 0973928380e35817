"""Memory that a replica gives back without losing its address."""

import ctypes
import mmap
import os
from typing import Any

_PROT_NONE = 0
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000

_libc = ctypes.CDLL(None, use_errno=True)  # its calls leave the GIL to others
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Region:
    """Private memory at one address for as long as it lives; reads as zero when new and after `renew`.

    `release` leaves the address without memory or access, so that a dump finds nothing there; `renew` brings fresh
    memory. In a process restored from a mapped image `renew` also cuts the region off from the image.
    """

    def __init__(self, size_bytes: int, address: int | None = None) -> None:
        """At `address`, whole pages of somebody else's private memory, where one is given: they read as zero now."""
        assert size_bytes > 0
        self.size_bytes = -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        assert address is None or (size_bytes == self.size_bytes and address % mmap.PAGESIZE == 0)
        self.address = self._map(address, _READ_WRITE, 0 if address is None else _MAP_FIXED)

    def renew(self) -> None:
        """Everything in the region reads as zero afterwards."""
        self._map(self.address, _READ_WRITE, _MAP_FIXED)

    def release(self) -> None:
        """Touching the region before `renew` ends the process."""
        self._map(self.address, _PROT_NONE, _MAP_FIXED)

    def buffer(self) -> "ctypes.Array[ctypes.c_ubyte]":
        return (ctypes.c_ubyte * self.size_bytes).from_address(self.address)

    def view(self) -> Any:
        """A torch uint8 tensor over it."""
        import torch

        return torch.frombuffer(self.buffer(), dtype=torch.uint8)

    def close(self) -> None:
        _libc.munmap(self.address, self.size_bytes)

    def _map(self, address: int | None, access: int, flags: int) -> int:
        flags |= mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        got = _libc.mmap(address, self.size_bytes, access, flags, -1, 0)
        if got is None or got == ctypes.c_void_p(-1).value:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot map {self.size_bytes} bytes: {os.strerror(number)}")
        return int(got)


def trim_heap() -> None:
    """Give the allocator's free memory back to the kernel."""
    _libc.malloc_trim(0)
