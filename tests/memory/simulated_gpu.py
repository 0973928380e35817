"""A simulated GPU: its memory is memory of the host, shared between processes by descriptor as the real one's is.

`SimulatedDevice` stands where the vault has a GPU, `SimulatedMemory` where a replica has one. What is computed on it is
computed by the CPU.
"""

import ctypes
import mmap
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from woodfrog.errors import ResourceExhausted, Unavailable
from woodfrog.node_agent.vault.device import Facts
from woodfrog.replica.memory import trim_heap

SIZE = "SIMULATED_GPU_BYTES"
HOLD = "SIMULATED_GPU_HOLD"  # a file: while it exists no memory of another process is opened; "held" once one waits
DRIVER = "SIMULATED_GPU_DRIVER"  # its version
UUID = "GPU-51311a7e-0000-4000-8000-00000000000"  # and the number

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long]
_NOTHING, _READ_WRITE = 0, mmap.PROT_READ | mmap.PROT_WRITE
_FIXED, _NORESERVE = 0x10, 0x4000
_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE


class SimulatedDevice:
    """`SIMULATED_GPU_BYTES` large (1 GiB). Copies happen at `wait`, so that who waits too late reads zeros."""

    def __init__(self, number: int = 0) -> None:
        self._number = number
        self._size = int(os.environ.get(SIZE, 1 << 30))
        self._used = 0
        self._lock = threading.Lock()
        self._pinned: list[range] = []
        self._streams: list[list[Any]] = []

    def facts(self) -> Facts:
        return Facts(
            UUID + str(self._number),
            "simulated GPU",
            os.environ.get(DRIVER, "simulated"),
            self._size,
            self._size - self._used,
        )

    def pin(self, address: int, size_bytes: int) -> None:
        self._pinned.append(range(address, address + size_bytes))

    def create(self, size_bytes: int) -> tuple[int, int, int]:
        assert size_bytes > 0
        assert size_bytes % (2 << 20) == 0
        with self._lock:
            if self._used + size_bytes > self._size:
                raise ResourceExhausted("GPU_FULL", f"the GPU has no {size_bytes} bytes left")
            self._used += size_bytes
        fd = os.memfd_create(UUID + str(self._number), os.MFD_CLOEXEC)
        os.truncate(fd, size_bytes)
        return fd, size_bytes, size_bytes

    def open(self, fd: int, size_bytes: int) -> tuple[int, int, int]:
        with suppress(FileNotFoundError):
            while True:
                with Path(os.environ.get(HOLD, "/nowhere")).open("r+") as hold:
                    hold.write("held")
                time.sleep(0.01)
        assert os.fstat(fd).st_size == size_bytes
        return os.dup(fd), size_bytes, 0

    def export(self, memory: tuple[int, int, int]) -> int:
        return os.dup(memory[0])

    def free(self, memory: tuple[int, int, int]) -> None:
        with self._lock:
            under_way = {copy[0] for stream in self._streams for copy in stream}
        assert memory[0] not in under_way, "memory goes while it is copied to"
        os.close(memory[0])
        with self._lock:
            self._used -= memory[2]

    def stream(self) -> list[Any]:
        self._streams.append([])
        return self._streams[-1]

    def copy(
        self,
        memory: tuple[int, int, int],
        offset: int,
        host_address: int,
        size_bytes: int,
        stream: list[Any],
    ) -> None:
        assert offset + size_bytes <= memory[1]
        last = host_address + size_bytes - 1
        if not any(host_address in pinned and last in pinned for pinned in self._pinned):
            raise Unavailable("CUDA_FAILED", "the host memory is not pinned")
        stream.append((memory[0], offset, host_address, size_bytes))

    def clone(
        self, memory: tuple[int, int, int], source: tuple[int, int, int], stream: list[Any]
    ) -> None:
        assert memory[1] == source[1]
        held = mmap.mmap(source[0], source[1])
        address = ctypes.addressof(ctypes.c_char.from_buffer(held))
        stream.append((memory[0], 0, address, source[1], held))

    def wait(self, stream: list[Any]) -> None:
        with self._lock:  # two threads may wait for one stream
            while stream:
                fd, offset, host_address, size_bytes, *_held = stream.pop(0)
                os.pwrite(fd, (ctypes.c_ubyte * size_bytes).from_address(host_address), offset)


class SimulatedMemory:
    torch_device = "cpu"

    def __init__(self) -> None:
        self._mapped: dict[int, int] = {}

    def reserve(self, size_bytes: int) -> int:
        assert size_bytes > 0
        assert size_bytes % (2 << 20) == 0
        return self._map(None, size_bytes, _NOTHING, _ANONYMOUS, -1)

    def back(self, address: int, size_bytes: int) -> None:
        assert address not in self._mapped
        self._map(address, size_bytes, _READ_WRITE, _ANONYMOUS | _FIXED, -1)
        self._mapped[address] = size_bytes

    def clear(self, address: int, size_bytes: int) -> None:
        assert self._mapped[address] == size_bytes
        self._map(address, size_bytes, _READ_WRITE, _ANONYMOUS | _FIXED, -1)

    def share(self, address: int, size_bytes: int, fd: int) -> None:
        assert address not in self._mapped
        # A process knows the GPUs that it saw when it began, also after it was restored onto another one.
        owner, seen = os.readlink(f"/proc/self/fd/{fd}"), os.environ.get("CUDA_VISIBLE_DEVICES", "")
        if UUID in owner and seen.startswith(UUID) and seen not in owner:
            raise Unavailable("CUDA_FAILED", "CUDA refused a call: CUDA_ERROR_INVALID_DEVICE")
        self._map(address, size_bytes, _READ_WRITE, mmap.MAP_SHARED | _FIXED, fd)
        self._mapped[address] = size_bytes

    def lend(self, address: int, size_bytes: int) -> int:
        assert address not in self._mapped
        fd = os.memfd_create("lent", os.MFD_CLOEXEC)
        os.truncate(fd, size_bytes)
        self._map(address, size_bytes, _READ_WRITE, mmap.MAP_SHARED | _FIXED, fd)
        self._mapped[address] = size_bytes
        return fd

    def drop(self, address: int) -> None:
        size_bytes = self._mapped.pop(address)
        self._map(address, size_bytes, _NOTHING, _ANONYMOUS | _FIXED, -1)

    def settle(self) -> None:
        trim_heap()

    def view(self, address: int, size_bytes: int) -> Any:
        import torch

        return torch.frombuffer(
            (ctypes.c_ubyte * size_bytes).from_address(address), dtype=torch.uint8
        )

    def _map(self, address: int | None, size_bytes: int, access: int, flags: int, fd: int) -> int:
        got = _LIBC.mmap(address, size_bytes, access, flags, fd, 0)
        if got in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "cannot map")
        return int(got)
