"""What each tracking router has still to be told. A slow one gets the newest state, not every step to it."""

import asyncio
from collections.abc import AsyncGenerator, Iterable

from woodfrog.model.placement import ReadyReplica, TrackUpdate


class Track:
    """One router's stream. What it holds is bounded by the number of replicas."""

    def __init__(self, ready: Iterable[ReadyReplica]) -> None:
        self._full = TrackUpdate(True, tuple(ready))
        self._pending: dict[str, ReadyReplica | None] = {}  # None: gone
        self._changed = asyncio.Event()
        self._closed = False

    def announce(self, ready: Iterable[ReadyReplica], gone: Iterable[str]) -> None:
        self._pending.update(dict.fromkeys(gone))
        self._pending.update({replica.replica_id: replica for replica in ready})
        self._changed.set()

    def close(self) -> None:
        """The stream ends once what is pending was read."""
        self._closed = True
        self._changed.set()

    async def updates(self) -> AsyncGenerator[TrackUpdate, None]:
        yield self._full
        while self._pending or not self._closed:
            pending, self._pending = self._pending, {}
            if pending:
                ready = tuple(replica for replica in pending.values() if replica is not None)
                gone = tuple(name for name, replica in pending.items() if replica is None)
                yield TrackUpdate(False, ready, gone)
            else:
                await self._changed.wait()
                self._changed.clear()
