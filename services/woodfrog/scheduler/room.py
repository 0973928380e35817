"""GPU memory: what a replica needs, where there is room for it, and what comes free when one goes. Pure.

Weights lie on a GPU once, however many replicas there use them, and go with the last of these. One that was restored on
another GPU than its snapshot is from has weights of its own instead (ADR 0017). A replica that rests yields: its node
lowers it further when another needs what it holds.
"""

from collections.abc import Collection
from dataclasses import replace

from woodfrog.model.node import GpuFacts, NodeFacts, Replica, ReplicaState
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler.view import RESTING, NodeRecord, ReplicaRecord


def sharable(spec: ModelSpec, uuid: str, replica: Replica | None, home: str) -> str:
    """Digest of the weights that it can share on that GPU: `replica`, or a new one from a snapshot of the GPU `home`.

    Empty when it has its own there.
    """
    own = replica.own_weights if replica is not None else home not in ("", uuid)
    return "" if own else spec.weights


def need_bytes(
    spec: ModelSpec, gpu: GpuFacts, replica: Replica | None = None, home: str = ""
) -> int:
    """What one that serves takes of it, beyond what `replica` holds there, and the weights that it finds there."""
    held_bytes = replica.gpu_bytes if replica is not None else 0
    shared = sharable(spec, gpu.uuid, replica, home)
    if not shared:
        return max(0, spec.gpu_bytes + spec.weights_bytes - held_bytes)
    weights_bytes = 0 if shared in gpu.weights else spec.weights_bytes
    return max(0, spec.gpu_bytes - held_bytes) + weights_bytes


def gpus_of(node: NodeRecord, replica: Replica | None) -> tuple[GpuFacts, ...]:
    """Where it may serve: on the GPU that it is on, or on any."""
    if replica is None or not replica.gpu:
        return node.facts.gpus
    return tuple(gpu for gpu in node.facts.gpus if gpu.uuid == replica.gpu)


def best_gpu(
    node: NodeRecord, spec: ModelSpec, replica: Replica | None = None, home: str = ""
) -> tuple[GpuFacts, int] | None:
    """With what it takes there: the one on which that is least, then the emptiest. None when none has room.

    `replica` is to be thawed, and takes less; a new one is from a snapshot of the GPU `home`.
    """
    if not spec.gpu_bytes:
        return None
    best: tuple[GpuFacts, int] | None = None
    best_cost = (0, 0, "")
    for gpu in gpus_of(node, replica):
        wanted = sharable(spec, gpu.uuid, replica, home)
        need, free = need_bytes(spec, gpu, replica, home), room_bytes(node, gpu, wanted, replica)
        cost = (need, -free, gpu.uuid)
        if need <= free and (best is None or cost < best_cost):
            best, best_cost = (gpu, need), cost
    return best


def room_bytes(
    node: NodeRecord,
    gpu: GpuFacts,
    wanted: str,
    thawed: Replica | None,
    leaving: Collection[Replica] = (),
) -> int:
    """Free for a replica with the weights `wanted` once all others that rest have yielded, and these have left."""
    clearing = Clearing(node, gpu, wanted, thawed)
    for replica in leaving:
        clearing.leave(replica)
    return clearing.room_bytes


class Clearing:
    """A GPU on which all that rest have yielded, as others leave it one by one; `wanted` weights stay."""

    def __init__(
        self, node: NodeRecord, gpu: GpuFacts, wanted: str, thawed: Replica | None
    ) -> None:
        self._node, self._gpu, self._wanted = node, gpu, wanted
        self._users: dict[str, int] = {}
        self._gone: set[str] = set()
        self.room_bytes = node.free_gpu_bytes(gpu.uuid)
        on_it = [each for each in node.replicas.values() if each.replica.gpu == gpu.uuid]
        for record in on_it:
            if _shares(record.replica):
                weights = record.replica.weights
                self._users[weights] = self._users.get(weights, 0) + 1
        spared = thawed.replica_id if thawed is not None else ""
        for record in on_it:
            rests = record.replica.state in RESTING and record.climb is None
            if rests and record.descending is None and record.replica.replica_id != spared:
                self.leave(record.replica)

    def leave(self, replica: Replica) -> None:
        """What it holds comes free, and its weights with their last user. Once for each replica."""
        if replica.gpu != self._gpu.uuid or replica.replica_id in self._gone:
            return
        self._gone.add(replica.replica_id)
        self.room_bytes += replica.gpu_bytes
        weights = replica.weights
        if _shares(replica) and weights in self._users:
            self._users[weights] -= 1
            if (
                not self._users[weights]
                and weights != self._wanted
                and weights in self._gpu.weights
            ):
                self.room_bytes += _size(self._node, weights)


def _shares(replica: Replica) -> bool:
    """Whether it uses the weights that lie on its GPU."""
    return replica.state is not ReplicaState.PARKED and not replica.own_weights


def yields(node: NodeRecord) -> tuple[str, ...]:
    """Who rests on its GPUs, in the order in which they are to make room."""
    resting = [
        record
        for record in node.replicas.values()
        if record.replica.gpu and record.replica.state in RESTING
    ]
    return tuple(record.replica.replica_id for record in sorted(resting, key=rest_order))


def rest_order(record: ReplicaRecord) -> tuple[bool, bool, float, float, str]:
    """Who makes room first: who rests already, then by what the plan gives for it, then the longest idle.

    Last who is to be kept hot.
    """
    serving = record.replica.state is ReplicaState.SERVING
    return record.kept, serving, record.value, record.used, record.replica.replica_id


def _freed_bytes(node: NodeRecord, gpu: GpuFacts, leaving: Collection[Replica]) -> int:
    """Of its memory, once these replicas are gone."""
    orphaned = _orphaned(node, gpu, leaving)
    private = sum(replica.gpu_bytes for replica in leaving if replica.gpu == gpu.uuid)
    return private + sum(_size(node, weights) for weights in orphaned)


def load(name: str, node: NodeRecord) -> tuple[int, int, str]:
    """Who comes first of nodes where a climb takes equally long: bytes of weights that replicas there want near, replicas, name."""
    wanted = {record.replica.weights for record in node.replicas.values()}
    count = len(node.replicas) + node.reserved_count
    return sum(_size(node, weights) for weights in wanted), count, name


def facts_with(
    facts: NodeFacts, spec: ModelSpec, replica: Replica, before: Replica | None
) -> NodeFacts:
    """As the node will tell them once it counts a replica that serves now; `before` is what they count of it."""
    held_bytes = before.gpu_bytes if before is not None else 0

    def with_it(gpu: GpuFacts) -> GpuFacts:
        lies = spec.weights in gpu.weights or replica.own_weights
        more_bytes = replica.gpu_bytes - held_bytes + (0 if lies else spec.weights_bytes)
        weights = gpu.weights if lies else (*gpu.weights, spec.weights)
        return replace(gpu, promised_bytes=gpu.promised_bytes + more_bytes, weights=weights)

    new_bytes = replica.memory_bytes if before is None else 0
    return replace(
        facts,
        memory_promised_bytes=facts.memory_promised_bytes + new_bytes,
        gpus=tuple(with_it(gpu) if gpu.uuid == replica.gpu else gpu for gpu in facts.gpus),
    )


def facts_without(node: NodeRecord, replica: Replica) -> NodeFacts:
    """As the node will tell them once the replica is gone."""
    facts = facts_off_gpu(node, replica)
    promised_bytes = max(0, facts.memory_promised_bytes - replica.memory_bytes)
    return replace(facts, memory_promised_bytes=promised_bytes)


def facts_off_gpu(node: NodeRecord, replica: Replica) -> NodeFacts:
    """As the node will tell them once the replica has left its GPU."""

    def without_it(gpu: GpuFacts) -> GpuFacts:
        orphaned = _orphaned(node, gpu, (replica,))
        return replace(
            gpu,
            promised_bytes=max(0, gpu.promised_bytes - _freed_bytes(node, gpu, (replica,))),
            weights=tuple(weights for weights in gpu.weights if weights not in orphaned),
            at_hand=tuple(sorted(orphaned.union(gpu.at_hand))),
        )

    gpus = (without_it(gpu) if gpu.uuid == replica.gpu else gpu for gpu in node.facts.gpus)
    return replace(node.facts, gpus=tuple(gpus))


def more_room(before: NodeFacts, after: NodeFacts) -> bool:
    """Whether there may be room now for something that found none, or none any more for all."""
    small = ("draining", "fingerprint", "tenants", "memory_bytes", "replica_count_max")
    if any(getattr(before, name) != getattr(after, name) for name in small):
        return True
    old = {gpu.uuid: gpu for gpu in before.gpus}
    return (
        after.memory_promised_bytes < before.memory_promised_bytes
        or old.keys() != {gpu.uuid for gpu in after.gpus}
        or any(_more_on(old[gpu.uuid], gpu) for gpu in after.gpus)
    )


def _more_on(before: GpuFacts, after: GpuFacts) -> bool:
    free_bytes = before.memory_bytes - before.promised_bytes
    more = after.memory_bytes - after.promised_bytes > free_bytes
    return more or not {*after.weights} <= {*before.weights}


def _orphaned(node: NodeRecord, gpu: GpuFacts, leaving: Collection[Replica]) -> set[str]:
    """Weights on it that no other replica there uses."""
    gone = {replica.replica_id for replica in leaving}
    users = [
        record.replica
        for record in node.replicas.values()
        if record.replica.gpu == gpu.uuid and _shares(record.replica)
    ]
    kept = {replica.weights for replica in users if replica.replica_id not in gone}
    left = {replica.weights for replica in users if replica.replica_id in gone}
    return (left - kept) & {*gpu.weights}


def _size(node: NodeRecord, weights: str) -> int:
    """0 when the node does not say."""
    resident = node.residents.get(weights)
    return resident.size_bytes if resident is not None else 0
