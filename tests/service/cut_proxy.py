"""A TCP proxy on loopback that can cut its connections or swallow what they carry."""

import asyncio


class CutProxy:
    """Each setting may be changed at any time: a cluster's network, in small."""

    def __init__(self, target: str) -> None:
        self._target: str | None = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.cut_after: int | None = (
            None  #: bytes from the server until all connections are cut, once
        )
        self.cuts = 0
        self._silent: set[asyncio.StreamWriter] = set()

    @property
    def endpoint(self) -> str:
        assert self._server
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> "CutProxy":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server
        self._server.close()
        self.redirect(None)

    def redirect(self, target: str | None) -> None:
        """Cuts what is open; from now on connections go to `target`, or are refused."""
        self._target = target
        for writer in [*self._writers]:
            writer.close()

    def silence(self) -> None:
        """What is open now stays open and carries nothing any more."""
        self._silent |= self._writers

    def refuse(self) -> None:
        """Nothing new is let through, until it is redirected."""
        self._target = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._target is None:
                raise OSError
            host, _, port = self._target.rpartition(":")
            upstream_reader, upstream = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        pair = {writer, upstream}
        self._writers |= pair
        await asyncio.gather(self._up(reader, upstream), self._down(upstream_reader, writer))
        self._writers -= pair
        self._silent -= pair

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                if writer not in self._silent:
                    writer.write(data)
                    await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                if writer in self._silent:
                    continue
                writer.write(data[: self.cut_after])
                await writer.drain()
                if self.cut_after is not None:
                    self.cut_after -= len(data)
                    if self.cut_after <= 0:
                        self.cut_after = None
                        self.cuts += 1
                        self.redirect(self._target)
        except OSError:
            pass
        finally:
            writer.close()
