"""GPU memory for what captured graphs compute in between: nothing of it must outlive a park, only its addresses."""

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from woodfrog.replica.device import DeviceMemory, round_up

log = logging.getLogger(__name__)
_ADDRESSES_BYTES = 1 << 36  # as many as there may ever be; they cost nothing
_ALLOCATE = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p)
_FREE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p)


class GraphPool:
    """Give `pool.id` to `torch.cuda.graph`. Shaped like a `Region`: `renew`, `release`, `size_bytes`.

    Memory that PyTorch frees is not used again; it asks in large pieces, and while graphs are captured only.
    """

    def __init__(self, memory: DeviceMemory) -> None:
        import torch

        self._memory = memory
        self._base = memory.reserve(_ADDRESSES_BYTES)
        self._pieces: dict[int, int] = {}  # that are backed: address → size
        self.size_bytes = 0
        self._functions = (_ALLOCATE(self._allocate), _FREE(self._free))  # must not be collected
        pointers = [ctypes.cast(each, ctypes.c_void_p).value for each in self._functions]
        # As CUDAPluggableAllocator does with functions of a shared library.
        self.pool: Any = torch.cuda.MemPool(torch._C._cuda_customAllocator(*pointers))

    @contextmanager
    def allocating(self) -> Iterator[None]:
        """What PyTorch allocates in this thread comes from here: for the pass before a capture.

        The workspace of cuBLAS too, which is one for each stream, made when first needed, and gone at a park: a graph must
        not have captured the address of one that lies elsewhere.
        """
        import torch

        torch._C._cuda_clearCublasWorkspaces()
        with torch.cuda.use_mem_pool(self.pool):
            yield

    def renew(self) -> None:
        """All of it reads as zero."""
        if not self._pieces and self.size_bytes:
            self._memory.back(self._base, self.size_bytes)  # in one piece from now on
            self._pieces = {self._base: self.size_bytes}
        for address, size in self._pieces.items():
            self._memory.clear(address, size)

    def release(self) -> None:
        """Replaying a graph before `renew` ends the process."""
        for address in self._pieces:
            self._memory.drop(address)
        self._pieces = {}

    def _allocate(self, size: int, device: int, stream: int | None) -> int | None:
        size = round_up(size)
        address = self._base + self.size_bytes
        try:
            self._memory.back(address, size)
        except Exception:  # into C++, where no exception may go; None is "out of memory"
            log.exception("no memory for graphs", extra={"size_bytes": size})
            return None
        self._pieces[address] = size
        self.size_bytes += size
        return address

    def _free(self, address: int, size: int, device: int, stream: int | None) -> None:
        pass
