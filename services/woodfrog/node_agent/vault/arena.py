"""Pinned host memory in blocks: made once, handed out and taken back. Pure but for the memory itself."""

import ctypes
import mmap
from concurrent.futures import ThreadPoolExecutor

BLOCK_BYTES = 64 << 20
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, Linux 5.14
_POPULATE_BYTES = 256 << 20


class Arena:
    """`size_bytes` are rounded down to whole blocks; 0 is an arena that has none."""

    def __init__(self, size_bytes: int, threads: int) -> None:
        self.size_bytes = size_bytes // BLOCK_BYTES * BLOCK_BYTES
        self.address = 0
        if self.size_bytes:
            self._map = mmap.mmap(-1, self.size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._map.madvise(mmap.MADV_HUGEPAGE)
            self.view = memoryview(self._map)
            self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
            self._populate(threads)
        self._free = list(range(self.size_bytes // BLOCK_BYTES))[::-1]

    @property
    def free_bytes(self) -> int:
        return len(self._free) * BLOCK_BYTES

    def take(self, size_bytes: int) -> list[int] | None:
        """Block numbers for that many bytes; None when there are too few."""
        count = -(-size_bytes // BLOCK_BYTES)
        if count > len(self._free):
            return None
        taken = self._free[len(self._free) - count :][::-1]
        del self._free[len(self._free) - count :]
        return taken

    def give(self, blocks: list[int]) -> None:
        self._free += blocks

    def block(self, number: int) -> memoryview:
        return self.view[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]

    def _populate(self, threads: int) -> None:
        """Several threads: the kernel zeroes 3 GB/s in one."""
        libc = ctypes.CDLL(None, use_errno=True)

        def fill(offset: int) -> None:
            length = min(_POPULATE_BYTES, self.size_bytes - offset)
            if libc.madvise(
                ctypes.c_void_p(self.address + offset), ctypes.c_size_t(length), _POPULATE_WRITE
            ):
                number = ctypes.get_errno()
                raise OSError(number, f"no {self.size_bytes} bytes of host memory for the arena")

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, range(0, self.size_bytes, _POPULATE_BYTES)))
