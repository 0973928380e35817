"""The port to the CUDA driver's checkpoint calls (cuCheckpointProcess*, CUDA 12.8 and newer), and its real adapter."""

import ctypes
import uuid
from collections.abc import Mapping
from enum import Enum
from typing import Any, Protocol

REAL = "woodfrog.node_agent.cuda.driver:CudaDriver"
NO_CUDA = frozenset(("CUDA_ERROR_INVALID_VALUE", "CUDA_ERROR_NOT_INITIALIZED"))


class State(Enum):
    """Of one process, as the driver says; the values are CUDA's (CUprocessState)."""

    RUNNING = 0
    LOCKED = 1  # its CUDA calls wait
    CHECKPOINTED = 2  # nothing of it is on a GPU
    FAILED = 3  # only a kill helps


class CudaError(Exception):
    """Has the driver's own name for what went wrong, e.g. CUDA_ERROR_OUT_OF_MEMORY."""


class Driver(Protocol):
    """`pid` is as this process sees it. Every call but `state` blocks, up to seconds. Raises CudaError."""

    def state(self, pid: int) -> State:
        """Of a process without CUDA the error is one of NO_CUDA."""

    def lock(self, pid: int, timeout_ms: int) -> None:
        """RUNNING → LOCKED. CUDA calls that are under way end first."""

    def checkpoint(self, pid: int) -> None:
        """LOCKED → CHECKPOINTED."""

    def restore(self, pid: int, moved: Mapping[str, str]) -> None:
        """CHECKPOINTED → LOCKED. A failure may leave FAILED: look for room first.

        `moved` is empty, or tells of every GPU that the process could open, by uuid, which one of the same kind takes its place.
        With one too few or too many the error is CUDA_ERROR_INVALID_VALUE (measured on 580.159).
        """

    def unlock(self, pid: int) -> None:
        """LOCKED → RUNNING."""


class CudaDriver:
    """The real one, by cuda-python. Raises CudaError where there is no driver or no GPU."""

    def __init__(self) -> None:
        from cuda.bindings import driver

        self._cuda = driver
        self._checked(driver.cuInit(0))

    def state(self, pid: int) -> State:
        return State(int(self._checked(self._cuda.cuCheckpointProcessGetState(pid))))

    def lock(self, pid: int, timeout_ms: int) -> None:
        args = self._cuda.CUcheckpointLockArgs()
        args.timeoutMs = timeout_ms
        self._checked(self._cuda.cuCheckpointProcessLock(pid, args))

    def checkpoint(self, pid: int) -> None:
        self._checked(self._cuda.cuCheckpointProcessCheckpoint(pid, None))

    def restore(self, pid: int, moved: Mapping[str, str]) -> None:
        args = restore_args(self._cuda, moved) if moved else None
        self._checked(self._cuda.cuCheckpointProcessRestore(pid, args))

    def unlock(self, pid: int) -> None:
        self._checked(self._cuda.cuCheckpointProcessUnlock(pid, None))

    def _checked(self, answer: tuple[Any, ...]) -> Any:
        status, *values = answer
        if status != self._cuda.CUresult.CUDA_SUCCESS:
            raise CudaError(status.name)
        return values[0] if values else None


def restore_args(cuda: Any, moved: Mapping[str, str]) -> Any:
    """CUcheckpointRestoreArgs of cuda-python's module `cuda`. Raises CudaError."""
    try:
        args = cuda.CUcheckpointRestoreArgs()
        pairs = []
        for old, new in moved.items():
            pair = cuda.CUcheckpointGpuPair()
            pair.oldUuid, pair.newUuid = _uuid(cuda, old), _uuid(cuda, new)
            pairs.append(pair)
        args.gpuPairs, args.gpuPairsCount = pairs, len(pairs)
    except AttributeError:
        raise CudaError(
            "this cuda-python cannot restore to another GPU; install 13 or newer"
        ) from None
    return args


def _uuid(cuda: Any, gpu: str) -> Any:
    raw = uuid_bytes(gpu)
    value = cuda.CUuuid()
    ctypes.memmove(value.getPtr(), raw, len(raw))  # its `bytes` cannot be set
    return value


def uuid_bytes(gpu: str) -> bytes:
    """Of "GPU-…", as the driver and CUDA_VISIBLE_DEVICES write it. Raises CudaError."""
    prefix, _, digits = gpu.partition("-")
    try:
        if prefix == "GPU":
            return uuid.UUID(digits).bytes
    except ValueError:
        pass
    raise CudaError(f"{gpu!r} is not the uuid of a GPU")
