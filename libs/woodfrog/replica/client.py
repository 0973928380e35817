"""Whoever drives a replica speaks to its control socket through this."""

import asyncio
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from woodfrog import errors
from woodfrog.errors import DeadlineExceeded, FailedPrecondition, Unavailable, WoodfrogError
from woodfrog.replica.wire import Lines, close_all


class ControlClient:
    """Each call has its own connection, because a quiesced replica must have none."""

    def __init__(self, path: Path, peer: str = "the replica") -> None:
        self._path = path
        self._peer = peer

    async def call(
        self,
        verb: str,
        within_s: float,
        /,
        *,
        fds: Sequence[int] = (),
        fds_wanted: int = 0,
        until_closed: bool = False,
        **fields: Any,
    ) -> dict[str, Any]:
        """The reply's fields, with `fds` if descriptors are wanted; these are the caller's to close.

        With `until_closed` the peer has closed its end, too, when this returns.

        Raises what the peer refused with, Unavailable REPLICA_UNREACHABLE when nobody answers there or not as it should,
        DeadlineExceeded REPLICA_SILENT after `within_s`; the verb may have happened in both.
        """
        line = json.dumps({"verb": verb, **fields}).encode()
        received: list[int] = []
        try:
            async with asyncio.timeout(within_s):
                answer, received = await self._exchange(line, list(fds), until_closed)
            reply = json.loads(answer)
            if not isinstance(reply, dict):
                raise ValueError("the answer is no JSON object")
            if not reply.pop("ok", False):
                raise _error(reply)
            if len(received) < fds_wanted:
                raise ValueError("the answer lacks its descriptors")
            kept, received = received[:fds_wanted], received[fds_wanted:]
        except TimeoutError:
            raise DeadlineExceeded(
                "REPLICA_SILENT",
                f"{self._peer} at {self._path} did not answer {verb} within {within_s:g} s; look at its state",
                verb=verb,
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise Unavailable(
                "REPLICA_UNREACHABLE",
                f"{self._peer} at {self._path} did not answer {verb}: {error}; see whether it runs",
                verb=verb,
            ) from error
        finally:
            close_all(received)
        return {**reply, "fds": kept} if fds_wanted else reply

    async def _exchange(
        self, line: bytes, fds: list[int], until_closed: bool
    ) -> tuple[bytes, list[int]]:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        lines = Lines(connection)
        try:
            await asyncio.get_running_loop().sock_connect(connection, str(self._path))
            await lines.write(line, fds)
            answer = await lines.read()
            if until_closed and answer[0] is not None:
                connection.shutdown(socket.SHUT_WR)
                await lines.read()
        finally:
            lines.close()
        line_back, received = answer
        if line_back is None:
            raise ConnectionError("the connection ended")
        return line_back, received


def _error(reply: dict[str, Any]) -> WoodfrogError:
    kind = getattr(errors, str(reply.get("class")), None)
    if not (isinstance(kind, type) and issubclass(kind, WoodfrogError)):
        kind = FailedPrecondition
    return kind(str(reply.get("reason", "UNKNOWN")), str(reply.get("message", "no reason given")))
