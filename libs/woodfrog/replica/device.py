"""Memory of a GPU at addresses that stay while the memory itself comes and goes (CUDA's virtual memory management).

`DeviceMemory` is the port, `CudaMemory` its real adapter. Kernels and captured graphs know addresses only, so they stay
valid over a park, a checkpoint and a restore.
"""

import importlib
import sys
from typing import Any, Protocol

from woodfrog.errors import ResourceExhausted, Unavailable

REAL = "woodfrog.replica.device:CudaMemory"
GRANULARITY_BYTES = 2 << 20
#: For each GPU thread that can be resident, of kernels that do not say what they need. CUDA's own 1 KiB takes 230 MB of
#: the GPU, which each snapshot keeps and each restore copies.
STACK_BYTES = 128


class DeviceMemory(Protocol):
    """Sizes and addresses are multiples of GRANULARITY_BYTES, but for those of `view`.

    Raises ResourceExhausted GPU_FULL and Unavailable CUDA_FAILED.
    """

    torch_device: str

    def reserve(self, size_bytes: int) -> int:
        """Addresses without memory."""

    def back(self, address: int, size_bytes: int) -> None:
        """Memory of our own, with anything in it. Allowed while a graph is captured."""

    def clear(self, address: int, size_bytes: int) -> None:
        """All zero."""

    def share(self, address: int, size_bytes: int, fd: int) -> None:
        """Memory that another process exported as `fd`, which stays the caller's."""

    def lend(self, address: int, size_bytes: int) -> int:
        """As `back`, and a descriptor by which another process fills it; the caller's to close."""

    def drop(self, address: int) -> None:
        """Ends `back`, `share` or `lend`. Touching the addresses afterwards is an error that ends the process."""

    def settle(self) -> None:
        """Waits for all work, gives back what an allocator keeps for later, and ends compilers' processes."""

    def view(self, address: int, size_bytes: int) -> Any:
        """A torch uint8 tensor over it, of one dimension."""


def open_memory(name: str) -> DeviceMemory:
    """`name` is module:class; tests name a simulated one."""
    module, _, kind = name.partition(":")
    memory: DeviceMemory = getattr(importlib.import_module(module), kind)()
    return memory


class Region:
    """Memory of our own at one address: as `woodfrog.replica.memory.Region`, on a GPU."""

    def __init__(self, memory: DeviceMemory, size_bytes: int) -> None:
        self.size_bytes = round_up(size_bytes)
        self.address = memory.reserve(self.size_bytes)
        self._memory = memory
        self._backed = False
        self.renew()

    def renew(self) -> None:
        """Everything in the region reads as zero afterwards."""
        if not self._backed:
            self._memory.back(self.address, self.size_bytes)
            self._backed = True
        self._memory.clear(self.address, self.size_bytes)

    def release(self) -> None:
        if self._backed:
            self._memory.drop(self.address)
            self._backed = False

    def view(self) -> Any:
        return self._memory.view(self.address, self.size_bytes)


def round_up(size_bytes: int) -> int:
    return -(-size_bytes // GRANULARITY_BYTES) * GRANULARITY_BYTES


class CudaMemory:
    """Of the first GPU that the process sees. Importing it is cheap, making it starts CUDA (0.2 s)."""

    torch_device = "cuda"

    def __init__(self) -> None:
        import torch
        from cuda.bindings import driver

        torch.cuda.init()
        torch.zeros(1, device="cuda")  # PyTorch's context is the device's primary one
        self._cuda, self._torch = driver, torch
        self._context = self._checked(driver.cuCtxGetCurrent())
        limit_stack(driver, STACK_BYTES)
        location = driver.CUmemLocation()
        location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        location.id = 0
        self._access = driver.CUmemAccessDesc()
        self._access.location = location
        self._access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        self._property = driver.CUmemAllocationProp()
        self._property.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        self._property.location = location
        self._lendable = driver.CUmemAllocationProp()
        self._lendable.type = self._property.type
        self._lendable.location = location
        self._fd_kind = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        self._lendable.requestedHandleTypes = self._fd_kind
        self._mapped: dict[int, tuple[int, Any]] = {}

    def reserve(self, size_bytes: int) -> int:
        self._enter()
        return int(
            self._checked(
                self._cuda.cuMemAddressReserve(size_bytes, GRANULARITY_BYTES, 0, 0), size_bytes
            )
        )

    def back(self, address: int, size_bytes: int) -> None:
        self._enter()
        handle = self._checked(self._cuda.cuMemCreate(size_bytes, self._property, 0), size_bytes)
        self._map(address, size_bytes, handle)

    def clear(self, address: int, size_bytes: int) -> None:
        self._enter()
        self._torch.cuda.synchronize()
        self._checked(self._cuda.cuMemsetD8(address, 0, size_bytes))
        self._checked(self._cuda.cuStreamSynchronize(0))

    def share(self, address: int, size_bytes: int, fd: int) -> None:
        self._enter()
        self._map(
            address,
            size_bytes,
            self._checked(self._cuda.cuMemImportFromShareableHandle(fd, self._fd_kind)),
        )

    def lend(self, address: int, size_bytes: int) -> int:
        self._enter()
        handle = self._checked(self._cuda.cuMemCreate(size_bytes, self._lendable, 0), size_bytes)
        self._map(address, size_bytes, handle)
        try:
            return int(
                self._checked(self._cuda.cuMemExportToShareableHandle(handle, self._fd_kind, 0))
            )
        except BaseException:
            self.drop(address)
            raise

    def drop(self, address: int) -> None:
        self._enter()
        self._torch.cuda.synchronize()
        size_bytes, handle = self._mapped.pop(address)
        self._checked(self._cuda.cuMemUnmap(address, size_bytes))
        self._checked(self._cuda.cuMemRelease(handle))

    def settle(self) -> None:
        if workers := sys.modules.get("torch._inductor.async_compile"):
            workers.shutdown_compile_workers()  # child processes, which would be dumped
        self._torch.cuda.synchronize()
        self._torch._C._cuda_clearCublasWorkspaces()  # made again by the next product that needs one
        self._torch.cuda.empty_cache()

    def view(self, address: int, size_bytes: int) -> Any:
        interface = {"shape": (size_bytes,), "typestr": "|u1", "data": (address, False)}
        owner = type("Bytes", (), {"__cuda_array_interface__": {**interface, "version": 3}})
        return self._torch.as_tensor(owner(), device="cuda")

    def _map(self, address: int, size_bytes: int, handle: Any) -> None:
        try:
            self._checked(self._cuda.cuMemMap(address, size_bytes, 0, handle, 0))
            try:
                self._checked(self._cuda.cuMemSetAccess(address, size_bytes, [self._access], 1))
            except BaseException:
                self._cuda.cuMemUnmap(address, size_bytes)
                raise
        except BaseException:
            self._cuda.cuMemRelease(handle)
            raise
        self._mapped[address] = (size_bytes, handle)

    def _enter(self) -> None:
        """CUDA's calls need the context in each thread that makes one."""
        self._checked(self._cuda.cuCtxSetCurrent(self._context))

    def _checked(self, answer: tuple[Any, ...], size_bytes: int = 0) -> Any:
        return checked(self._cuda, answer, size_bytes)


def limit_stack(driver: Any, size_bytes: int) -> None:
    """Of the current context. Kernels that say that they need more still get it. Raises Unavailable CUDA_FAILED."""
    checked(driver, driver.cuCtxSetLimit(driver.CUlimit.CU_LIMIT_STACK_SIZE, size_bytes))


def checked(driver: Any, answer: tuple[Any, ...], size_bytes: int = 0) -> Any:
    """What a call of `cuda.bindings.driver` gave beside its status, the first of it.

    Raises ResourceExhausted GPU_FULL, for `size_bytes` that were asked for, and Unavailable CUDA_FAILED.
    """
    status, *values = answer
    if status == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise ResourceExhausted(
            "GPU_FULL", f"the GPU has no {size_bytes} bytes left; free some of it"
        )
    if status != driver.CUresult.CUDA_SUCCESS:
        raise Unavailable("CUDA_FAILED", f"CUDA refused a call: {status.name}")
    return values[0] if values else None
