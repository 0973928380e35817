"""What each tracking router has still to be told. A slow one gets the newest state, not every step to it."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Iterable

from woodfrog.model.placement import (
    ReadyReplica,
    ReplicaUsage,
    RouterReport,
    TenantUse,
    TrackUpdate,
)


class Track:
    """One router's stream. What it holds is bounded by the number of replicas and tenants, and of replicas that ended
    while it was read.
    """

    def __init__(
        self,
        ready: Iterable[ReadyReplica],
        elsewhere: Iterable[ReplicaUsage] = (),
        tenants: Iterable[TenantUse] = (),
    ) -> None:
        self._full = TrackUpdate(
            True, tuple(ready), elsewhere=tuple(elsewhere), tenants=tuple(tenants)
        )
        self._pending: dict[str, ReadyReplica | None] = {}  # None: gone
        self._ended: dict[str, None] = {}
        self._elsewhere: dict[str, ReplicaUsage] = {}
        self._tenants: dict[str, TenantUse] = {}
        self._changed = asyncio.Event()
        self._closed = False

    def announce(
        self, ready: Iterable[ReadyReplica], gone: Iterable[str], ended: Iterable[str] = ()
    ) -> None:
        self._ended.update(dict.fromkeys(ended))
        self._pending.update(dict.fromkeys(gone))
        self._pending.update({replica.replica_id: replica for replica in ready})
        self._changed.set()

    def relay(self, elsewhere: Iterable[ReplicaUsage], tenants: Iterable[TenantUse]) -> None:
        """What changed at other routers."""
        for usage in elsewhere:
            self._elsewhere[usage.replica_id] = usage
        for use in tenants:
            before = self._tenants.get(use.tenant)
            self._tenants[use.tenant] = use if before is None else before.then(use)
        self._changed.set()

    def close(self) -> None:
        """The stream ends once what is pending was read."""
        self._closed = True
        self._changed.set()

    async def updates(self) -> AsyncGenerator[TrackUpdate, None]:
        yield self._full
        while (update := self._take()) is not None or not self._closed:
            if update is not None:
                yield update
            else:
                await self._changed.wait()
                self._changed.clear()

    def _take(self) -> TrackUpdate | None:
        """What is pending; None when nothing is."""
        if not (self._pending or self._ended or self._elsewhere or self._tenants):
            return None
        pending, self._pending = self._pending, {}
        ended, self._ended = tuple(self._ended), {}
        elsewhere, self._elsewhere = tuple(self._elsewhere.values()), {}
        tenants, self._tenants = tuple(self._tenants.values()), {}
        ready = tuple(replica for replica in pending.values() if replica is not None)
        gone = tuple(name for name, replica in pending.items() if replica is None)
        return TrackUpdate(False, ready, gone, ended, elsewhere, tenants)


class _Counts:
    """How much each router has of something, by name."""

    def __init__(self) -> None:
        self._of: dict[str, Counter[str]] = defaultdict(Counter)  # never 0
        self._sums: Counter[str] = Counter()

    def put(self, router: str, name: str, count: int) -> None:
        own = self._of[router]
        self._sums[name] += count - own[name]
        own[name] = count
        for counts in (own, self._sums):
            if not counts[name]:
                del counts[name]

    def leave(self, router: str) -> list[str]:
        """Returns what it had any of."""
        names = [*self._of[router]]
        for name in names:
            self.put(router, name, 0)
        del self._of[router]
        return names

    def elsewhere(self, router: str, name: str) -> int:
        return self._sums[name] - self._of[router][name]

    def names(self) -> Iterable[str]:
        return self._sums.keys()


class Tracks:
    """All routers' streams. Each is told what the others run, and what tenants asked of them: so they keep together to a
    replica's slots and a tenant's limits, as late as their reports are.
    """

    def __init__(self) -> None:
        self._tracks: dict[str, Track] = {}
        self._running = _Counts()
        self._asking = _Counts()

    def join(self, router: str, ready: Iterable[ReadyReplica]) -> Track:
        """It must not be there."""
        assert router not in self._tracks
        elsewhere = [
            ReplicaUsage(name, self._running.elsewhere(router, name))
            for name in self._running.names()
        ]
        tenants = [
            TenantUse(name, self._asking.elsewhere(router, name)) for name in self._asking.names()
        ]
        track = self._tracks[router] = Track(ready, elsewhere, tenants)
        return track

    def get(self, router: str) -> Track | None:
        return self._tracks.get(router)

    def leave(self, router: str) -> None:
        """What it ran and was asked is over."""
        self._tracks.pop(router).close()
        self._relay(
            router,
            self._running.leave(router),
            [TenantUse(name, 0) for name in self._asking.leave(router)],
        )

    def report(self, router: str, report: RouterReport) -> None:
        """One that is there says what changed with it."""
        for usage in report.usage:
            self._running.put(router, usage.replica_id, usage.active)
        for use in report.tenants:
            self._asking.put(router, use.tenant, use.active)
        self._relay(router, [usage.replica_id for usage in report.usage], report.tenants)

    def announce(
        self, ready: Iterable[ReadyReplica], gone: Iterable[str], ended: Iterable[str]
    ) -> None:
        for track in self._tracks.values():
            track.announce(ready, gone, ended)

    def close(self) -> None:
        for track in self._tracks.values():
            track.close()

    def _relay(self, source: str, replicas: Iterable[str], tenants: Iterable[TenantUse]) -> None:
        for router, track in self._tracks.items():
            if router != source:
                track.relay(
                    [
                        ReplicaUsage(name, self._running.elsewhere(router, name))
                        for name in replicas
                    ],
                    [
                        TenantUse(
                            use.tenant,
                            self._asking.elsewhere(router, use.tenant),
                            use.requests,
                            use.tokens,
                        )
                        for use in tenants
                    ],
                )

    def __len__(self) -> int:
        return len(self._tracks)
