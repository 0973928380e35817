"""Lines over a unix socket that may carry file descriptors, which asyncio's streams would drop."""

import array
import asyncio
import os
import socket

LINE_BYTES_MAX = 4 << 20  # an answer with the last log lines fits
FDS_MAX = 250  # the kernel's limit for one message is 253
_READ_BYTES = 1 << 18


class Lines:
    """One connection. Owns the socket and whatever descriptors arrived and were not taken."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._buffer = bytearray()
        self._fds: list[int] = []

    async def read(self) -> tuple[bytes | None, list[int]]:
        """A line without its end, and the descriptors that came with it or before, which are the caller's to close; None
        when the peer is gone.

        Raises ValueError when a line has no end within LINE_BYTES_MAX, or too many descriptors came.
        """
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > LINE_BYTES_MAX:
                raise ValueError("the line is too long")
            data = await self._receive()
            if not data:
                return None, []
            self._buffer += data
            await asyncio.sleep(0)  # a peer that never stops must not hold others up
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        fds, self._fds = self._fds, []
        return line, fds

    async def write(self, line: bytes, fds: list[int]) -> None:
        """The descriptors stay the caller's."""
        data = memoryview(line + b"\n")
        if fds:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            await self._ready(writing=True)
            data = data[self._socket.sendmsg([data], ancillary) :]
        if data:
            await asyncio.get_running_loop().sock_sendall(self._socket, data)

    def close(self) -> None:
        self._socket.close()
        close_all(self._fds)
        self._fds = []

    async def _receive(self) -> bytes:
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(
                    self._socket, _READ_BYTES, FDS_MAX, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                await self._ready(writing=False)
            else:
                self._fds += fds
                if len(self._fds) > FDS_MAX:
                    raise ValueError("too many descriptors came")
                return data

    async def _ready(self, writing: bool) -> None:
        loop = asyncio.get_running_loop()
        watch, unwatch = (
            (loop.add_writer, loop.remove_writer)
            if writing
            else (loop.add_reader, loop.remove_reader)
        )
        future: asyncio.Future[None] = loop.create_future()

        def ready() -> None:
            if not future.done():
                future.set_result(None)

        watch(self._socket, ready)
        try:
            await future
        finally:
            unwatch(self._socket)


def close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
