"""A simulated CUDA driver: the states of processes and what the real one says, without a GPU."""

import os
import time
from pathlib import Path

from woodfrog.node_agent.cuda.driver import CudaError, State

FOLDER = "SIMULATED_CUDA"  # a folder with a file for each process: its state, and perhaps what goes wrong next


class SimulatedDriver:
    """`<pid>` holds a State's value; `<pid>.<op>` an error's name, or "hang".

    With a file `any`, every living process is one of CUDA's: one that is new runs, or was restored by CRIU.
    """

    def __init__(self) -> None:
        self._folder = Path(os.environ[FOLDER])
        if (self._folder / "no-driver").exists():
            raise CudaError("CUDA_ERROR_NO_DEVICE")

    def state(self, pid: int) -> State:
        self._meet(pid, "state")
        try:
            return State(int((self._folder / str(pid)).read_text()))
        except FileNotFoundError:
            if (self._folder / "any").exists() and Path(f"/proc/{pid}").exists():
                return State.RUNNING
            raise CudaError("CUDA_ERROR_INVALID_VALUE") from None

    def lock(self, pid: int, timeout_ms: int) -> None:
        self._move(pid, "lock", State.RUNNING, State.LOCKED)

    def checkpoint(self, pid: int) -> None:
        self._move(pid, "checkpoint", State.LOCKED, State.CHECKPOINTED)

    def restore(self, pid: int) -> None:
        self._move(pid, "restore", State.CHECKPOINTED, State.LOCKED)

    def unlock(self, pid: int) -> None:
        self._move(pid, "unlock", State.LOCKED, State.RUNNING)

    def _move(self, pid: int, op: str, before: State, after: State) -> None:
        new = not (self._folder / str(pid)).exists()
        if self.state(pid) is not before and not (new and op == "restore"):
            raise CudaError("CUDA_ERROR_ILLEGAL_STATE")
        self._meet(pid, op)
        (self._folder / str(pid)).write_text(str(after.value))

    def _meet(self, pid: int, op: str) -> None:
        trouble = self._folder / f"{pid}.{op}"
        if not trouble.exists():
            return
        name = trouble.read_text()
        trouble.unlink()
        if name == "hang":
            time.sleep(3600)
        if name == "die":
            os._exit(1)
        raise CudaError(name)
