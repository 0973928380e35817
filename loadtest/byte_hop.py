"""The floor of any gateway in Python: a process that copies bytes between a TCP port and a unix socket, and reads none.

python -m loadtest.byte_hop HOST:PORT SOCKET
"""

import asyncio
import sys

import uvloop


class _End(asyncio.Protocol):
    """One end of a pair; bytes that come before the other end is there wait for it."""

    def __init__(self) -> None:
        self.other: _End | None = None
        self.transport: asyncio.Transport | None = None
        self._early = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)
        else:
            self._early += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()

    def pair(self, other: "_End") -> None:
        self.other, other.other = other, self
        if self._early and other.transport is not None:
            other.transport.write(self._early)


class _Accepted(_End):
    def __init__(self, socket_path: str) -> None:
        super().__init__()
        self._socket_path = socket_path

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, other = await loop.create_unix_connection(_End, self._socket_path)
        self.pair(other)


async def main(listen: str, socket_path: str) -> None:
    host, _, port = listen.rpartition(":")
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Accepted(socket_path), host, int(port))
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
