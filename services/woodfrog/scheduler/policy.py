"""Where a model should climb: the node with the least predicted seconds, and whom to lower when none has room. Pure.

Ties go to the node with the fewest replicas, then by name.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from woodfrog.model.node import ReplicaState, Resident
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler.rates import Rates
from woodfrog.scheduler.view import ClusterView, NodeRecord, ReplicaRecord

_FULL = "full"


@dataclass(frozen=True, slots=True)
class PlaceRequest:
    spec: ModelSpec
    pointers: Mapping[str, SnapshotPointer] = field(default_factory=dict)  # by fingerprint_key
    excluded_nodes: frozenset[str] = frozenset()
    excluded_replicas: frozenset[str] = frozenset()  # parked ones that must not be thawed
    new: bool = True  # false when only a thaw is wanted: the model has all the replicas it may have


@dataclass(frozen=True, slots=True)
class Placement:
    node: str
    rung: Rung  # on which the model is there
    predicted_s: float
    snapshot: SnapshotPointer | None = None
    replica_id: str | None = None  # to thaw


@dataclass(frozen=True, slots=True)
class Eviction:
    """Room for `placement` once these replicas are frozen."""

    placement: Placement
    victims: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NoCapacity:
    misfits: Mapping[str, int]  # why, and how many nodes

    @property
    def sentence(self) -> str:
        if not self.misfits:
            return "no node is connected"
        return ", ".join(
            f"{count} {'node is' if count == 1 else 'nodes are'} {why}"
            for why, count in sorted(self.misfits.items())
        )


def place(request: PlaceRequest, view: ClusterView, rates: Rates) -> Placement | NoCapacity:
    """Linear in nodes, independent of models. The snapshot must fit the node, or the climb is a cold start."""
    best: Placement | None = None
    best_cost = (float("inf"), 0, "", "")
    for record in view.replicas_of(request.spec.name):
        if _thawable(record, request, view):
            placement = _thaw(record, request, view, rates)
            node = view.nodes[placement.node]
            thaw_cost = (
                placement.predicted_s,
                len(node.replicas),
                placement.node,
                record.replica.replica_id,
            )
            if thaw_cost < best_cost:
                best, best_cost = placement, thaw_cost
    misfits: Counter[str] = Counter()
    for name, node in view.nodes.items() if request.new else ():
        why = _misfit(name, node, request)
        if why is not None:
            misfits[why] += 1
            continue
        predicted_s, rung, snapshot = _climb(node, request, rates)
        cost = (predicted_s, len(node.replicas) + node.reserved_count, name, "")
        if cost < best_cost:
            best, best_cost = Placement(name, rung, predicted_s, snapshot), cost
    return best or NoCapacity(misfits)


def make_room(request: PlaceRequest, view: ClusterView, rates: Rates) -> Eviction | NoCapacity:
    """The best node that has room once idle replicas of other models are frozen: parked first, longest idle first."""
    best: Eviction | None = None
    best_cost = (float("inf"), 0, 0, "")
    misfits: Counter[str] = Counter()
    for name, node in view.nodes.items():
        why = _misfit(name, node, request)
        victims = _victims(node, request.spec) if why == _FULL else ()
        if not victims:
            misfits[why or _FULL] += 1
            continue
        predicted_s, rung, snapshot = _climb(node, request, rates)
        serving = sum(record.replica.state is ReplicaState.SERVING for record in victims)
        cost = (predicted_s, serving, len(victims), name)
        if cost < best_cost:
            names = tuple(record.replica.replica_id for record in victims)
            best = Eviction(Placement(name, rung, predicted_s, snapshot), names)
            best_cost = cost
    return best or NoCapacity(misfits)


def _misfit(name: str, node: NodeRecord, request: PlaceRequest) -> str | None:
    """Why the node takes no new replica; None when it does."""
    facts = node.facts
    need = request.spec.memory_bytes
    if name in request.excluded_nodes:
        return "not to be tried again"
    if node.silent:
        return "not answering"
    if facts.draining:
        return "draining"
    if need > facts.memory_bytes or not facts.replica_count_max:
        return "too small"
    if need > node.free_bytes or node.free_count < 1:
        return _FULL
    if node.refused_bytes is not None and need >= node.refused_bytes:
        return "refusing"
    return None


def _victims(node: NodeRecord, spec: ModelSpec) -> tuple[ReplicaRecord, ...]:
    """The fewest first ones that make room; none when all together do not."""
    idle = [
        record
        for record in node.replicas.values()
        if record.quiet and record.replica.model != spec.name
    ]
    idle.sort(key=_rest_order)
    free_bytes, free_count = node.free_bytes, node.free_count
    for count, record in enumerate(idle, start=1):
        free_bytes += record.replica.memory_bytes
        free_count += 1
        if free_bytes >= spec.memory_bytes and free_count >= 1:
            return tuple(idle[:count])
    return ()


def _rest_order(record: ReplicaRecord) -> tuple[bool, float, str]:
    serving = record.replica.state is ReplicaState.SERVING
    return serving, record.used, record.replica.replica_id


def _thawable(record: ReplicaRecord, request: PlaceRequest, view: ClusterView) -> bool:
    replica = record.replica
    return (
        replica.state is ReplicaState.PARKED
        and record.live
        and record.suspect_since is None
        and replica.weights == request.spec.weights
        and replica.replica_id not in request.excluded_replicas
        and replica.node not in request.excluded_nodes
        and not view.nodes[replica.node].silent
    )


def _thaw(
    record: ReplicaRecord, request: PlaceRequest, view: ClusterView, rates: Rates
) -> Placement:
    """A parked process has its weights mapped: what is in memory costs it nothing."""
    replica = record.replica
    resident = view.nodes[replica.node].residents.get(request.spec.weights)
    missing = resident.disk_bytes - resident.page_cache_bytes if resident else 0
    predicted_s = max(rates.thaw_s, missing / rates.disk_bytes_s)
    return Placement(replica.node, Rung.PARKED, predicted_s, replica_id=replica.replica_id)


def _climb(
    node: NodeRecord, request: PlaceRequest, rates: Rates
) -> tuple[float, Rung, SnapshotPointer | None]:
    """Weights and process come at the same time and meet at the thaw."""
    spec = request.spec
    weights_s = _bring_s(spec.weights_bytes, node.residents.get(spec.weights), rates)
    pointer = request.pointers.get(node.print_key)
    if pointer is None:
        return max(weights_s, rates.cold_s), Rung.ABSENT, None
    resident = node.residents.get(pointer.manifest)
    restore_s = rates.restore_s + _bring_s(pointer.size_bytes, resident, rates)
    rung = Rung.FROZEN if resident is not None and resident.complete else Rung.STORED
    return max(weights_s, restore_s), rung, pointer


def _bring_s(size_bytes: int, resident: Resident | None, rates: Rates) -> float:
    if resident is None:
        return size_bytes / rates.store_bytes_s
    return (
        resident.page_cache_bytes / rates.page_cache_bytes_s
        + (resident.disk_bytes - resident.page_cache_bytes) / rates.disk_bytes_s
        + (resident.size_bytes - resident.disk_bytes) / rates.store_bytes_s
    )
