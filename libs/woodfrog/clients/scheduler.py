"""Scheduler: typed client of scheduler.v1, and the conversions that its servicer uses too."""

from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing
from dataclasses import asdict, fields

from woodfrog import rpc
from woodfrog.api.scheduler.v1 import placements_pb2 as pb
from woodfrog.api.scheduler.v1 import placements_pb2_grpc
from woodfrog.errors import InvalidArgument, Unavailable
from woodfrog.model.node import GpuFacts, ReplicaState
from woodfrog.model.placement import (
    ANYONE,
    MEMORY_MAX,
    PRICE_MAX,
    Acquired,
    Caller,
    ClusterView,
    ModelView,
    NodeView,
    PlannedModel,
    PlanView,
    Predictions,
    ReadyReplica,
    ReplicaUsage,
    ReplicaView,
    RouterReport,
    TenantUse,
    TrackUpdate,
    WhatIf,
)
from woodfrog.model.rung import Rung
from woodfrog.model.tenant import SHARE_MAX, SHARE_MIN

CALL_TIMEOUT_S = 5.0


class SchedulerClient:
    """`async with SchedulerClient("127.0.0.1:7001", router="router-1") as scheduler`."""

    def __init__(self, target: str, router: str) -> None:
        """`router` names this process: its placements end with its `track` stream."""
        self._target = target
        self._router = router

    async def __aenter__(self) -> "SchedulerClient":
        self._channel = rpc.open_channel(self._target)
        self._stub = placements_pb2_grpc.PlacementsStub(self._channel)  # type: ignore[no-untyped-call]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close(None)

    async def acquire(
        self,
        model: str,
        excluded: Collection[str] = (),
        caller: Caller = ANYONE,
        *,
        timeout_s: float,
    ) -> Acquired:
        """Cancelling it gives the wait up. `excluded` are replicas that just failed the caller.

        Raises NotFound MODEL_NOT_FOUND, ResourceExhausted NO_CAPACITY, FailedPrecondition NO_NODE_FITS, Unavailable
        CLIMB_FAILED, DeadlineExceeded.
        """
        request = pb.AcquireRequest(
            model=model,
            excluded_replica_ids=excluded,
            router=self._router,
            tenant=caller.tenant,
            share=caller.share,
        )
        return acquired(await rpc.call(self._stub.Acquire, request, timeout_s=timeout_s))

    async def release(self, placement_id: str, *, replica_failed: bool = False) -> None:
        """Idempotent."""
        request = pb.ReleaseRequest(placement_id=placement_id, replica_failed=replica_failed)
        await rpc.call(self._stub.Release, request, timeout_s=CALL_TIMEOUT_S)

    async def track(
        self, reports: AsyncIterator[RouterReport]
    ) -> AsyncGenerator[TrackUpdate, None]:
        """All ready replicas, then each change. Raises Unavailable when the stream breaks; it never just ends.

        `reports` says what runs here: first all, then what changed, soon after it did: a slot counts as taken until
        then. A request got by `acquire` counts among the first report's `started` that follows it.
        """

        async def requests() -> AsyncIterator[pb.TrackRequest]:
            yield pb.TrackRequest(router=self._router)
            async for report in reports:
                yield pb.TrackRequest(
                    router=self._router,
                    usage=map(usage_to_pb, report.usage),
                    tenants=map(tenant_use_to_pb, report.tenants),
                )

        async with aclosing(rpc.stream(self._stub.Track, requests())) as responses:
            async for response in responses:
                yield track_update(response)
        raise Unavailable("TRACK_ENDED", "the scheduler ended its stream; track it again")

    async def plan(self, given: WhatIf, *, timeout_s: float = CALL_TIMEOUT_S) -> PlanView:
        """What the scheduler would have idle replicas do. Raises InvalidArgument, Unavailable PLAN_FAILED."""
        said = {name: value for name, value in asdict(given).items() if value is not None}
        return plan_view(
            await rpc.call(self._stub.Plan, pb.PlanRequest(**said), timeout_s=timeout_s)
        )

    async def describe(self) -> ClusterView:
        response = await rpc.call(
            self._stub.Describe, pb.DescribeRequest(), timeout_s=CALL_TIMEOUT_S
        )
        return cluster_view(response)


def plan_view_to_pb(view: PlanView) -> pb.PlanResponse:
    models = [
        pb.PlannedModel(
            model=m.model,
            node=m.node,
            now=m.now,
            rung=m.rung.value,
            expected_s=m.expected_s,
            wake_s=m.wake_s,
            frozen_wake_s=m.frozen_wake_s,
            value=m.value,
            why=m.why,
        )
        for m in view.models
    ]
    return pb.PlanResponse(
        models=models, solver=view.solver, seconds=view.seconds, value=view.value
    )


def plan_view(message: pb.PlanResponse) -> PlanView:
    models = tuple(
        PlannedModel(
            m.model,
            m.node,
            m.now,
            Rung(m.rung),
            m.expected_s,
            m.wake_s,
            m.frozen_wake_s,
            m.value,
            m.why,
        )
        for m in message.models
    )
    return PlanView(models, message.solver, message.seconds, message.value)


def what_if(message: pb.PlanRequest) -> WhatIf:
    """Raises InvalidArgument."""
    given = {
        field.name: getattr(message, field.name)
        for field in fields(WhatIf)
        if message.HasField(field.name)
    }
    if any(
        not 0 <= value <= (MEMORY_MAX if name == "memory" else PRICE_MAX)
        for name, value in given.items()
    ):
        raise InvalidArgument(
            "BAD_FIELD",
            f"prices are numbers from 0 to {PRICE_MAX:g}, memory is one from 0 to {MEMORY_MAX:g}",
        )
    return WhatIf(**given)


def ready_to_pb(replica: ReadyReplica) -> pb.ReadyReplica:
    return pb.ReadyReplica(
        replica_id=replica.replica_id,
        model=replica.model,
        node=replica.node,
        socket_path=replica.socket_path,
        slots=replica.slots,
    )


def ready(message: pb.ReadyReplica) -> ReadyReplica:
    return ReadyReplica(
        replica_id=message.replica_id,
        model=message.model,
        node=message.node,
        socket_path=message.socket_path,
        slots=message.slots,
    )


def caller(message: pb.AcquireRequest) -> Caller:
    """Raises InvalidArgument."""
    if not message.HasField("share"):
        return Caller(message.tenant)
    if not SHARE_MIN <= message.share <= SHARE_MAX:
        raise InvalidArgument(
            "SHARE_INVALID",
            f"share is {message.share:g}, it must be {SHARE_MIN:g} to {SHARE_MAX:g}",
        )
    return Caller(message.tenant, message.share)


def acquired_to_pb(acquired: Acquired) -> pb.AcquireResponse:
    return pb.AcquireResponse(
        placement_id=acquired.placement_id,
        replica=ready_to_pb(acquired.replica),
        rung=acquired.rung.value,
        climb_ms=acquired.climb_ms,
        fallback_reason=acquired.fallback_reason,
        climb_traceparent=acquired.climb_traceparent,
    )


def acquired(message: pb.AcquireResponse) -> Acquired:
    return Acquired(
        placement_id=message.placement_id,
        replica=ready(message.replica),
        rung=Rung(message.rung),
        climb_ms=message.climb_ms,
        fallback_reason=message.fallback_reason,
        climb_traceparent=message.climb_traceparent,
    )


def usage_to_pb(usage: ReplicaUsage) -> pb.ReplicaUsage:
    return pb.ReplicaUsage(replica_id=usage.replica_id, active=usage.active, started=usage.started)


def usage(message: pb.ReplicaUsage) -> ReplicaUsage:
    return ReplicaUsage(
        replica_id=message.replica_id, active=message.active, started=message.started
    )


def report(message: pb.TrackRequest) -> RouterReport:
    return RouterReport(tuple(map(usage, message.usage)), tuple(map(tenant_use, message.tenants)))


def tenant_use_to_pb(use: TenantUse) -> pb.TenantUse:
    return pb.TenantUse(
        tenant=use.tenant, active=use.active, requests=use.requests, tokens=use.tokens
    )


def tenant_use(message: pb.TenantUse) -> TenantUse:
    return TenantUse(message.tenant, message.active, message.requests, message.tokens)


def track_update_to_pb(update: TrackUpdate) -> pb.TrackResponse:
    return pb.TrackResponse(
        full=update.full,
        ready=map(ready_to_pb, update.ready),
        gone=update.gone,
        ended=update.ended,
        elsewhere=map(usage_to_pb, update.elsewhere),
        tenants=map(tenant_use_to_pb, update.tenants),
    )


def track_update(message: pb.TrackResponse) -> TrackUpdate:
    return TrackUpdate(
        full=message.full,
        ready=tuple(map(ready, message.ready)),
        gone=tuple(message.gone),
        ended=tuple(message.ended),
        elsewhere=tuple(map(usage, message.elsewhere)),
        tenants=tuple(map(tenant_use, message.tenants)),
    )


def cluster_view_to_pb(view: ClusterView) -> pb.DescribeResponse:
    """What has no value yet is -1 there."""
    models = [
        pb.ModelView(
            model=model.model,
            rung=model.rung.value,
            replicas=[
                pb.ReplicaView(
                    replica_id=replica.replica_id,
                    node=replica.node,
                    state=replica.state.value,
                    active=replica.active,
                )
                for replica in model.replicas
            ],
            idle_s=-1 if model.idle_s is None else model.idle_s,
            predicted_ms=-1 if model.predicted_ms is None else model.predicted_ms,
            trouble=model.trouble,
            trouble_age_s=-1 if model.trouble_age_s is None else model.trouble_age_s,
        )
        for model in view.models
    ]
    nodes = [
        pb.NodeView(
            node=node.node,
            memory_bytes=node.memory_bytes,
            memory_promised_bytes=node.memory_promised_bytes,
            gpus=[
                pb.GpuFacts(
                    uuid=gpu.uuid,
                    memory_bytes=gpu.memory_bytes,
                    promised_bytes=gpu.promised_bytes,
                    weights=gpu.weights,
                )
                for gpu in node.gpus
            ],
            draining=node.draining,
            moving_count=node.moving,
            tenants=node.tenants,
        )
        for node in view.nodes
    ]
    told = pb.Predictions(count=view.predictions.count, error_p90=view.predictions.error_p90)
    return pb.DescribeResponse(models=models, nodes=nodes, predictions=told)


def cluster_view(message: pb.DescribeResponse) -> ClusterView:
    models = tuple(
        ModelView(
            model=model.model,
            rung=Rung(model.rung),
            replicas=tuple(
                ReplicaView(r.replica_id, r.node, ReplicaState(r.state), r.active)
                for r in model.replicas
            ),
            idle_s=None if model.idle_s < 0 else model.idle_s,
            predicted_ms=None if model.predicted_ms < 0 else model.predicted_ms,
            trouble=model.trouble,
            trouble_age_s=None if model.trouble_age_s < 0 else model.trouble_age_s,
        )
        for model in message.models
    )
    nodes = tuple(
        NodeView(
            node.node,
            node.memory_bytes,
            node.memory_promised_bytes,
            tuple(
                GpuFacts(gpu.uuid, gpu.memory_bytes, gpu.promised_bytes, tuple(gpu.weights))
                for gpu in node.gpus
            ),
            node.draining,
            node.moving_count,
            tuple(node.tenants),
        )
        for node in message.nodes
    )
    told = Predictions(message.predictions.count, message.predictions.error_p90)
    return ClusterView(models, nodes, told)
