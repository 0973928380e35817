"""The control socket: newline-delimited JSON, one reply for each request, several on a connection."""

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from woodfrog.errors import Internal, InvalidArgument, WoodfrogError
from woodfrog.replica.wire import Lines, close_all

log = logging.getLogger(__name__)

Fields = Mapping[str, Any]
Verb = Callable[[Fields], Awaitable[dict[str, Any]]]

_BACKLOG = 64
_ACCEPT_RETRY_S = 0.1


class ControlServer:
    """Answers on a unix socket; `async with` for as long as the process lives.

    Descriptors that came with a request are its field `fds`, closed when the verb returns; those in a reply's `fds` are
    sent and closed.
    """

    def __init__(self, verbs: Mapping[str, Verb], path: Path) -> None:
        self._verbs = verbs
        self._path = path
        self._talks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._path.unlink(missing_ok=True)
        self._listener.bind(str(self._path))
        self._listener.listen(_BACKLOG)
        self._accepting = asyncio.create_task(self._accept(), name="control.accept")

    async def __aexit__(self, *_: object) -> None:
        self._accepting.cancel()
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(self._accepting, *self._talks, return_exceptions=True)
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # no descriptor is free, most likely; there will be
                log.error("cannot accept", extra={"error": str(error)})
                await asyncio.sleep(_ACCEPT_RETRY_S)
                continue
            talk = asyncio.create_task(self._talk(Lines(connection)), name="control.talk")
            self._talks.add(talk)
            talk.add_done_callback(self._talks.discard)

    async def _talk(self, lines: Lines) -> None:
        try:
            while True:
                line, fds = await lines.read()
                if line is None:
                    return
                try:
                    reply = await self._answer(line, fds)
                finally:
                    close_all(fds)
                sent = reply.pop("fds", [])
                try:
                    await lines.write(json.dumps(reply).encode(), sent)
                finally:
                    close_all(sent)
        except (OSError, ValueError):  # the peer went away, or sent a line without end
            pass
        finally:
            lines.close()

    async def _answer(self, line: bytes, fds: list[int]) -> dict[str, Any]:
        try:
            return {"ok": True, **await self._obey(line, fds)}
        except WoodfrogError as error:
            return _refusal(error)
        except Exception:  # the outermost frame: whoever asked must get an answer
            log.exception("verb failed")
            return _refusal(Internal("INTERNAL", "the process failed at this; its logs say why"))

    async def _obey(self, line: bytes, fds: list[int]) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except ValueError:
            raise InvalidArgument("BAD_REQUEST", "the line is not JSON") from None
        if not isinstance(request, dict):
            raise InvalidArgument("BAD_REQUEST", "the line is not a JSON object")
        verb = self._verbs.get(str(request.get("verb")))
        if verb is None:
            known = ", ".join(self._verbs)
            raise InvalidArgument("UNKNOWN_VERB", f"the verb is not one of {known}")
        return await verb({**request, "fds": fds})


def _refusal(error: WoodfrogError) -> dict[str, Any]:
    """`class` lets our own client raise the same error again; other peers need only `reason`."""
    return {
        "ok": False,
        "reason": error.reason,
        "message": error.message,
        "class": type(error).__name__,
    }
