"""Check, ask, answer. Errors are raised as woodfrog.errors classes; `rpc.Server` translates them."""

from collections.abc import AsyncIterator

from woodfrog.api.node_agent.v1 import replicas_pb2, replicas_pb2_grpc
from woodfrog.clients import node_agent as convert
from woodfrog.errors import InvalidArgument
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.node_agent.drain import Drain
from woodfrog.node_agent.engines import ENGINES
from woodfrog.node_agent.fence import Fence
from woodfrog.node_agent.loop import NodeLoop
from woodfrog.node_agent.prefetch import Prefetcher
from woodfrog.node_agent.state import Order


class ReplicasServicer(replicas_pb2_grpc.ReplicasServicer):
    def __init__(self, loop: NodeLoop, prefetcher: Prefetcher, drain: Drain) -> None:
        self._loop = loop
        self._fence = Fence()
        self._prefetcher = prefetcher
        self._drain = drain

    async def Climb(
        self, request: replicas_pb2.ClimbRequest, context: object
    ) -> replicas_pb2.ClimbResponse:
        try:
            spec = ModelSpec.decode(request.spec)
            pointer = SnapshotPointer.decode(request.snapshot) if request.snapshot else None
        except ValueError as error:
            raise InvalidArgument("BAD_CLIMB", f"the climb cannot be read: {error}") from None
        if not request.request_id:
            raise InvalidArgument("BAD_CLIMB", "the climb has no request id; give it one")
        if spec.engine not in ENGINES:
            raise InvalidArgument("ENGINE_UNKNOWN", f"this node has no engine {spec.engine!r}")
        self._fence.check(request.term)
        order = Order(spec, pointer, request.replica_id, tuple(request.yields))
        climbed = await self._loop.climb(request.request_id, order)
        return convert.climbed_to_pb(climbed)

    async def Descend(
        self, request: replicas_pb2.DescendRequest, context: object
    ) -> replicas_pb2.DescendResponse:
        if request.rung not in (Rung.HOT.value, Rung.PARKED.value, Rung.FROZEN.value):
            raise InvalidArgument(
                "BAD_RUNG", f"a replica descends to hot, parked or frozen, not {request.rung!r}"
            )
        self._fence.check(request.term)
        rung = await self._loop.descend(request.replica_id, Rung(request.rung))
        return replicas_pb2.DescendResponse(rung=rung.value)

    async def Prefetch(
        self, request: replicas_pb2.PrefetchRequest, context: object
    ) -> replicas_pb2.PrefetchResponse:
        try:
            spec = ModelSpec.decode(request.spec)
            pointer = SnapshotPointer.decode(request.snapshot) if request.snapshot else None
        except ValueError as error:
            raise InvalidArgument("BAD_PREFETCH", f"the prefetch cannot be read: {error}") from None
        self._fence.check(request.term)
        fetched_bytes = await self._prefetcher.prefetch(spec, pointer)
        return replicas_pb2.PrefetchResponse(fetched_bytes=fetched_bytes)

    async def Drain(
        self, request: replicas_pb2.DrainRequest, context: object
    ) -> replicas_pb2.DrainResponse:
        self._drain.set(request.draining)
        return replicas_pb2.DrainResponse()

    async def Watch(
        self, request: replicas_pb2.WatchRequest, context: object
    ) -> AsyncIterator[replicas_pb2.WatchResponse]:
        async for update in self._loop.watch():
            yield convert.update_to_pb(update)
