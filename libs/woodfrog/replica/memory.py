"""Memory that a replica gives back without losing its address, and pages brought in before they are touched."""

import ctypes
import logging
import mmap
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)

_PROT_NONE = 0
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_ADVICE = {"read": 22, "write": 23}  # MADV_POPULATE_READ, MADV_POPULATE_WRITE: Linux 5.14

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

    def __init__(self, size_bytes: int) -> None:
        assert size_bytes > 0
        self.size_bytes = -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.address = self._map(None, _READ_WRITE, 0)

    def renew(self) -> None:
        """Everything in the region reads as zero afterwards."""
        self._map(self.address, _READ_WRITE, _MAP_FIXED)

    def release(self) -> None:
        """Touching the region before `renew` ends the process."""
        self._map(self.address, _PROT_NONE, _MAP_FIXED)

    def buffer(self) -> "ctypes.Array[ctypes.c_ubyte]":
        return (ctypes.c_ubyte * self.size_bytes).from_address(self.address)

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


@dataclass
class Populating:
    """Page ranges being brought in by a helper thread; errors are counted, never raised."""

    ranges: list[tuple[int, int, str]]  # address, length in bytes, "read" or "write"
    done: int = 0
    failed: int = 0
    _thread: threading.Thread = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, name="populate", daemon=True)

    def start(self) -> None:
        if self.ranges:
            self._thread.start()

    def join(self, timeout_s: float) -> None:
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def counts(self) -> dict[str, int]:
        return {"ranges": len(self.ranges), "done": self.done, "failed": self.failed}

    def _run(self) -> None:
        for address, length, access in self.ranges:
            if _libc.madvise(address, length, _ADVICE[access]) == 0:
                self.done += 1
            else:
                self.failed += 1
        log.info("pages populated", extra=self.counts())


def parse_ranges(value: Any) -> list[tuple[int, int, str]]:
    """Check `[[address, length, "read" | "write"], ...]`; raises ValueError."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        raise ValueError("populate is not a list")
    ranges = []
    for entry in value:
        match entry:
            case [int() as address, int() as length, ("read" | "write") as access]:
                if address < 0 or length <= 0 or address + length >= 1 << 64:
                    raise ValueError(f"populate range {entry!r} is not an address range")
                ranges.append((address, length, access))
            case _:
                raise ValueError(
                    f'populate range {entry!r} is not [address, length, "read"|"write"]'
                )
    return ranges
