"""An engine of any kind as a process: its API on one socket, the control contract on the other."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import openai

from woodfrog.errors import WoodfrogError
from woodfrog.replica.client import ControlClient

DEADLINE_S = 180.0


@dataclass
class Engine:
    socket: Path
    control: ControlClient
    path: str  # that it answers to
    pid: int = 0

    async def call(self, verb: str, **fields: Any) -> dict[str, Any]:
        return await self.control.call(verb, DEADLINE_S, **fields)

    async def raw(self, data: bytes, path: str = "", method: str = "POST") -> tuple[int, Any]:
        connector = aiohttp.UnixConnector(path=str(self.socket))
        async with aiohttp.ClientSession("http://engine", connector=connector) as client:
            async with client.request(method, path or self.path, data=data) as response:
                return response.status, await response.json()

    async def ask(self, **body: Any) -> dict[str, Any]:
        status, answer = await self.raw(json.dumps(body).encode())
        assert status == 200, answer
        return dict(answer)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[openai.AsyncOpenAI]:
        """The official client, on a port of the loopback that leads to the socket."""

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            up, down = await asyncio.open_unix_connection(self.socket)
            with closing(writer), closing(down), suppress(asyncio.CancelledError):
                await asyncio.gather(_copy(reader, down), _copy(up, writer))

        async with await asyncio.start_server(relay, "127.0.0.1") as server:
            port = server.sockets[0].getsockname()[1]
            async with openai.AsyncOpenAI(
                base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0
            ) as client:
                yield client

    async def lowered_and_thawed(self, verb: str) -> dict[str, Any]:
        """By "quiesce" or, after it, "park"; what `thaw` says."""
        await self.call(verb)
        entropy = os.urandom(64).hex()
        return await self.call("thaw", replica_id=verb, entropy=entropy, canary=True)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
        target.write_eof()


@contextmanager
def running(
    folder: Path,
    model: Path,
    path: str,
    module: str = "woodfrog.engine",
    **environment: str,
) -> Iterator[Engine]:
    """Called "frog", with 2 slots; its sockets and its log are in `folder`."""
    environ = {
        **os.environ,
        "WOODFROG_SOCKET": str(folder / "engine.sock"),
        "WOODFROG_CONTROL": str(folder / "control.sock"),
        "WOODFROG_MODEL": str(model),
        "WOODFROG_MODEL_NAME": "frog",
        "WOODFROG_ENGINE_ARGS": json.dumps({"slots": 2, "threads": 1}),
        **environment,
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module], env=environ, stdout=log, stderr=log
        )
    try:
        engine = Engine(
            folder / "engine.sock", ControlClient(folder / "control.sock"), path, process.pid
        )
        asyncio.run(_serving(engine, process))
        yield engine
        process.terminate()
        process.wait(DEADLINE_S)
    finally:
        process.kill()
        process.wait()


async def _serving(engine: Engine, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if (await engine.call("describe"))["state"] == "serving":
                return
        except WoodfrogError:
            await asyncio.sleep(0.02)  # there is no socket yet
    raise AssertionError("the engine did not start")
