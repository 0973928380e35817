"""A SIMULATED node agent behind the real gRPC service: it keeps true books, but its replicas are names without processes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from woodfrog import rpc
from woodfrog.api.node_agent.v1 import replicas_pb2 as pb
from woodfrog.api.node_agent.v1 import replicas_pb2_grpc
from woodfrog.catalog import Catalog, NodeRecord
from woodfrog.clients import node_agent as convert
from woodfrog.errors import FailedPrecondition, WoodfrogError
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

SERVICE = "woodfrog.api.node_agent.v1.Replicas"
PRINT = {"kernel": "simulated"}
_LEASE_S = 2
_WAIT_S = 60.0


class SimulatedNodeAgent(replicas_pb2_grpc.ReplicasServicer):
    """`async with SimulatedNodeAgent("a", catalog) as agent`: registered and serving until it leaves or is killed."""

    def __init__(
        self, node: str, catalog: Catalog, memory_bytes: int = 16 << 30, gpu_bytes: int = 0
    ) -> None:
        """With one GPU of so many bytes, if any. Who rests there yields: it is parked when another needs the room."""
        self.node = node
        self.memory_bytes = memory_bytes
        self.gpu_bytes = gpu_bytes
        self.hidden_bytes = 0  #: promised, but never told: what a lagging stream looks like
        self.replicas: dict[str, Replica] = {}
        self.residents: dict[str, Resident] = {}
        self.busy: set[str] = set()  #: replicas that answer requests just now
        self.climbs: list[pb.ClimbRequest] = []
        self.descents: list[pb.DescendRequest] = []
        self.prefetches: list[pb.PrefetchRequest] = []
        self.draining = False
        self.fetch_gate = asyncio.Event()  #: prefetches end once it is set
        self.fetch_gate.set()
        self.fetch_failures: list[WoodfrogError] = []  #: of the next prefetches
        self.traceparents: list[str] = []  #: of the climbs
        self.gate = asyncio.Event()  #: climbs end once it is set
        self.gate.set()
        self.refusals: list[WoodfrogError] = []  #: of the next climbs, before they begin
        self.failures: list[WoodfrogError] = []  #: of the next climbs, once they go
        self._catalog = catalog
        self._watchers: set[asyncio.Queue[NodeUpdate]] = set()
        self._changed = asyncio.Condition()
        self._answers: dict[str, asyncio.Task[Climbed]] = {}  # by request id
        self._stack = AsyncExitStack()
        self._weights_bytes: dict[str, int] = {}  # by digest
        self._lives = 0

    async def __aenter__(self) -> "SimulatedNodeAgent":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()
        await self._stack.aclose()

    async def start(self) -> None:
        """A new life without replicas, on a new port."""
        await self._stack.aclose()
        self._lives += 1
        self._server = rpc.Server("127.0.0.1:0")
        replicas_pb2_grpc.add_ReplicasServicer_to_server(self, self._server.grpc)  # type: ignore[no-untyped-call]
        await self._server.start(SERVICE)
        record = NodeRecord(self.node, f"127.0.0.1:{self._server.port}")
        await self._stack.enter_async_context(self._catalog.register_node(record, _LEASE_S))

    async def kill(self) -> None:
        """Its connections break, its replicas are gone; its lease stays for now."""
        await self._server.stop(None)
        for task in self._answers.values():
            task.cancel()
        await asyncio.gather(*self._answers.values(), return_exceptions=True)
        self._answers.clear()
        self.replicas.clear()

    async def until(self, condition: Callable[["SimulatedNodeAgent"], bool]) -> None:
        async with asyncio.timeout(_WAIT_S), self._changed:
            await self._changed.wait_for(lambda: condition(self))

    async def end(self, replica_id: str) -> None:
        """Its process died."""
        del self.replicas[replica_id]
        await self._tell(NodeUpdate(False, self.facts, gone=(replica_id,)))

    @property
    def facts(self) -> NodeFacts:
        gpus = (self._gpu,) if self.gpu_bytes else ()
        return NodeFacts(
            self.node, PRINT, self.memory_bytes, self._promised_bytes, 8, self.draining, gpus
        )

    @property
    def _gpu(self) -> GpuFacts:
        there = [replica for replica in self.replicas.values() if replica.gpu]
        users = [replica for replica in there if replica.state is not ReplicaState.PARKED]
        weights = sorted({replica.weights for replica in users})
        promised = sum(replica.gpu_bytes for replica in there)
        promised += sum(self._weights_bytes[each] for each in weights)
        return GpuFacts(f"GPU-{self.node}", self.gpu_bytes, promised, tuple(weights))

    @property
    def _promised_bytes(self) -> int:
        return sum(replica.memory_bytes for replica in self.replicas.values())

    async def Climb(self, request: pb.ClimbRequest, context: Any) -> pb.ClimbResponse:
        metadata = dict(context.invocation_metadata())
        self.traceparents.append(str(metadata.get("traceparent", "")))
        self.climbs.append(request)
        if request.request_id not in self._answers:
            self._answers[request.request_id] = asyncio.create_task(self._climb(request))
        await self._moved()
        return convert.climbed_to_pb(await asyncio.shield(self._answers[request.request_id]))

    async def Descend(self, request: pb.DescendRequest, context: Any) -> pb.DescendResponse:
        self.descents.append(request)
        await self._moved()
        replica = self.replicas.get(request.replica_id)
        if request.replica_id in self.busy:
            raise FailedPrecondition("REPLICA_BUSY", "it answers requests; it serves on")
        if replica is not None:
            await self._put(replace(replica, state=ReplicaState.DESCENDING))
            if request.rung == Rung.FROZEN.value:
                await self.end(request.replica_id)
            else:
                return pb.DescendResponse(rung=(await self._rest(replica, request.rung)).value)
        return pb.DescendResponse(rung=request.rung)

    async def _rest(self, replica: Replica, rung: str) -> Rung:
        """It keeps nothing of its own on the GPU."""
        state = ReplicaState(rung) if replica.gpu else ReplicaState.PARKED
        await self._put(replace(replica, state=state, gpu_bytes=0))
        return Rung(state.value)

    async def Prefetch(self, request: pb.PrefetchRequest, context: Any) -> pb.PrefetchResponse:
        self.prefetches.append(request)
        await self._moved()
        await self.fetch_gate.wait()
        if self.fetch_failures:
            raise self.fetch_failures.pop(0)
        spec = ModelSpec.decode(request.spec)
        sizes = {spec.weights: spec.weights_bytes}
        if request.snapshot:
            pointer = SnapshotPointer.decode(request.snapshot)
            sizes[pointer.manifest] = pointer.size_bytes
        found = tuple(Resident(*each, each[1], each[1], complete=True) for each in sizes.items())
        self.residents.update({resident.manifest: resident for resident in found})
        await self._tell(NodeUpdate(False, residents=found))
        return pb.PrefetchResponse(fetched_bytes=sum(sizes.values()))

    async def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainResponse:
        self.draining = request.draining
        await self._tell(NodeUpdate(False, self.facts))
        return pb.DrainResponse()

    async def Watch(
        self, request: pb.WatchRequest, context: Any
    ) -> AsyncIterator[pb.WatchResponse]:
        queue: asyncio.Queue[NodeUpdate] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            replicas, residents = tuple(self.replicas.values()), tuple(self.residents.values())
            yield convert.update_to_pb(NodeUpdate(True, self.facts, replicas, residents=residents))
            while True:
                yield convert.update_to_pb(await queue.get())
        finally:
            self._watchers.discard(queue)

    async def _climb(self, request: pb.ClimbRequest) -> Climbed:
        spec = ModelSpec.decode(request.spec)
        pointer = SnapshotPointer.decode(request.snapshot) if request.snapshot else None
        if self.draining:
            raise convert.node_full(self.facts, "NODE_DRAINING", "it drains")
        if self.refusals:
            raise self.refusals.pop(0)
        if request.replica_id:
            replica = self.replicas.get(request.replica_id)
            if replica is None:
                raise FailedPrecondition("REPLICA_GONE", f"{request.replica_id} is gone")
            from_rung = Rung(replica.state.value)
            replica = await self._on_gpu(spec, replica)
        else:
            replica, from_rung = await self._new(spec), self._rung(pointer)
        await self._put(replace(replica, state=ReplicaState.CLIMBING))
        await self.gate.wait()
        if self.failures:
            await self.end(replica.replica_id)
            raise self.failures.pop(0)
        serving = replace(replica, state=ReplicaState.SERVING)
        await self._put(serving)
        stages = () if request.replica_id else (Stage("simulated", 0.0, 0.001),)
        return Climbed(serving, from_rung, stages)

    async def _new(self, spec: ModelSpec) -> Replica:
        """Promises its memory, or refuses."""
        taken = self._promised_bytes + self.hidden_bytes
        if spec.memory_bytes > self.memory_bytes - taken:
            facts = replace(self.facts, memory_promised_bytes=taken)
            raise convert.node_full(facts, "NODE_FULL", f"{taken} bytes are promised")
        name = f"{self.node}-{self._lives}-{len(self.climbs)}"
        replica = Replica(
            name,
            spec.name,
            spec.weights,
            ReplicaState.CLIMBING,
            f"/simulated/{name}.sock",
            spec.slots,
            self.node,
            spec.memory_bytes,
            model_create_time=spec.create_time,
        )
        replica = await self._on_gpu(spec, replica)
        self.replicas[name] = replica
        return replica

    async def _on_gpu(self, spec: ModelSpec, replica: Replica) -> Replica:
        """Promises its memory there, if it needs any, or refuses."""
        if not spec.gpu_bytes:
            return replica
        self._weights_bytes[spec.weights] = spec.weights_bytes
        hot = [each for each in self.replicas.values() if each.state is ReplicaState.HOT]
        others = [each for each in hot if each.replica_id != replica.replica_id]
        while self._lacks(spec):
            if not others:
                raise convert.node_full(self.facts, "NODE_FULL", "its GPU is full")
            await self._rest(others.pop(0), Rung.PARKED.value)
        return replace(replica, gpu=self._gpu.uuid, gpu_bytes=spec.gpu_bytes)

    def _lacks(self, spec: ModelSpec) -> bool:
        gpu = self._gpu
        copy_bytes = 0 if spec.weights in gpu.weights else spec.weights_bytes
        return spec.gpu_bytes + copy_bytes > gpu.memory_bytes - gpu.promised_bytes

    def _rung(self, pointer: SnapshotPointer | None) -> Rung:
        if pointer is None:
            return Rung.ABSENT
        resident = self.residents.get(pointer.manifest)
        return Rung.FROZEN if resident is not None and resident.complete else Rung.STORED

    async def _put(self, replica: Replica) -> None:
        self.replicas[replica.replica_id] = replica
        await self._tell(NodeUpdate(False, self.facts, (replica,)))

    async def _tell(self, update: NodeUpdate) -> None:
        for queue in self._watchers:
            queue.put_nowait(update)
        await self._moved()

    async def _moved(self) -> None:
        async with self._changed:
            self._changed.notify_all()
