"""CUDA checkpoints with a deadline; a driver process that hung or died is replaced."""

import asyncio
import contextlib
import itertools
import json
import sys
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from woodfrog.errors import Unavailable
from woodfrog.node_agent.cuda.driver import NO_CUDA, REAL, State

START_TIMEOUT_S = 30.0  # cuInit takes 0.2 s, on a busy machine more
LOCK_TIMEOUT_S = 10.0
_MARGIN_S = 1.0
_END_TIMEOUT_S = 5.0

T = TypeVar("T")


class CudaCheckpoints:
    """`async with`. Starts the driver process at once, so that no climb waits for `cuInit`. Raises Unavailable."""

    def __init__(self, driver: str = REAL, call_timeout_s: float = 30.0) -> None:
        """`driver` is module:class; tests name a simulated one."""
        self._driver = driver
        self._timeout_s = call_timeout_s
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._ids = itertools.count(1)
        self._starting = asyncio.Lock()

    async def __aenter__(self) -> "CudaCheckpoints":
        await self._running()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end("it was closed")

    async def state(self, pid: int) -> State:
        return State((await self._call("state", pid, self._timeout_s))["state"])

    async def users(self, pids: Iterable[int]) -> frozenset[int]:
        """Those of them that use CUDA."""
        asked = list(pids)
        uses = await _all(self._uses(pid) for pid in asked)
        return frozenset(pid for pid, used in zip(asked, uses, strict=True) if used)

    async def freeze(self, *pids: int) -> None:
        """All that the processes have on GPUs goes into their memory, once all of them are locked.

        When that fails all run on. Cancelled, it leaves them as they are: end them, or `wake` them.
        """
        timeout_ms = int(LOCK_TIMEOUT_S * 1000)
        within_s = LOCK_TIMEOUT_S + _MARGIN_S
        try:
            await _all(self._call("lock", pid, within_s, timeout_ms=timeout_ms) for pid in pids)
            await _all(self._call("checkpoint", pid, self._timeout_s) for pid in pids)
        except Unavailable:
            await self._run_on(pids)
            raise

    async def wake(self, *pids: int, moved: Mapping[str, str] = {}) -> None:
        """Back on the GPU, all at once; none goes on before all are there. When that fails, end them: nothing else helps.

        On other GPUs of the same kind when `moved` says so, from the uuid of each that they saw to the uuid of the new one.
        """
        await _all(self._restore(pid, moved) for pid in pids)
        await _all(self._unlock(pid) for pid in pids)

    async def _run_on(self, pids: Sequence[int]) -> None:
        """Each as far as it can."""
        found = await asyncio.gather(*(self.state(pid) for pid in pids), return_exceptions=True)
        states = dict(zip(pids, found, strict=True))
        away = [pid for pid in pids if states[pid] is State.CHECKPOINTED]
        stopped = [pid for pid in pids if states[pid] is State.LOCKED] + away
        await asyncio.gather(*map(self._restore, away), return_exceptions=True)
        await asyncio.gather(*map(self._unlock, stopped), return_exceptions=True)

    async def _restore(self, pid: int, moved: Mapping[str, str] = {}) -> None:
        await self._call("restore", pid, self._timeout_s, moved=dict(moved))

    async def _unlock(self, pid: int) -> None:
        await self._call("unlock", pid, self._timeout_s)

    async def _uses(self, pid: int) -> bool:
        try:
            await self.state(pid)
        except Unavailable as error:
            if error.metadata.get("cause") in NO_CUDA:
                return False
            raise
        return True

    async def _call(self, op: str, pid: int, within_s: float, **fields: Any) -> dict[str, Any]:
        process = await self._running()
        assert process.stdin is not None
        request = next(self._ids)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[request] = future
        line = json.dumps({"id": request, "op": op, "pid": pid, **fields}) + "\n"
        try:
            async with asyncio.timeout(within_s):
                process.stdin.write(line.encode())
                answer = await future
        except TimeoutError:
            # What hangs in the driver cannot be cancelled. Of several that hang the first ends it.
            if self._process is process:
                await self._end(f"{op} of process {pid} took longer than {within_s:.0f} s")
            raise Unavailable(
                "CUDA_HANGS",
                f"CUDA did not {op} process {pid} within {within_s:.0f} s; end the process",
            ) from None
        finally:
            self._waiting.pop(request, None)
        if not answer["ok"]:
            raise Unavailable(
                f"CUDA_{op.upper()}_FAILED",
                f"CUDA cannot {op} process {pid}: {answer['error']}",
                cause=answer["error"],
            )
        return answer

    async def _running(self) -> asyncio.subprocess.Process:
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                self._process = await self._start()
            return self._process

    async def _start(self) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            "setpriv", "--pdeathsig", "KILL",
            sys.executable, "-m", "woodfrog.node_agent.cuda.driver_process", self._driver,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                first = await process.stdout.readline()
        except TimeoutError:
            first = b""
        said = (
            json.loads(first)
            if first
            else {"ok": False, "error": "its driver process did not start"}
        )
        if not said["ok"]:
            if process.returncode is None:
                process.kill()
            await process.wait()
            raise Unavailable("CUDA_AWAY", f"CUDA cannot be used on this node: {said['error']}")
        self._reader = asyncio.create_task(self._read(process), name="cuda.read")
        return process

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            answer = json.loads(line)
            future = self._waiting.get(answer["id"])
            if future is not None and not future.done():
                future.set_result(answer)
        await process.wait()
        self._fail("the driver process died")

    async def _end(self, why: str) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            with contextlib.suppress(TimeoutError):  # one that hangs in the kernel is left behind
                async with asyncio.timeout(_END_TIMEOUT_S):
                    await self._process.wait()
            self._process = None
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self._fail(why)

    def _fail(self, why: str) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_result({"ok": False, "error": why})


async def _all(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All end before an error of one is raised, so that none is under way in what its caller does next."""
    begun = [asyncio.ensure_future(call) for call in calls]
    await asyncio.gather(*begun, return_exceptions=True)
    return [each.result() for each in begun]
