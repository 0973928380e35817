"""Node agent: typed client of node_agent.v1, and the conversions that its servicer uses too."""

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace

from woodfrog import rpc
from woodfrog.api.node_agent.v1 import replicas_pb2 as pb
from woodfrog.api.node_agent.v1 import replicas_pb2_grpc
from woodfrog.clients.weight_fs import FETCH_TIMEOUT_S
from woodfrog.errors import ResourceExhausted, Unavailable, WoodfrogError
from woodfrog.model.node import (
    Climbed,
    GpuFacts,
    NodeFacts,
    NodeUpdate,
    Replica,
    ReplicaState,
    Resident,
    Stage,
)
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec

DESCEND_TIMEOUT_S = 60.0
DRAIN_TIMEOUT_S = 10.0

#: Why a node takes no new replica now, or none of this model.
REFUSED = ("NODE_FULL", "NODE_DRAINING", "NODE_OF_OTHERS")


class NodeAgentClient:
    """`async with NodeAgentClient("127.0.0.1:7010") as agent`."""

    def __init__(self, target: str) -> None:
        self._target = target

    async def __aenter__(self) -> "NodeAgentClient":
        self._channel = rpc.open_channel(self._target)
        self._stub = replicas_pb2_grpc.ReplicasStub(self._channel)  # type: ignore[no-untyped-call]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close(None)

    async def climb(
        self,
        spec: ModelSpec,
        snapshot: SnapshotPointer | None,
        replica_id: str | None,
        *,
        request_id: str,
        timeout_s: float,
        yields: Sequence[str] = (),
        term: int = 0,
    ) -> Climbed:
        """`yields`: replicas at rest on its GPUs, in the order in which they make room. `term` of who leads, if it is its own order.

        Raises ResourceExhausted with one of `REFUSED` (`refused` reads the facts), FailedPrecondition REPLICA_GONE, Unavailable."""
        request = pb.ClimbRequest(
            request_id=request_id,
            spec=spec.encode(),
            snapshot=snapshot.encode() if snapshot else b"",
            replica_id=replica_id or "",
            yields=yields,
            term=term,
        )
        return climbed(await rpc.call(self._stub.Climb, request, timeout_s=timeout_s))

    async def descend(self, replica_id: str, rung: Rung, term: int = 0) -> Rung:
        """Where it is now. Raises FailedPrecondition REPLICA_BUSY while it answers requests."""
        request = pb.DescendRequest(replica_id=replica_id, rung=rung.value, term=term)
        response = await rpc.call(self._stub.Descend, request, timeout_s=DESCEND_TIMEOUT_S)
        return Rung(response.rung)

    async def prefetch(
        self, spec: ModelSpec, snapshot: SnapshotPointer | None, term: int = 0
    ) -> int:
        """Bytes that came from the store, once weights and snapshot are whole on the node. Cancelling gives it up.

        Raises NotFound MANIFEST_NOT_FOUND, ResourceExhausted CACHE_FULL, DataLoss CHUNK_DAMAGED, Unavailable.
        """
        request = pb.PrefetchRequest(
            spec=spec.encode(), snapshot=snapshot.encode() if snapshot else b"", term=term
        )
        response = await rpc.call(self._stub.Prefetch, request, timeout_s=2 * FETCH_TIMEOUT_S)
        fetched_bytes: int = response.fetched_bytes
        return fetched_bytes

    async def drain(self, draining: bool) -> None:
        """It takes no climb any more, or takes climbs again; kept over a restart of the agent."""
        request = pb.DrainRequest(draining=draining)
        await rpc.call(self._stub.Drain, request, timeout_s=DRAIN_TIMEOUT_S)

    async def watch(self) -> AsyncGenerator[NodeUpdate, None]:
        """First everything, then each change. Raises Unavailable when the stream breaks; it never just ends."""
        async with aclosing(rpc.stream(self._stub.Watch, pb.WatchRequest())) as responses:
            async for response in responses:
                yield update(response)
        raise Unavailable("WATCH_ENDED", "the node agent ended its stream; watch it again")


def replica_to_pb(replica: Replica) -> pb.Replica:
    return pb.Replica(
        replica_id=replica.replica_id,
        model=replica.model,
        weights=replica.weights,
        state=replica.state.value,
        socket_path=replica.socket_path,
        slots=replica.slots,
        node=replica.node,
        memory_bytes=replica.memory_bytes,
        gpu=replica.gpu,
        gpu_bytes=replica.gpu_bytes,
        own_weights=replica.own_weights,
        model_create_time=replica.model_create_time,
    )


def replica(message: pb.Replica) -> Replica:
    return Replica(
        replica_id=message.replica_id,
        model=message.model,
        weights=message.weights,
        state=ReplicaState(message.state),
        socket_path=message.socket_path,
        slots=message.slots,
        node=message.node,
        memory_bytes=message.memory_bytes,
        gpu=message.gpu,
        gpu_bytes=message.gpu_bytes,
        own_weights=message.own_weights,
        model_create_time=message.model_create_time,
    )


def facts_to_pb(facts: NodeFacts) -> pb.NodeFacts:
    return pb.NodeFacts(
        node=facts.node,
        fingerprint=json.dumps(dict(facts.fingerprint), sort_keys=True).encode(),
        memory_bytes=facts.memory_bytes,
        memory_promised_bytes=facts.memory_promised_bytes,
        replica_count_max=facts.replica_count_max,
        draining=facts.draining,
        gpus=[
            pb.GpuFacts(
                uuid=gpu.uuid,
                memory_bytes=gpu.memory_bytes,
                promised_bytes=gpu.promised_bytes,
                weights=gpu.weights,
                at_hand=gpu.at_hand,
                pinned_bytes=gpu.pinned_bytes,
            )
            for gpu in facts.gpus
        ],
        disk_bytes=facts.disk_bytes,
        tenants=facts.tenants,
    )


def facts(message: pb.NodeFacts) -> NodeFacts:
    return NodeFacts(
        node=message.node,
        fingerprint=json.loads(message.fingerprint or b"{}"),
        memory_bytes=message.memory_bytes,
        memory_promised_bytes=message.memory_promised_bytes,
        replica_count_max=message.replica_count_max,
        draining=message.draining,
        gpus=tuple(
            GpuFacts(
                gpu.uuid,
                gpu.memory_bytes,
                gpu.promised_bytes,
                tuple(gpu.weights),
                tuple(gpu.at_hand),
                gpu.pinned_bytes,
            )
            for gpu in message.gpus
        ),
        disk_bytes=message.disk_bytes,
        tenants=tuple(message.tenants),
    )


def resident_to_pb(resident: Resident) -> pb.Resident:
    return pb.Resident(
        manifest_digest=resident.manifest,
        size_bytes=resident.size_bytes,
        disk_bytes=resident.disk_bytes,
        page_cache_bytes=resident.page_cache_bytes,
        complete=resident.complete,
    )


def resident(message: pb.Resident) -> Resident:
    return Resident(
        manifest=message.manifest_digest,
        size_bytes=message.size_bytes,
        disk_bytes=message.disk_bytes,
        page_cache_bytes=message.page_cache_bytes,
        complete=message.complete,
    )


def update_to_pb(update: NodeUpdate) -> pb.WatchResponse:
    return pb.WatchResponse(
        full=update.full,
        facts=facts_to_pb(update.facts) if update.facts else None,
        replicas=[replica_to_pb(replica) for replica in update.replicas],
        gone=update.gone,
        residents=[resident_to_pb(resident) for resident in update.residents],
        residents_gone=update.residents_gone,
    )


def update(message: pb.WatchResponse) -> NodeUpdate:
    return NodeUpdate(
        full=message.full,
        facts=facts(message.facts) if message.HasField("facts") else None,
        replicas=tuple(replica(each) for each in message.replicas),
        gone=tuple(message.gone),
        residents=tuple(resident(each) for each in message.residents),
        residents_gone=tuple(message.residents_gone),
    )


def climbed_to_pb(climbed: Climbed) -> pb.ClimbResponse:
    return pb.ClimbResponse(
        replica=replica_to_pb(climbed.replica),
        from_rung=climbed.from_rung.value,
        stages=[
            pb.Stage(name=stage.name, start_s=stage.start_s, duration_s=stage.duration_s)
            for stage in climbed.stages
        ],
        fallback_reason=climbed.fallback_reason,
    )


def climbed(message: pb.ClimbResponse) -> Climbed:
    return Climbed(
        replica=replica(message.replica),
        from_rung=Rung(message.from_rung),
        stages=tuple(Stage(s.name, s.start_s, s.duration_s) for s in message.stages),
        fallback_reason=message.fallback_reason,
    )


def node_full(facts: NodeFacts, reason: str, why: str) -> ResourceExhausted:
    """The refusal of a climb with the facts that it rests on; `reason` is one of `REFUSED`."""
    return ResourceExhausted(
        reason,
        f"node {facts.node!r} takes no other replica: {why}; ask another node",
        node=facts.node,
        why=why,
        memory_bytes=facts.memory_bytes,
        memory_promised_bytes=facts.memory_promised_bytes,
        replica_count_max=facts.replica_count_max,
        draining=int(facts.draining),
        tenants=json.dumps(facts.tenants),
        gpus=json.dumps([asdict(gpu) for gpu in facts.gpus]),
    )


def refused(error: WoodfrogError, known: NodeFacts) -> NodeFacts | None:
    """The facts of the node that refused a climb, on top of those known; None when `error` is not a refusal."""
    if error.reason not in REFUSED:
        return None
    metadata = error.metadata
    of_others = error.reason == "NODE_OF_OTHERS" and "tenants" in metadata
    return replace(
        known,
        memory_bytes=int(metadata.get("memory_bytes", known.memory_bytes)),
        memory_promised_bytes=int(
            metadata.get("memory_promised_bytes", known.memory_promised_bytes)
        ),
        replica_count_max=int(metadata.get("replica_count_max", known.replica_count_max)),
        draining=known.draining or error.reason == "NODE_DRAINING",
        tenants=tuple(json.loads(metadata["tenants"])) if of_others else known.tenants,
        gpus=_gpus(metadata["gpus"]) if "gpus" in metadata else known.gpus,
    )


def _gpus(text: str) -> tuple[GpuFacts, ...]:
    return tuple(
        GpuFacts(
            **{**gpu, "weights": tuple(gpu["weights"]), "at_hand": tuple(gpu.get("at_hand", ()))}
        )
        for gpu in json.loads(text)
    )
