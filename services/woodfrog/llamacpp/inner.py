"""llama.cpp's own HTTP server, on a unix socket that nobody else is told."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from woodfrog.errors import Internal, Unavailable

_UNIX_SOCKETS = Path("/proc/net/unix")


class Inner:
    """One connection for each request, so that none is left when nothing is asked."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @asynccontextmanager
    async def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Raises Unavailable when llama.cpp ends the connection. To leave early is to cancel the request."""
        connector = aiohttp.UnixConnector(path=str(self._path), force_close=True)
        timeout = aiohttp.ClientTimeout(total=None)
        try:
            async with (
                aiohttp.ClientSession("http://inner", connector=connector, timeout=timeout) as link,
                link.request(method, path, json=body, headers=headers) as response,
            ):
                yield response
        except aiohttp.ClientError as error:
            raise Unavailable(
                "ENGINE_BROKE_OFF", f"llama.cpp broke the request off: {error}; ask again"
            ) from None

    async def json(self, method: str, path: str, body: Any = None) -> Any:
        async with self.request(method, path, body) as response:
            answer = await response.json(content_type=None)
        if response.status != 200:
            raise Internal("ENGINE_FAILED", f"llama.cpp answers {path} by {answer!r:.200}")
        return answer

    async def busy(self) -> bool:
        """Whether it computes for anybody."""
        return any(slot["is_processing"] for slot in await self.json("GET", "/slots"))

    def connected(self) -> bool:
        """Whether its end of a connection is still there."""
        name = str(self._path)
        lines = [line.split() for line in _UNIX_SOCKETS.read_text().splitlines()]
        return sum(line[-1] == name for line in lines) > 1  # one is the listener
