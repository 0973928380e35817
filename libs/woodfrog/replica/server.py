"""uvicorn on a unix socket, able to end its connections without ending itself."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

_KEEP_ALIVE_S = 60
_STOP_S = 5
_POLL_S = 0.002


class HttpServer(uvicorn.Server):
    def __init__(self, app: Any, path: Path, listening: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                uds=str(path),
                http="httptools",
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_STOP_S,
            )
        )
        self._listening = listening
        self._loop = asyncio.get_running_loop()
        self._ending = asyncio.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self._listening()

    async def main_loop(self) -> None:
        """Without uvicorn's tick: an idle replica sleeps, and no timer crosses a checkpoint, whose clock stands still."""
        await self.on_tick(0)
        await self._ending.wait()

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        self._loop.call_soon_threadsafe(self._ending.set)

    async def close_connections(self) -> None:
        """Return when none is left; idle ones end at once, others after their answer."""
        while connections := list(self.server_state.connections):
            for connection in connections:
                connection.shutdown()
            await asyncio.sleep(_POLL_S)
