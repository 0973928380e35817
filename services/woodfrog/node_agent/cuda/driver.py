"""The port to the CUDA driver's checkpoint calls (cuCheckpointProcess*, CUDA 12.8 and newer), and its real adapter."""

from enum import Enum
from typing import Any, Protocol

REAL = "woodfrog.node_agent.cuda.driver:CudaDriver"


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

    def state(self, pid: int) -> State: ...

    def lock(self, pid: int, timeout_ms: int) -> None:
        """RUNNING → LOCKED. CUDA calls that are under way end first."""

    def checkpoint(self, pid: int) -> None:
        """LOCKED → CHECKPOINTED."""

    def restore(self, pid: int) -> None:
        """CHECKPOINTED → LOCKED. A failure may leave FAILED: look for room first."""

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

    def restore(self, pid: int) -> None:
        self._checked(self._cuda.cuCheckpointProcessRestore(pid, None))

    def unlock(self, pid: int) -> None:
        self._checked(self._cuda.cuCheckpointProcessUnlock(pid, None))

    def _checked(self, answer: tuple[Any, ...]) -> Any:
        status, *values = answer
        if status != self._cuda.CUresult.CUDA_SUCCESS:
            raise CudaError(status.name)
        return values[0] if values else None
