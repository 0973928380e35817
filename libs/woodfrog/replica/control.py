"""The control socket: newline-delimited JSON, one reply for each request, several on a connection."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

from woodfrog.errors import Internal, InvalidArgument, WoodfrogError
from woodfrog.replica.replica import Replica

log = logging.getLogger(__name__)

LINE_BYTES_MAX = 4 << 20  # an answer with the last log lines fits


class ControlServer:
    """Answers on a unix socket; `async with` for as long as the replica lives."""

    def __init__(self, replica: Replica, path: Path) -> None:
        self._replica = replica
        self._path = path

    async def __aenter__(self) -> None:
        self._server = await asyncio.start_unix_server(
            self._talk, path=self._path, limit=LINE_BYTES_MAX
        )

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):  # the peer went away, or sent a line without end
            pass
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            return {"ok": True, **await self._obey(line)}
        except WoodfrogError as error:
            return _refusal(error)
        except Exception:  # the outermost frame: whoever asked must get an answer
            log.exception("verb failed")
            return _refusal(Internal("INTERNAL", "the replica failed at this; its logs say why"))

    async def _obey(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except ValueError:
            raise InvalidArgument("BAD_REQUEST", "the line is not JSON") from None
        if not isinstance(request, dict):
            raise InvalidArgument("BAD_REQUEST", "the line is not a JSON object")
        verb = self._replica.verbs.get(str(request.get("verb")))
        if verb is None:
            known = ", ".join(self._replica.verbs)
            raise InvalidArgument("UNKNOWN_VERB", f"the verb is not one of {known}")
        return await verb(request)


def _refusal(error: WoodfrogError) -> dict[str, Any]:
    """`class` lets our own client raise the same error again; other peers need only `reason`."""
    return {
        "ok": False,
        "reason": error.reason,
        "message": error.message,
        "class": type(error).__name__,
    }
