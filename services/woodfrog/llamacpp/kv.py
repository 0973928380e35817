"""llama.cpp's KV memory: where it lies, and how it goes and comes back at the same address.

`llama_memory_clear` zeroes it, but by writing, which a clone pays for with memory of its own. So it is asked once, and
each buffer that it zeroes is noted. It needs a handle that the server keeps to itself: the first
`llama_get_memory` tells it. Both are told by calls inside the library that are led through here for that moment; afterwards
llama.cpp runs as it was built.
"""

import ctypes
import mmap
from dataclasses import dataclass
from pathlib import Path

from woodfrog.errors import Internal
from woodfrog.llamacpp.symbols import Redirection
from woodfrog.replica.memory import Region

_MAPPED_BYTES_MIN = (
    1 << 20
)  # glibc maps an allocation of this size by itself; smaller ones lie in its heap
_M_MMAP_THRESHOLD = -3
_MEMORY_OF = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
_CLEAR = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint8)


@dataclass(frozen=True, slots=True)
class Buffer:
    """Its whole pages can go; what lies before and behind them, less than a page each, is zeroed."""

    address: int
    size_bytes: int
    region: Region | None  # None: too small for pages of its own

    @staticmethod
    def of(address: int, size_bytes: int) -> "Buffer":
        """Reads as zero afterwards."""
        begin = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (address + size_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        mapped = size_bytes >= _MAPPED_BYTES_MIN
        buffer = Buffer(address, size_bytes, Region(end - begin, begin) if mapped else None)
        buffer.zero_rest()
        return buffer

    def zero_rest(self) -> None:
        if self.region is None:
            ctypes.memset(self.address, 0, self.size_bytes)
            return
        end = self.region.address + self.region.size_bytes
        ctypes.memset(self.address, 0, self.region.address - self.address)
        ctypes.memset(end, 0, self.address + self.size_bytes - end)


class KvMemory:
    """Of the one context of this process. Nothing computes while it is found, cleared, released or regained."""

    def __init__(self, library: Path) -> None:
        """Before the model is loaded."""
        # Fixed, because glibc would raise it with each large block that is freed.
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES_MIN)
        self._path = library
        self._library = ctypes.CDLL(str(library))
        self._asked = False
        self._memory: int | None = None  # stays so for a model that has none
        self._buffers: list[Buffer] = []
        self._released = False
        for name in ("ggml_backend_buffer_get_base", "llama_get_memory"):
            function = getattr(self._library, name)
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
        self._library.ggml_backend_buffer_get_size.argtypes = [ctypes.c_void_p]
        self._library.ggml_backend_buffer_get_size.restype = ctypes.c_size_t
        self._library.llama_memory_clear.argtypes = [ctypes.c_void_p, ctypes.c_bool]
        self._library.llama_memory_clear.restype = None

    @property
    def size_bytes(self) -> int:
        return sum(buffer.size_bytes for buffer in self._buffers)

    def watch(self) -> None:
        """Before the first request. Raises FailedPrecondition for a build of llama.cpp that it does not know."""
        own = self._library.llama_get_memory

        def asked(context: int) -> int | None:
            watching.end()
            self._asked = True
            self._memory = own(context)
            return self._memory

        watching = Redirection(self._library, self._path, "llama_get_memory", _MEMORY_OF(asked))

    def find(self) -> None:
        """After the first request; nothing of it is left then. Raises Internal when that told nothing."""
        if not self._asked:
            raise Internal("KV_NOT_FOUND", "llama.cpp did not ask for its KV memory at a request")
        if self._memory is None:
            return

        def zeroed(buffer: int, value: int) -> None:
            address = self._library.ggml_backend_buffer_get_base(buffer)
            self._buffers.append(
                Buffer.of(address, self._library.ggml_backend_buffer_get_size(buffer))
            )

        clearing = Redirection(
            self._library, self._path, "ggml_backend_buffer_clear", _CLEAR(zeroed)
        )
        try:
            self._library.llama_memory_clear(self._memory, True)
        finally:
            clearing.end()
        if not self._buffers:
            raise Internal("KV_NOT_FOUND", "llama.cpp zeroed no KV memory when it was asked to")

    def clear(self) -> None:
        """It reads as zero, and takes no memory; llama.cpp knows that it holds nothing."""
        if self._memory is None:
            return
        self._library.llama_memory_clear(self._memory, False)
        self._renew()

    def release(self) -> None:
        for buffer in self._buffers:
            if buffer.region is not None:
                buffer.region.release()
        self._released = True

    def regain(self) -> None:
        if self._released:
            self._renew()
        self._released = False

    def _renew(self) -> None:
        for buffer in self._buffers:
            if buffer.region is not None:
                buffer.region.renew()
            buffer.zero_rest()
