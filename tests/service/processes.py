"""A real service as a child process, which a test may kill and start again."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from woodfrog.host import ports

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
_TRY_TIMEOUT_S = 0.5


class ServiceProcess:
    """`async with ServiceProcess("woodfrog.scheduler", "127.0.0.1:7003", env, tmp_path) as scheduler`.

    `address` is where the service was told, by `env`, to serve gRPC. Its log is `<folder>/<module>.log`, appended to by
    each start and printed when a start fails.
    """

    def __init__(self, module: str, address: str, env: Mapping[str, str], folder: Path) -> None:
        self.address = address
        self.log_path = folder / f"{module}.log"
        self._module = module
        self.env = {**os.environ, **env}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    async def __aenter__(self) -> "ServiceProcess":
        try:
            await self.start()
        except BaseException:
            self.kill9()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill9()

    async def start(self) -> None:
        """Returns when its health is SERVING."""
        assert self._process is None
        self._process = self._spawn()
        deadline = time.monotonic() + READY_TIMEOUT_S
        async with grpc.aio.insecure_channel(
            self.address,
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 500),
            ],
        ) as channel:
            while not await _serving(channel):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"{self._module} is not ready; {self.log_tail()}")

    def log_tail(self) -> str:
        return f"{self.log_path} ends:\n{self.log_path.read_text()[-4000:]}"

    def kill9(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> int:
        """By SIGTERM. Returns the exit status; one that does not end in time is killed and fails the test."""
        assert self._process
        self._process.terminate()
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self._module} ignores SIGTERM; {self.log_tail()}") from None
        finally:
            self.kill9()

    async def exited(self) -> int:
        """The exit status of one that ends by itself."""
        assert self._process
        return await asyncio.to_thread(self._process.wait, STOP_TIMEOUT_S)

    def _spawn(self) -> subprocess.Popen[bytes]:
        # It dies with the test run, whatever becomes of that.
        command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", self._module]
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )


async def _serving(channel: grpc.aio.Channel) -> bool:
    try:
        reply = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=_TRY_TIMEOUT_S, wait_for_ready=True
        )
    except grpc.aio.AioRpcError:
        return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def free_addresses(count: int) -> list[str]:
    """Loopback addresses that nobody listens on."""
    return [f"127.0.0.1:{port}" for port in ports.free(count)]
