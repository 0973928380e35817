"""Where a model should climb: the node with the least predicted seconds, and whom to lower when none has room. Pure.

Ties go to the node whose replicas have the fewest bytes of weights, then to that with the fewest replicas, then by name.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from woodfrog.model.node import GpuFacts, NodeFacts, Replica, ReplicaState
from woodfrog.model.rung import Rung
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler import candidates
from woodfrog.scheduler.estimates import Estimates
from woodfrog.scheduler.forecasts import (
    OnGpu,
    Placement,
    PlaceRequest,
    Seen,
    home_of,
    of_climb,
    of_thaw,
    pages_bytes,
)
from woodfrog.scheduler.room import (
    Clearing,
    best_gpu,
    gpus_of,
    load,
    need_bytes,
    rest_order,
    room_bytes,
    sharable,
)
from woodfrog.scheduler.view import RESTING, ClusterView, NodeRecord, ReplicaRecord

_FULL = candidates.FULL
_REFUSING = "refusing"
#: What others' rest is worth: nobody is lowered to save less.
SOON_S = 1.0
_EVER_S = float("inf")
_SOONER = 2.0  # times
_OTHERS = "for other models"
LASTING = ("too small", "without a GPU", _OTHERS)
_SEEN_MAX = 32  # told to people; in a large cell those that were looked at first


@dataclass(frozen=True, slots=True)
class Eviction:
    """Room for `placement` once these replicas are lowered."""

    placement: Placement
    victims: tuple[str, ...]
    rung: Rung = Rung.FROZEN  # to which; PARKED where GPU memory alone is short


@dataclass(frozen=True, slots=True)
class NoCapacity:
    misfits: Mapping[str, int]  # why, and how many nodes

    @property
    def lasting(self) -> bool:
        """Time will not mend it."""
        return bool(self.misfits) and all(why in LASTING for why in self.misfits)

    @property
    def sentence(self) -> str:
        if not self.misfits:
            return "no node is connected"
        return ", ".join(
            f"{count} {'node is' if count == 1 else 'nodes are'} {why}"
            for why, count in sorted(self.misfits.items())
        )


def place(request: PlaceRequest, view: ClusterView, estimates: Estimates) -> Placement | NoCapacity:
    """Linear in nodes, independent of models. The snapshot must fit the node, or the climb is a cold start."""
    spec = request.spec
    best: Placement | None = None
    best_cost = (float("inf"), (0, 0, ""), "")
    for record in view.replicas_of(spec.name):
        node = view.nodes[record.replica.node]
        found = best_gpu(node, spec, record.replica)
        if not _thawable(record, node, request) or _thaw_waits(node, spec, found):
            continue
        placement = of_thaw(record, node, spec, estimates, found)
        name = record.replica.replica_id
        thaw_cost = (placement.predicted_s, load(placement.node, node), name)
        if thaw_cost < best_cost:
            best, best_cost = placement, thaw_cost
    near = _near(view, request, candidates.with_room)
    misfits = +near.misfits
    seen: list[Seen] = []
    for names in (near.nodes, near.rest):
        for name in names if best is None or names is near.nodes else ():
            node = view.nodes[name]
            why = _misfit(name, node, request)
            if why is not None:
                misfits[why] += 1
                seen.append(Seen(name, pages_bytes(node, request), None, why))
                continue
            found = best_gpu(node, spec, home=home_of(node, request))
            placement = of_climb(name, node, request, estimates, found)
            seen.append(Seen(name, pages_bytes(node, request), placement.predicted_s))
            cost = (placement.predicted_s, load(name, node), "")
            if cost < best_cost:
                best, best_cost = placement, cost
    if best is not None and best.snapshot is not None:
        return replace(best, seen=tuple(seen[:_SEEN_MAX]))
    return best or NoCapacity(misfits)


def make_room(
    request: PlaceRequest, view: ClusterView, estimates: Estimates, within_s: float = _EVER_S
) -> Eviction | NoCapacity:
    """The best node that has room once idle replicas of other models are lowered, in the order of `rest_order`.

    With a `within_s`, only where the climb is over before that, of the nodes that seem best.
    They are frozen, or parked when it is only their GPU that is full. A thaw too may need room on its GPU.
    """
    best: Eviction | None = None
    best_cost = (within_s, 0, 0, "", "")
    options = [*_crowded_thaws(request, view, estimates)]
    near = _near(view, request, candidates.crowded)
    misfits = +near.misfits
    for names in (near.nodes, near.rest) if within_s == _EVER_S else (near.nodes,):
        for name in names:
            why = _misfit(name, view.nodes[name], request)
            crowded = (
                [*_crowded(name, view.nodes[name], request, estimates)] if why == _FULL else []
            )
            if not any(victims for _, victims in crowded):
                misfits[why or _FULL] += 1
            options += crowded
        if any(victims for _, victims in options):
            break
    for placement, victims in options:
        serving = sum(record.replica.state is ReplicaState.SERVING for record in victims)
        node = view.nodes[placement.node]
        rung = Rung.PARKED if _only_gpu(node, request.spec, placement) else Rung.FROZEN
        # They are lowered at once, and the climb begins when all are.
        seconds = placement.predicted_s + estimates.lower_s(node.print_key, rung)
        cost = (seconds, serving, len(victims), placement.node, placement.gpu)
        if victims and cost < best_cost:
            names = tuple(record.replica.replica_id for record in victims)
            best, best_cost = Eviction(placement, names, rung), cost
    return best or NoCapacity(misfits)


def find(
    request: PlaceRequest, view: ClusterView, estimates: Estimates
) -> Placement | Eviction | NoCapacity:
    """Where there is room, unless it is reached a second sooner, or more, where room must be made first.

    Where its bytes would come from the store, half the time is enough. For that nobody goes who is to be kept hot.
    """
    found = place(request, view, estimates)
    if isinstance(found, NoCapacity):
        return make_room(request, view, estimates)
    within_s = found.predicted_s - SOON_S
    if found.rung is Rung.STORED:
        within_s = max(within_s, found.predicted_s / _SOONER)
    made = make_room(request, view, estimates, within_s) if within_s > 0 else None
    if isinstance(made, Eviction) and not any(view.replicas[name].kept for name in made.victims):
        return made
    return found


def homes(
    request: PlaceRequest, view: ClusterView, estimates: Estimates, *, crowded: bool
) -> list[Placement]:
    """Where a new replica has room now, in a large cell on the few that may be best; or where room must be made first."""
    names = tuple(view.nodes) if crowded else _near(view, request, candidates.with_room).nodes
    wanted = (_FULL, _REFUSING) if crowded else (None,)
    return [
        of_climb(
            name,
            node,
            request,
            estimates,
            best_gpu(node, request.spec, home=home_of(node, request)),
        )
        for name in names
        if _misfit(name, node := view.nodes[name], request) in wanted
    ]


def _near(
    view: ClusterView, request: PlaceRequest, find: Callable[..., candidates.Found]
) -> candidates.Found:
    """Nodes to be looked at for a new replica."""
    if not request.new:
        return candidates.Found((), (), Counter())
    if request.node:
        return candidates.Found((request.node,), (), Counter())
    if len(view.nodes) <= candidates.FEW_NODES:
        return candidates.Found(tuple(view.nodes), (), Counter())
    return find(view, request.spec, request.pointers, request.excluded_nodes)


def could_take(facts: NodeFacts, spec: ModelSpec) -> bool:
    """Whether the node takes the model's tenant, and is large enough for one replica, were it empty."""
    return spec.admitted(facts.tenants) and _large_enough(facts, spec)


def _large_enough(facts: NodeFacts, spec: ModelSpec) -> bool:
    return spec.memory_bytes <= facts.memory_bytes and (
        not spec.gpu_bytes or any(_could_hold(gpu, spec) for gpu in facts.gpus)
    )


def opens(name: str, request: PlaceRequest, view: ClusterView, estimates: Estimates) -> bool:
    """Whether the model may climb on the node now, or once idle ones are lowered there."""
    node = view.nodes.get(name)
    if node is None:
        return False
    if any(record.replica.model == request.spec.name for record in node.replicas.values()):
        return True  # looked at as a whole
    why = _misfit(name, node, request)
    crowded = _crowded(name, node, request, estimates) if why == _FULL else ()
    return why is None or any(victims for _, victims in crowded)


def _could_hold(gpu: GpuFacts, spec: ModelSpec) -> bool:
    return spec.gpu_bytes + spec.weights_bytes <= gpu.memory_bytes


def _misfit(name: str, node: NodeRecord, request: PlaceRequest) -> str | None:
    """Why the node takes no new replica; None when it does."""
    facts, spec = node.facts, request.spec
    if name in request.excluded_nodes:
        return "not to be tried again"
    if not spec.admitted(facts.tenants):
        return _OTHERS
    if node.silent:
        return "not answering"
    if spec.gpu_bytes and not facts.gpus:
        return "without a GPU"
    if not _large_enough(facts, spec) or not facts.replica_count_max:
        return "too small"
    if facts.draining:
        return "draining"
    found = best_gpu(node, spec, home=home_of(node, request))
    full = spec.memory_bytes > node.free_bytes or node.free_count < 1
    if full or (spec.gpu_bytes and found is None):
        return _FULL
    if node.refuses(spec.memory_bytes, found[1] if found else 0):
        return _REFUSING
    return None


def _crowded_thaws(
    request: PlaceRequest, view: ClusterView, estimates: Estimates
) -> Iterator[tuple[Placement, list[ReplicaRecord]]]:
    """Those that wait for GPU memory, with the victims that make room; none when all together do not."""
    spec = request.spec
    for record in view.replicas_of(spec.name) if spec.gpu_bytes else ():
        node = view.nodes[record.replica.node]
        for gpu in gpus_of(node, record.replica) if _thawable(record, node, request) else ():
            found = gpu, need_bytes(spec, gpu, record.replica)
            yield (
                of_thaw(record, node, spec, estimates, found),
                _victims(node, spec, 0, 0, found, record.replica),
            )


def _crowded(
    name: str, node: NodeRecord, request: PlaceRequest, estimates: Estimates
) -> Iterator[tuple[Placement, list[ReplicaRecord]]]:
    """On each GPU that is large enough, if it needs one, with the victims that make room, as above."""
    spec, home = request.spec, home_of(node, request)
    for gpu in node.facts.gpus if spec.gpu_bytes else (None,):
        if gpu is None or _could_hold(gpu, spec):
            found = (gpu, need_bytes(spec, gpu, home=home)) if gpu is not None else None
            short_bytes = spec.memory_bytes - node.free_bytes
            yield (
                of_climb(name, node, request, estimates, found),
                _victims(node, spec, short_bytes, 1 - node.free_count, found, home=home),
            )


def _victims(
    node: NodeRecord,
    spec: ModelSpec,
    short_bytes: int,
    short_count: int,
    found: OnGpu | None,
    thawed: Replica | None = None,
    home: str = "",
) -> list[ReplicaRecord]:
    """The fewest first ones that make up for what is short, here and on the GPU; none when all together do not."""

    wanted = sharable(spec, found[0].uuid, thawed, home) if found is not None else ""
    clearing = Clearing(node, found[0], wanted, thawed) if found is not None else None

    def node_has_room(records: list[ReplicaRecord]) -> bool:
        freed = sum(record.replica.memory_bytes for record in records)
        return freed >= short_bytes and len(records) >= short_count

    def gpu_has_room(records: list[ReplicaRecord]) -> bool:
        replicas = [record.replica for record in records]
        return found is None or room_bytes(node, found[0], wanted, thawed, replicas) >= found[1]

    def cleared() -> bool:
        return found is None or clearing is None or clearing.room_bytes >= found[1]

    idle = [
        record
        for record in node.replicas.values()
        if record.quiet and record.replica.model != spec.name
    ]
    victims: list[ReplicaRecord] = []
    for record in sorted(idle, key=rest_order):
        replica = record.replica
        on_gpu = found is not None and replica.gpu == found[0].uuid and replica.state not in RESTING
        if not node_has_room(victims) or (on_gpu and not cleared()):
            victims.append(record)
            if clearing is not None:
                clearing.leave(replica)
    if not node_has_room(victims) or not cleared():
        return []
    for record in victims[-2::-1] if found else ():  # what only came with shared weights
        others = [other for other in victims if other is not record]
        if node_has_room(others) and gpu_has_room(others):
            victims = others
    return victims


def _only_gpu(node: NodeRecord, spec: ModelSpec, placement: Placement) -> bool:
    """Whether nothing else is short."""
    fits = node.free_bytes >= spec.memory_bytes and node.free_count >= 1
    return fits or placement.replica_id is not None


def _thawable(record: ReplicaRecord, node: NodeRecord, request: PlaceRequest) -> bool:
    replica = record.replica
    return (
        replica.state in RESTING
        and record.live
        and record.suspect_since is None
        and replica.is_of(request.spec)
        and replica.replica_id not in request.excluded_replicas
        and replica.node not in request.excluded_nodes
        and not node.silent
        and not node.facts.draining
        and request.spec.admitted(node.facts.tenants)
    )


def _thaw_waits(node: NodeRecord, spec: ModelSpec, found: OnGpu | None) -> bool:
    """For room on its GPU; a thaw needs no other."""
    return spec.gpu_bytes > 0 and (found is None or node.refuses(0, max(1, found[1])))
