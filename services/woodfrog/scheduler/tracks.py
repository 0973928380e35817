"""What each tracking router has still to be told. A slow one gets the newest state, not every step to it."""

import asyncio
from collections.abc import AsyncGenerator, Iterable

from woodfrog.model.placement import ReadyReplica, TrackUpdate


class Track:
    """One router's stream. What it holds is bounded by the number of replicas, and of those that ended while it was read."""

    def __init__(self, ready: Iterable[ReadyReplica]) -> None:
        self._full = TrackUpdate(True, tuple(ready))
        self._pending: dict[str, ReadyReplica | None] = {}  # None: gone
        self._ended: dict[str, None] = {}
        self._changed = asyncio.Event()
        self._closed = False

    def announce(
        self, ready: Iterable[ReadyReplica], gone: Iterable[str], ended: Iterable[str] = ()
    ) -> None:
        self._ended.update(dict.fromkeys(ended))
        self._pending.update(dict.fromkeys(gone))
        self._pending.update({replica.replica_id: replica for replica in ready})
        self._changed.set()

    def close(self) -> None:
        """The stream ends once what is pending was read."""
        self._closed = True
        self._changed.set()

    async def updates(self) -> AsyncGenerator[TrackUpdate, None]:
        yield self._full
        while self._pending or self._ended or not self._closed:
            pending, self._pending = self._pending, {}
            ended, self._ended = tuple(self._ended), {}
            if pending or ended:
                ready = tuple(replica for replica in pending.values() if replica is not None)
                gone = tuple(name for name, replica in pending.items() if replica is None)
                yield TrackUpdate(False, ready, gone, ended)
            else:
                await self._changed.wait()
                self._changed.clear()
