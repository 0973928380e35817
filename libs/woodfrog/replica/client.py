"""Whoever drives a replica speaks to its control socket through this."""

import asyncio
import json
from pathlib import Path
from typing import Any

from woodfrog import errors
from woodfrog.errors import DeadlineExceeded, FailedPrecondition, Unavailable, WoodfrogError
from woodfrog.replica.control import LINE_BYTES_MAX


class ControlClient:
    """Each call has its own connection, because a quiesced replica must have none."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def call(self, verb: str, within_s: float, /, **fields: Any) -> dict[str, Any]:
        """The reply's fields. Raises what the replica refused with, Unavailable REPLICA_UNREACHABLE when nobody
        answers there, DeadlineExceeded REPLICA_SILENT after `within_s`; the verb may have happened in both."""
        line = json.dumps({"verb": verb, **fields}).encode() + b"\n"
        try:
            async with asyncio.timeout(within_s):
                reply = json.loads(await self._exchange(line))
        except TimeoutError:
            raise DeadlineExceeded(
                "REPLICA_SILENT",
                f"the replica at {self._path} did not answer {verb} within {within_s:g} s; look at its state",
                verb=verb,
            ) from None
        except (OSError, ValueError) as error:
            raise Unavailable(
                "REPLICA_UNREACHABLE",
                f"the replica at {self._path} did not answer {verb}: {error}; see whether it runs",
                verb=verb,
            ) from error
        if reply.pop("ok", False):
            return dict(reply)
        raise _error(reply)

    async def _exchange(self, line: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(self._path, limit=LINE_BYTES_MAX)
        try:
            writer.write(line)
            reply = await reader.readline()
        finally:
            writer.close()
        if not reply.endswith(b"\n"):
            raise ConnectionError("the connection ended")
        return reply


def _error(reply: dict[str, Any]) -> WoodfrogError:
    kind = getattr(errors, str(reply.get("class")), None)
    if not (isinstance(kind, type) and issubclass(kind, WoodfrogError)):
        kind = FailedPrecondition
    return kind(str(reply.get("reason", "UNKNOWN")), str(reply.get("message", "no reason given")))
