"""Check, ask, answer. Errors are raised as woodfrog.errors classes; `rpc.Server` translates them."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc

from woodfrog.api.scheduler.v1 import placements_pb2 as pb
from woodfrog.api.scheduler.v1 import placements_pb2_grpc
from woodfrog.clients import scheduler as convert
from woodfrog.errors import InvalidArgument
from woodfrog.model.placement import RouterReport
from woodfrog.scheduler import events as on
from woodfrog.scheduler.loop import SchedulerLoop

Context = grpc.aio.ServicerContext[object, object]


class PlacementsServicer(placements_pb2_grpc.PlacementsServicer):
    def __init__(self, loop: SchedulerLoop) -> None:
        self._loop = loop

    async def Acquire(self, request: pb.AcquireRequest, context: Context) -> pb.AcquireResponse:
        acquired = await self._loop.acquire(
            request.model,
            frozenset(request.excluded_replica_ids),
            request.router,
            context.time_remaining(),
            convert.caller(request),
        )
        return convert.acquired_to_pb(acquired)

    async def Release(self, request: pb.ReleaseRequest, context: Context) -> pb.ReleaseResponse:
        self._loop.submit(on.Released(request.placement_id, request.replica_failed))
        return pb.ReleaseResponse()

    async def Track(
        self, requests: AsyncIterator[pb.TrackRequest], context: Context
    ) -> AsyncIterator[pb.TrackResponse]:
        first = await anext(requests, None)
        if first is None or not first.router:
            raise InvalidArgument("ROUTER_UNNAMED", "the first message must name the router")
        reports = _reports(first, requests)
        async with aclosing(self._loop.track(first.router, reports)) as updates:
            async for update in updates:
                yield convert.track_update_to_pb(update)

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        return convert.cluster_view_to_pb(self._loop.describe())

    async def Plan(self, request: pb.PlanRequest, context: Context) -> pb.PlanResponse:
        return convert.plan_view_to_pb(await self._loop.what_if(convert.what_if(request)))


async def _reports(
    first: pb.TrackRequest, rest: AsyncIterator[pb.TrackRequest]
) -> AsyncIterator[RouterReport]:
    yield convert.report(first)
    async for request in rest:
        yield convert.report(request)
