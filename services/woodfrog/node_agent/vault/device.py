"""The port to one GPU as its vault uses it, and the real adapter (CUDA's virtual memory management, by cuda-python)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from woodfrog.replica.device import checked, limit_stack

REAL = "woodfrog.node_agent.vault.device:CudaDevice"


@dataclass(frozen=True, slots=True)
class Facts:
    uuid: str  # "GPU-…", as CUDA_VISIBLE_DEVICES takes it
    name: str
    driver: str
    memory_bytes: int
    free_bytes: int


class Device(Protocol):
    """One GPU. Any thread may call. Raises ResourceExhausted GPU_FULL, Unavailable CUDA_FAILED."""

    def facts(self) -> Facts: ...

    def pin(self, address: int, size_bytes: int) -> None:
        """Host memory from which copies run at full speed; for as long as the process lives."""

    def create(self, size_bytes: int) -> Any:
        """Memory on the GPU; a multiple of 2 MiB."""

    def open(self, fd: int, size_bytes: int) -> Any:
        """Memory that another process created and exported, of that size; `free` ends only this process's part in it."""

    def export(self, memory: Any) -> int:
        """A file descriptor by which another process maps it; the caller's to close."""

    def free(self, memory: Any) -> None:
        """Gone once no other process has it mapped."""

    def stream(self) -> Any:
        """An order of copies. Streams run beside each other."""

    def copy(
        self, memory: Any, offset: int, host_address: int, size_bytes: int, stream: Any
    ) -> None:
        """Starts; the host memory must stay as it is until `wait`."""

    def clone(self, memory: Any, source: Any, stream: Any) -> None:
        """Starts a copy of all of `source`, memory of the same size."""

    def wait(self, stream: Any) -> None:
        """Until its copies are done."""


@dataclass(frozen=True, slots=True)
class _Memory:
    handle: Any
    address: int
    size_bytes: int


class CudaDevice:
    """By number. Needs the CUDA driver."""

    def __init__(self, number: int = 0) -> None:
        from cuda.bindings import driver

        self._cuda = driver
        self._checked(driver.cuInit(0))
        self._device = self._checked(driver.cuDeviceGet(number))
        self._context = self._checked(driver.cuDevicePrimaryCtxRetain(self._device))
        self._enter()
        limit_stack(driver, 0)  # it copies and runs no kernel
        location = driver.CUmemLocation()
        location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        location.id = number
        self._fd_kind = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        self._property = driver.CUmemAllocationProp()
        self._property.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        self._property.location = location
        self._property.requestedHandleTypes = self._fd_kind
        self._access = driver.CUmemAccessDesc()
        self._access.location = location
        self._access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE

    def facts(self) -> Facts:
        self._enter()
        cuda = self._cuda
        free, total = self._both(cuda.cuMemGetInfo())
        uuid = bytes(self._checked(cuda.cuDeviceGetUuid(self._device)).bytes).hex()
        name = self._checked(cuda.cuDeviceGetName(96, self._device))
        return Facts(
            uuid=f"GPU-{uuid[:8]}-{uuid[8:12]}-{uuid[12:16]}-{uuid[16:20]}-{uuid[20:]}",
            name=name.split(b"\0")[0].decode(),
            driver=_driver_version(),
            memory_bytes=total,
            free_bytes=free,
        )

    def pin(self, address: int, size_bytes: int) -> None:
        self._enter()
        portable = self._cuda.CU_MEMHOSTREGISTER_PORTABLE
        self._checked(self._cuda.cuMemHostRegister(address, size_bytes, portable))

    def create(self, size_bytes: int) -> _Memory:
        self._enter()
        return self._mapped(
            size_bytes, lambda: self._cuda.cuMemCreate(size_bytes, self._property, 0)
        )

    def open(self, fd: int, size_bytes: int) -> _Memory:
        self._enter()
        return self._mapped(
            size_bytes, lambda: self._cuda.cuMemImportFromShareableHandle(fd, self._fd_kind)
        )

    def _mapped(self, size_bytes: int, make: Callable[[], tuple[Any, ...]]) -> _Memory:
        cuda = self._cuda
        address = int(self._checked(cuda.cuMemAddressReserve(size_bytes, 2 << 20, 0, 0)))
        try:
            handle = self._checked(make(), size_bytes)
        except BaseException:
            cuda.cuMemAddressFree(address, size_bytes)
            raise
        memory = _Memory(handle, address, size_bytes)
        try:
            self._checked(cuda.cuMemMap(address, size_bytes, 0, handle, 0))
            self._checked(cuda.cuMemSetAccess(address, size_bytes, [self._access], 1))
        except BaseException:
            self.free(memory)
            raise
        return memory

    def export(self, memory: _Memory) -> int:
        self._enter()
        return int(
            self._checked(self._cuda.cuMemExportToShareableHandle(memory.handle, self._fd_kind, 0))
        )

    def free(self, memory: _Memory) -> None:
        self._enter()
        cuda = self._cuda
        cuda.cuMemUnmap(memory.address, memory.size_bytes)
        self._checked(cuda.cuMemRelease(memory.handle))
        cuda.cuMemAddressFree(memory.address, memory.size_bytes)

    def stream(self) -> Any:
        self._enter()
        return self._checked(
            self._cuda.cuStreamCreate(self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)
        )

    def copy(
        self, memory: _Memory, offset: int, host_address: int, size_bytes: int, stream: Any
    ) -> None:
        self._enter()
        self._checked(
            self._cuda.cuMemcpyHtoDAsync(memory.address + offset, host_address, size_bytes, stream)
        )

    def clone(self, memory: _Memory, source: _Memory, stream: Any) -> None:
        self._enter()
        self._checked(
            self._cuda.cuMemcpyDtoDAsync(memory.address, source.address, source.size_bytes, stream)
        )

    def wait(self, stream: Any) -> None:
        self._enter()
        self._checked(self._cuda.cuStreamSynchronize(stream))

    def _enter(self) -> None:
        self._checked(self._cuda.cuCtxSetCurrent(self._context))

    def _both(self, answer: tuple[Any, ...]) -> tuple[int, int]:
        self._checked(answer[:1])
        return int(answer[1]), int(answer[2])

    def _checked(self, answer: tuple[Any, ...], size_bytes: int = 0) -> Any:
        return checked(self._cuda, answer, size_bytes)


def _driver_version() -> str:
    """NVIDIA's kernel driver; its own file tells more than CUDA's number."""
    try:
        with open("/sys/module/nvidia/version") as file:
            return file.read().strip()
    except OSError:
        return "unknown"
