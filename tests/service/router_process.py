"""A real router as a process before a SIMULATED engine's process, a simulated scheduler and a real etcd."""

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.capabilities import ROOT
from tests.memory.simulated_scheduler import SimulatedScheduler
from tests.service.etcd import EtcdServer
from tests.service.processes import ServiceProcess, free_addresses

from woodfrog.catalog import Catalog
from woodfrog.clock import SystemClock
from woodfrog.coordination import Session
from woodfrog.model import digest
from woodfrog.model.placement import ReadyReplica
from woodfrog.model.spec import ModelSpec

_WAIT_S = 60.0
_IDLE_S, _IDLE_SHARE = 0.5, 0.05


@dataclass(frozen=True, slots=True)
class RouterProcess:
    http: str  # host and port
    pid: int  # of the first router
    pids: tuple[int, ...]  # of all routers behind the address
    engine_socket: Path
    engine: str  # its host and port, for who knows no unix sockets
    engine_pid: int
    scheduler: SimulatedScheduler
    etcd: str  # host and port


@asynccontextmanager
async def opened(
    folder: Path,
    model: str,
    slots: int,
    settings: Mapping[str, str] | None = None,
    *,
    routers: int = 1,
) -> AsyncIterator[RouterProcess]:
    """`settings` by variable. The model has one replica that is ready; `routers` processes serve one address."""
    engine_socket = folder / "engine.sock"
    http, engine = free_addresses(2)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        engine_pid = await enter(child("tests.memory.simulated_engine", str(engine_socket), engine))
        etcd = await enter(EtcdServer(folder))
        scheduler = await enter(SimulatedScheduler())
        async with Session([etcd.endpoint], SystemClock()) as session:
            spec = ModelSpec(name=model, weights=digest.of_bytes(b""), weights_bytes=0)
            await Catalog(session).add_model(spec)
        await until(engine_socket.exists, "the simulated engine")
        await scheduler.announce(
            ReadyReplica("simulated", model, "node-1", str(engine_socket), slots)
        )
        env = {
            "WOODFROG_ROUTER_LISTEN": http,
            "WOODFROG_ROUTER_ETCD": etcd.endpoint,
            "WOODFROG_ROUTER_SCHEDULER": scheduler.address,
            "WOODFROG_ROUTER_SHARED_LISTEN": str(routers > 1),
            **(settings or {}),
        }
        processes = []
        for grpc in free_addresses(routers):  # each has its own, by which it is known to be ready
            own = {**env, "WOODFROG_ROUTER_GRPC_LISTEN": grpc}
            processes.append(await enter(ServiceProcess("woodfrog.router", grpc, own, folder)))
        await scheduler.until(lambda state: state.routers == routers)
        pids = tuple(process.pid for process in processes)
        yield RouterProcess(
            http, pids[0], pids, engine_socket, engine, engine_pid, scheduler, etcd.endpoint
        )


@asynccontextmanager
async def child(module: str, *arguments: str) -> AsyncIterator[int]:
    """A Python process that dies with this one."""
    command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", module, *arguments]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
    try:
        yield process.pid
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def until(condition: Callable[[], bool], what: str) -> None:
    """Raises RuntimeError after a minute."""
    deadline = time.monotonic() + _WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {_WAIT_S:.0f} s for {what}")
        await asyncio.sleep(0.02)


@asynccontextmanager
async def slow_readers(http: str, model: str, count: int) -> AsyncIterator[None]:
    """Clients that ask for endless streams and read nothing of them."""
    script = {"tokens": 1_000_000, "text": "frog" * 4096}
    body = json.dumps({"model": model, "stream": True, "messages": [], "simulate": script})
    asked = f"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    host, _, port = http.partition(":")
    loop = asyncio.get_running_loop()
    with ExitStack() as sockets:
        for _ in range(count):
            reader = sockets.enter_context(socket.socket())
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.setblocking(False)
            await loop.sock_connect(reader, (host, int(port)))
            await loop.sock_sendall(reader, asked.encode())
        yield


def cpu_s(pid: int) -> float:
    """User and system seconds that a process and its threads have had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def idle(pid: int) -> None:
    """Until a process has next to nothing to do. Raises RuntimeError after a minute."""
    deadline = time.monotonic() + _WAIT_S
    before = -1.0
    while (now := cpu_s(pid)) - before > _IDLE_SHARE * _IDLE_S:
        if time.monotonic() > deadline:
            raise RuntimeError(f"process {pid} is not idle after {_WAIT_S:.0f} s")
        before = now
        await asyncio.sleep(_IDLE_S)


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM, files that it maps included."""
    (line,) = (
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmRSS:")
    )
    return int(line.split()[1]) << 10
