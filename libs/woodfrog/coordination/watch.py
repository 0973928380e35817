"""A watch that survives breaks, restarts and compaction, and is never silently dead."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any, Protocol

from etcd3.etcdrpc import rpc_pb2

from woodfrog.coordination import operations
from woodfrog.coordination.connection import (
    CALL_TIMEOUT_S,
    HAS_LEADER,
    PAUSE_MAX_S,
    PAUSE_MIN_S,
    Connection,
)
from woodfrog.coordination.values import Change, Listing, advance, prefix_end
from woodfrog.errors import ResourceExhausted, Unavailable, WoodfrogError

log = logging.getLogger(__name__)


class Lister(Protocol):
    @property
    def connection(self) -> Connection: ...

    async def list(self, prefix: str) -> Listing: ...


async def changes(
    session: Lister, prefix: str, revision: int | None
) -> AsyncGenerator[Change, None]:
    """From `revision` on, or, when that is None, a Listing and what follows it."""
    follower = _Follower(session, prefix, revision)
    try:
        while True:
            for change in await follower.next():
                yield change
    finally:
        follower.close()


class _Follower:
    """Where one watch stands, and the stream it reads from while there is one."""

    def __init__(self, session: Lister, prefix: str, revision: int | None) -> None:
        self._session = session
        self._connection = session.connection
        self._prefix = prefix
        self._revision = revision  # of the next change to deliver; None when only a listing helps
        self._call: Any = None
        self._broken = False
        self._pause_s = PAUSE_MIN_S

    async def next(self) -> list[Change]:
        while True:
            try:
                return await self._step()
            except WoodfrogError as error:
                self.close()
                if self._connection.closed:
                    raise
                if isinstance(error, ResourceExhausted):
                    self._revision = None  # more history than one message may hold
                if not self._broken:
                    extra = {"prefix": self._prefix, "reason": error.message}
                    log.warning("etcd watch broke", extra=extra)
                self._broken = True
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)

    def close(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None

    async def _step(self) -> list[Change]:
        if self._revision is None:
            listing = await self._session.list(self._prefix)
            self._revision = listing.revision + 1
            return [listing]
        if self._call is None:
            await self._open(self._revision)
            return []
        response = await self._read()
        self._pause_s = PAUSE_MIN_S
        if response.compact_revision:  # tested first: `canceled` is set, too
            self._list_again("it was compacted")
            return []
        if response.canceled:
            raise _ended(response.cancel_reason)
        if not response.events:  # a progress notice: all before its revision was delivered
            self._revision = max(self._revision, response.header.revision + 1)
            return []
        fresh = [operations.change(event) for event in response.events]
        delivered, self._revision = advance(fresh, self._revision)
        return [*delivered]

    async def _open(self, revision: int) -> None:
        create = rpc_pb2.WatchCreateRequest(
            key=self._prefix.encode() or b"\0",
            range_end=prefix_end(self._prefix.encode()),
            start_revision=revision,
            progress_notify=True,
        )
        with self._connection.border():
            self._call = self._connection.watches.Watch(metadata=HAS_LEADER, wait_for_ready=True)
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self._call.write(rpc_pb2.WatchRequest(create_request=create))
                response = await self._read()
        if not response.created or response.canceled:
            raise _ended(response.cancel_reason)
        if response.header.revision < revision - 1:
            # This member lags behind, or the store lost its history.
            listing = await self._session.list(self._prefix)
            if listing.revision < revision - 1:
                self._list_again("it was lost")
        if self._broken:
            log.info("etcd watch resumed", extra={"prefix": self._prefix, "revision": revision})
        self._broken = False

    async def _read(self) -> Any:
        """Waits without limit: the channel's keepalive finds a peer that is gone."""
        with self._connection.border():
            response = await self._call.read()
        if not response:
            raise _ended("end of stream")
        return response

    def _list_again(self, why: str) -> None:
        log.warning("etcd history is gone", extra={"prefix": self._prefix, "reason": why})
        self._revision = None
        self.close()


def _ended(reason: str) -> Unavailable:
    return Unavailable("WATCH_ENDED", f"etcd ended the watch: {reason}")
