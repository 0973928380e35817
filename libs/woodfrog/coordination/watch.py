"""A watch that survives breaks, restarts and compaction, and is never silently dead."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any, Protocol

from etcd3.etcdrpc import rpc_pb2
from google.protobuf.unknown_fields import UnknownFieldSet

from woodfrog.coordination import operations
from woodfrog.coordination.connection import (
    CALL_TIMEOUT_S,
    HAS_LEADER,
    PAUSE_MAX_S,
    PAUSE_MIN_S,
    Connection,
)
from woodfrog.coordination.values import Change, Delete, Listing, Put, advance, prefix_end
from woodfrog.errors import Unavailable, WoodfrogError

log = logging.getLogger(__name__)

# Younger than the stubs, so by number: `fragment` of WatchCreateRequest, true, and of WatchResponse.
_IN_FRAGMENTS = b"\x40\x01"
_FRAGMENT_FIELD = 7
_EVERY_WATCH = -1  # watch_id of an answer to a progress request


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
        self._reading: asyncio.Task[Any] | None = None  # of what the call says next
        self._fragments: list[Put | Delete] = []  # of one answer, whose last is still to come
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
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        self._fragments.clear()

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
        if not response.events:
            # A notice of progress of this watch: all before its revision was delivered. Some etcds say as much
            # too early when they were asked, in the name of every watch.
            if response.watch_id != _EVERY_WATCH:
                self._revision = max(self._revision, response.header.revision + 1)
            return []
        self._fragments += (operations.change(event) for event in response.events)
        if _fragment(response):  # the rest may have events of the same revision
            return []
        delivered, self._revision = advance(self._fragments, self._revision)
        self._fragments.clear()
        return [*delivered]

    async def _open(self, revision: int) -> None:
        create = rpc_pb2.WatchCreateRequest(
            key=self._prefix.encode() or b"\0",
            range_end=prefix_end(self._prefix.encode()),
            start_revision=revision,
            progress_notify=True,
        )
        create.MergeFromString(_IN_FRAGMENTS)
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
        """What comes next. When nothing does for a while, etcd is asked once whether it still has this watch.

        The channel's keepalive finds a peer that is gone, not one that forgot.
        """
        silence_s = self._connection.silence_s
        with self._connection.border():
            reading = self._reading or asyncio.create_task(self._call.read())
            reading.add_done_callback(_seen)
            self._reading = reading
            await asyncio.wait([reading], timeout=silence_s)
            if not reading.done():
                async with asyncio.timeout(silence_s):
                    request = rpc_pb2.WatchProgressRequest()
                    await self._call.write(rpc_pb2.WatchRequest(progress_request=request))
                    await asyncio.wait([reading])
            self._reading = None
            response = await reading
        if not response:
            raise _ended("end of stream")
        return response

    def _list_again(self, why: str) -> None:
        log.warning("etcd history is gone", extra={"prefix": self._prefix, "reason": why})
        self._revision = None
        self.close()


def _seen(reading: asyncio.Task[Any]) -> None:
    """It may fail when nobody waits for it any more."""
    if not reading.cancelled():
        reading.exception()


def _ended(reason: str) -> Unavailable:
    return Unavailable("WATCH_ENDED", f"etcd ended the watch: {reason}")


def _fragment(response: Any) -> bool:
    """Whether more of the same answer follows."""
    unknown: Any = UnknownFieldSet(response)
    return any(field.field_number == _FRAGMENT_FIELD and field.data for field in unknown)
