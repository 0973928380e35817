"""A simulated CUDA driver: the states of processes and what the real one says, without a GPU."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from tests.memory import simulated_gpu

from woodfrog.node_agent.cuda.driver import CudaError, State, uuid_bytes

GPUS = tuple(f"{simulated_gpu.UUID}{number}" for number in range(2))  # of this machine
FOLDER = "SIMULATED_CUDA"  # a folder with a file for each process: its state, and perhaps what goes wrong next


class SimulatedDriver:
    """`<pid>` holds a State's value, `<pid>.gpu` the uuid of its GPU; `<pid>.<op>` an error's name, or
    "hang", "die" (the driver process), "gone" (the process itself).

    With a file `any`, every living process is one of CUDA's: one that is new runs, or was restored by CRIU, and has the GPU
    that its environment names.
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

    def restore(self, pid: int, moved: Mapping[str, str]) -> None:
        here = {uuid_bytes(gpu): gpu for gpu in GPUS}
        pairs = {uuid_bytes(old): uuid_bytes(new) for old, new in moved.items()}
        old = uuid_bytes(self._gpu(pid))
        new = here.get(pairs.get(old, b"") if moved else old)
        if len(pairs) > 1:  # its sandbox shows it no other
            new = None
        if new is None:
            raise CudaError("CUDA_ERROR_INVALID_VALUE")
        self._move(pid, "restore", State.CHECKPOINTED, State.LOCKED)
        (self._folder / f"{pid}.gpu").write_text(new)

    def unlock(self, pid: int) -> None:
        self._move(pid, "unlock", State.LOCKED, State.RUNNING)

    def _gpu(self, pid: int) -> str:
        known = self._folder / f"{pid}.gpu"
        if known.exists():
            return known.read_text()
        variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
        return dict(v.split("=", 1) for v in variables if v)["CUDA_VISIBLE_DEVICES"]

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
        if name == "gone":
            (self._folder / str(pid)).unlink()
            raise CudaError("CUDA_ERROR_OPERATING_SYSTEM")
        raise CudaError(name)
