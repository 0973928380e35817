"""Whoever drives a replica speaks to its control socket through this."""

import asyncio
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from woodfrog import errors
from woodfrog.errors import DeadlineExceeded, FailedPrecondition, Unavailable, WoodfrogError
from woodfrog.replica.wire import Lines


class ControlClient:
    """Each call has its own connection, because a quiesced replica must have none."""

    def __init__(self, path: Path, peer: str = "the replica") -> None:
        self._path = path
        self._peer = peer

    async def call(
        self, verb: str, within_s: float, /, *, fds: Sequence[int] = (), **fields: Any
    ) -> dict[str, Any]:
        """The reply's fields, with `fds` if it carried descriptors, which are the caller's to close.

        Raises what the peer refused with, Unavailable REPLICA_UNREACHABLE when nobody answers there, DeadlineExceeded
        REPLICA_SILENT after `within_s`; the verb may have happened in both.
        """
        line = json.dumps({"verb": verb, **fields}).encode()
        try:
            async with asyncio.timeout(within_s):
                answer, received = await self._exchange(line, list(fds))
                reply = json.loads(answer)
        except TimeoutError:
            raise DeadlineExceeded(
                "REPLICA_SILENT",
                f"{self._peer} at {self._path} did not answer {verb} within {within_s:g} s; look at its state",
                verb=verb,
            ) from None
        except (OSError, ValueError) as error:
            raise Unavailable(
                "REPLICA_UNREACHABLE",
                f"{self._peer} at {self._path} did not answer {verb}: {error}; see whether it runs",
                verb=verb,
            ) from error
        if not reply.pop("ok", False):
            raise _error(reply)
        return {**reply, "fds": received} if received else dict(reply)

    async def _exchange(self, line: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        lines = Lines(connection)
        try:
            await asyncio.get_running_loop().sock_connect(connection, str(self._path))
            await lines.write(line, fds)
            answer = await lines.read()
        finally:
            lines.close()
        if not answer[0]:
            raise ConnectionError("the connection ended")
        return answer


def _error(reply: dict[str, Any]) -> WoodfrogError:
    kind = getattr(errors, str(reply.get("class")), None)
    if not (isinstance(kind, type) and issubclass(kind, WoodfrogError)):
        kind = FailedPrecondition
    return kind(str(reply.get("reason", "UNKNOWN")), str(reply.get("message", "no reason given")))
