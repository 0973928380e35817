"""CUDA checkpoints with a deadline; a driver process that hung or died is replaced."""

import asyncio
import itertools
import json
import sys
from typing import Any

from woodfrog.errors import Unavailable
from woodfrog.node_agent.cuda.driver import REAL, State

START_TIMEOUT_S = 30.0  # cuInit takes 0.2 s, on a busy machine more
LOCK_TIMEOUT_S = 10.0
_MARGIN_S = 1.0


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

    async def freeze(self, pid: int) -> None:
        """All that the process has on its GPU goes into its memory. When that fails it runs on."""
        timeout_ms = int(LOCK_TIMEOUT_S * 1000)
        await self._call("lock", pid, LOCK_TIMEOUT_S + _MARGIN_S, timeout_ms=timeout_ms)
        try:
            await self._call("checkpoint", pid, self._timeout_s)
        except Unavailable:
            if await self.state(pid) is State.LOCKED:
                await self._call("unlock", pid, self._timeout_s)
            raise

    async def wake(self, *pids: int) -> None:
        """Back on the GPU, all at once; none goes on before all are there. When that fails, end them: nothing else helps."""
        await asyncio.gather(*(self._call("restore", pid, self._timeout_s) for pid in pids))
        await asyncio.gather(*(self._call("unlock", pid, self._timeout_s) for pid in pids))

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
            # What hangs in the driver cannot be cancelled.
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
            await self._process.wait()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self._fail(why)

    def _fail(self, why: str) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_result({"ok": False, "error": why})
