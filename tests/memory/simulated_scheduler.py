"""A SIMULATED scheduler behind the real gRPC service: replicas are told to it, climbs are scripted, calls are noted.

What it tells routers of each other is the real scheduler's `Tracks`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from woodfrog import rpc
from woodfrog.api.scheduler.v1 import placements_pb2 as pb
from woodfrog.api.scheduler.v1 import placements_pb2_grpc
from woodfrog.clients import scheduler as conversions
from woodfrog.errors import NotFound, WoodfrogError
from woodfrog.model.placement import Acquired, ReadyReplica
from woodfrog.model.rung import Rung
from woodfrog.scheduler import tracks

SERVICE = "woodfrog.api.scheduler.v1.Placements"
_WAIT_S = 60.0


@dataclass(slots=True)
class Climb:
    """What an Acquire of a model that has no ready replica leads to."""

    replica: ReadyReplica | None = None
    error: WoodfrogError | None = None
    rung: Rung = Rung.FROZEN
    climb_ms: float = 100.0
    fallback_reason: str = ""
    traceparent: str = ""
    finish: asyncio.Event = field(default_factory=asyncio.Event)  # the climb takes until it is set
    announce: bool = True  # to the routers, as a scheduler would


class SimulatedScheduler(placements_pb2_grpc.PlacementsServicer):
    """`async with SimulatedScheduler() as scheduler`: serves on `scheduler.address`."""

    def __init__(self, listen: str = "127.0.0.1:0") -> None:
        self._listen = listen
        self.ready: dict[str, ReadyReplica] = {}
        self.climbs: dict[str, Climb] = {}  # by model
        self.acquires: list[pb.AcquireRequest] = []
        self.waiting = 0  #: Acquires under way
        self.waiting_most = 0
        self.cancelled = 0  #: Acquires whose caller gave up
        self.released: list[tuple[str, bool]] = []  # placement, replica failed
        self.active: dict[str, int] = {}  # by replica, as routers reported
        self.started: dict[str, int] = {}
        self.routers = 0  #: Track streams
        self._tracks = tracks.Tracks()
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> "SimulatedScheduler":
        self._server = rpc.Server(self._listen)
        await self._server.__aenter__()
        placements_pb2_grpc.add_PlacementsServicer_to_server(self, self._server.grpc)  # type: ignore[no-untyped-call]
        await self._server.start(SERVICE)
        self.address = f"127.0.0.1:{self._server.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)

    async def announce(self, *replicas: ReadyReplica) -> None:
        self.ready.update({replica.replica_id: replica for replica in replicas})
        await self._announce(replicas)

    async def withdraw(self, *replica_ids: str) -> None:
        for replica_id in replica_ids:
            self.ready.pop(replica_id, None)
        await self._announce(gone=replica_ids)

    async def end(self, *replica_ids: str) -> None:
        """As a scheduler tells of a node that it lost."""
        for replica_id in replica_ids:
            self.ready.pop(replica_id, None)
        await self._announce(gone=replica_ids, ended=replica_ids)

    async def until(self, condition: Callable[["SimulatedScheduler"], bool]) -> None:
        async with asyncio.timeout(_WAIT_S), self._changed:
            await self._changed.wait_for(lambda: condition(self))

    async def Acquire(self, request: pb.AcquireRequest, context: Any) -> pb.AcquireResponse:
        self.acquires.append(request)
        self.waiting += 1
        self.waiting_most = max(self.waiting_most, self.waiting)
        await self._moved()
        try:
            return conversions.acquired_to_pb(await self._acquired(request))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1
            await self._moved()

    async def Release(self, request: pb.ReleaseRequest, context: Any) -> pb.ReleaseResponse:
        self.released.append((request.placement_id, request.replica_failed))
        await self._moved()
        return pb.ReleaseResponse()

    async def Track(
        self, requests: AsyncIterator[pb.TrackRequest], context: Any
    ) -> AsyncIterator[pb.TrackResponse]:
        name = (await anext(requests)).router
        if self._tracks.get(name) is not None:
            self._tracks.leave(name)
        track = self._tracks.join(name, self.ready.values())
        hearing = asyncio.create_task(self._hear(name, track, requests))
        self.routers += 1
        await self._moved()
        try:
            async for update in track.updates():
                yield conversions.track_update_to_pb(update)
        finally:
            hearing.cancel()
            if self._tracks.get(name) is track:
                self._tracks.leave(name)
            self.routers -= 1
            await self._moved()

    async def _acquired(self, request: pb.AcquireRequest) -> Acquired:
        placement_id = f"placement-{len(self.acquires)}"
        for replica in self.ready.values():
            if (
                replica.model == request.model
                and replica.replica_id not in request.excluded_replica_ids
            ):
                return Acquired(placement_id, replica, Rung.SERVING)
        climb = self.climbs.get(request.model)
        if climb is None:
            raise NotFound("MODEL_NOT_FOUND", f"model {request.model!r} is not known")
        await climb.finish.wait()
        if climb.error is not None:
            raise climb.error
        assert climb.replica is not None
        if climb.announce:
            await self.announce(climb.replica)
        return Acquired(
            placement_id,
            climb.replica,
            climb.rung,
            climb.climb_ms,
            climb.fallback_reason,
            climb.traceparent,
        )

    async def _hear(
        self, router: str, track: tracks.Track, requests: AsyncIterator[pb.TrackRequest]
    ) -> None:
        async for request in requests:
            if self._tracks.get(router) is track:
                self._tracks.report(router, conversions.report(request))
            for usage in map(conversions.usage, request.usage):
                self.active[usage.replica_id] = usage.active
                name = usage.replica_id
                self.started[name] = self.started.get(name, 0) + usage.started
            await self._moved()

    async def _announce(
        self,
        ready: Iterable[ReadyReplica] = (),
        gone: Iterable[str] = (),
        ended: Iterable[str] = (),
    ) -> None:
        self._tracks.announce(ready, gone, ended)
        await self._moved()

    async def _moved(self) -> None:
        async with self._changed:
            self._changed.notify_all()
