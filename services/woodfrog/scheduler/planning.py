"""From the view to the plan's problem, and from its solution to what replicas may rest on. Pure.

An idle replica rests where it is worth most, as long as what it holds is wanted by nobody more and is worth its price. What
is frozen, and expected soon, is lifted there before its next request.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from heapq import nsmallest

from woodfrog.model.node import Replica, ReplicaState
from woodfrog.model.placement import PlannedModel, PlanView
from woodfrog.model.rung import Rung
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler.demand import Demand
from woodfrog.scheduler.estimates import Branch, Estimates, Way
from woodfrog.scheduler.events import Planned
from woodfrog.scheduler.forecasts import Placement, PlaceRequest
from woodfrog.scheduler.plan import Choice, Item, Limits, Option, Prices, Resource, Solution
from woodfrog.scheduler.policy import Eviction, NoCapacity, find, homes
from woodfrog.scheduler.shelves import HOMES_MAX, RANK_S, Shelves, free_bytes
from woodfrog.scheduler.view import RESTING, ClusterView, NodeRecord, ReplicaRecord

HEADROOM = 0.1  # of a node stays free, so that a climb finds room at once
CONTEXT_BYTES = 1 << 30  # of a GPU, by a replica that never rested there yet
_SOON_S = 300.0  # what is expected later is not lifted yet


def items(
    view: ClusterView, demand: Demand, estimates: Estimates, now: float, memory: float = 1.0
) -> Iterator[Item | None]:
    """One of each model that idles and may be kept, lifted or fetched; None for others, so that a caller can stop after any
    number. `memory` is as in `limits`.
    """
    shelves = Shelves(view, memory)
    for name, model in list(view.models.items()):
        if model.spec.freeze_after_s is not None or model.active is None:
            yield None
            continue
        replicas = [record for record in view.replicas_of(name) if _plannable(view, record)]
        used = model.active
        if replicas and any(record.busy for record in view.replicas_of(name)):
            used = min(replicas, key=_order).used  # the others are enough
        wait_s = max(1.0, demand.wait_s(name, now - used))
        if replicas:
            yield _kept(view, min(replicas, key=_order), model.spec, estimates, wait_s)
        elif wait_s <= _SOON_S and not any(view.replicas_of(name)):
            lifted = _lifted(view, model.spec, estimates, wait_s)
            fetched = shelves.item(model.spec, estimates, wait_s)
            if lifted is not None and fetched is not None:
                lifted = replace(lifted, options=lifted.options + fetched.options)
            yield lifted or fetched
        else:
            yield shelves.item(model.spec, estimates, wait_s)


def _kept(
    view: ClusterView, best: ReplicaRecord, spec: ModelSpec, estimates: Estimates, wait_s: float
) -> Item:
    """Of a model with a replica at rest."""
    replica, node = best.replica, view.nodes[best.replica.node]
    gpu = replica.gpu != ""
    process_s, weights_s = estimates.priors.restore_prior_s(gpu, spec.weights_bytes)
    frozen = Way(node.print_key, spec.name, Rung.FROZEN, copies=gpu)
    away = estimates.forecast(frozen, Branch(process_s), Branch(weights_s))
    context = min(replica.gpu_bytes, CONTEXT_BYTES)
    if replica.state in RESTING:
        has_them = replica.own_weights and replica.state is ReplicaState.HOT
        context = max(0, replica.gpu_bytes - (spec.weights_bytes if has_them else 0))
    spec = replace(spec, memory_bytes=replica.memory_bytes)  # as it was started with
    options = tuple(
        _options(spec, replica.node, node, estimates, context if gpu else None, away.seconds)
    )
    rung = Rung.HOT if gpu else Rung.PARKED
    rests = Rung(replica.state.value) if replica.state in RESTING else rung
    at = next((n for n, option in enumerate(options) if option.rung is rests), None)
    away_s = away.seconds + _unpinned_s(spec, estimates)
    return Item(spec.name, 1 / wait_s, away_s, options, spec.priority, at)


def _lifted(view: ClusterView, spec: ModelSpec, estimates: Estimates, wait_s: float) -> Item | None:
    """Of a model without one, on the node to which its next request would bring it, and on others that have room; where
    none has, on the one where that is made. None without a snapshot that fits: a cold start is too much to do unasked.
    """
    request = PlaceRequest(spec, view.pointers(spec))
    found = find(request, view, estimates)
    if isinstance(found, NoCapacity):
        return None
    placement = found.placement if isinstance(found, Eviction) else found
    if placement.snapshot is None:
        return None
    others = [
        home
        for home in homes(request, view, estimates, crowded=False)
        if home.snapshot is not None and home.node != placement.node
    ]
    near = nsmallest(HOMES_MAX - 1, others, key=lambda home: _far(view, home))
    context = min(spec.gpu_bytes, CONTEXT_BYTES) if spec.gpu_bytes else None
    options: list[Option] = []
    for rank, home in enumerate((placement, *near)):
        node, climb_s = view.nodes[home.node], home.predicted_s
        near_by = not spec.gpu_bytes or _pins(node, spec)
        late_s = climb_s * min(1.0, climb_s / wait_s) / 2 + rank * RANK_S
        for option in _options(spec, home.node, node, estimates, context, climb_s):
            if option.rung is not Rung.FROZEN and near_by:
                options.append(replace(option, late_s=late_s))
            elif option.rung is Rung.FROZEN and not rank:  # it lies where it lies
                options.append(option)
    away_s = placement.predicted_s + _unpinned_s(spec, estimates)
    return Item(spec.name, 1 / wait_s, away_s, tuple(options), spec.priority)


def _pins(node: NodeRecord, spec: ModelSpec) -> bool:
    """Whether the weights wait for a GPU of the node in pinned memory, or fit there beside those that do: what others
    pinned, for requests, is not dropped for what nobody asked for.
    """
    for gpu in node.facts.gpus:
        pinned = {*gpu.at_hand, *gpu.weights}
        held = sum(node.residents[each].size_bytes for each in pinned if each in node.residents)
        if spec.weights in pinned or held + spec.weights_bytes <= gpu.pinned_bytes:
            return True
    return False


def _far(view: ClusterView, home: Placement) -> tuple[float, int, str]:
    return home.predicted_s, len(view.nodes[home.node].replicas), home.node


def limits(view: ClusterView, planned: Mapping[str, Item], memory: float = 1.0) -> Limits:
    """What nodes have for what the plan is about: `memory` times their bytes, less a reserve, less what others hold."""
    found: dict[str, dict[Resource, float]] = {}
    for name, node in view.nodes.items():
        facts = node.facts
        part = memory * (1 - HEADROOM)
        left = {
            Resource.MEMORY: facts.memory_bytes * part - node.reserved_bytes,
            Resource.REPLICAS: facts.replica_count_max - node.reserved_count,
            Resource.GPU: sum(gpu.memory_bytes for gpu in facts.gpus) * part
            - sum(node.reserved_gpu_bytes.values()),
            Resource.PINNED: sum(gpu.pinned_bytes for gpu in facts.gpus) * memory,
            Resource.DISK: free_bytes(node, memory),
        }
        held: dict[str, int] = {}  # weights on a GPU that others use
        for record in node.replicas.values():
            replica = record.replica
            if replica.model in planned and _plannable(view, record):
                continue
            left[Resource.MEMORY] -= replica.memory_bytes
            left[Resource.REPLICAS] -= 1
            left[Resource.GPU] -= replica.gpu_bytes
            if not replica.own_weights and replica.weights in _weights_on(node, replica):
                held[replica.weights] = _weights_bytes(view, record)
        left[Resource.GPU] -= sum(held.values())
        found[name] = {resource: max(0.0, value) for resource, value in left.items()}
    return found


def prices(view: ClusterView, of: Mapping[Resource, float]) -> Prices:
    """Of a byte, where `of` a whole GPU and all that a node has of the others is given: of the largest of the cell."""
    most = dict.fromkeys(of, 1)
    for node in view.nodes.values():
        facts = node.facts
        has = {
            Resource.GPU: max((gpu.memory_bytes for gpu in facts.gpus), default=0),
            Resource.PINNED: sum(gpu.pinned_bytes for gpu in facts.gpus),
            Resource.MEMORY: facts.memory_bytes,
            Resource.DISK: facts.disk_bytes,
        }
        most = {resource: max(found, has[resource]) for resource, found in most.items()}
    return Prices({resource: price / most[resource] for resource, price in of.items()})


def _weights_on(node: NodeRecord, replica: Replica) -> tuple[str, ...]:
    """That lie on its GPU and are shared there."""
    return next((gpu.weights for gpu in node.facts.gpus if gpu.uuid == replica.gpu), ())


def rests(view: ClusterView, planned: Mapping[str, Item], solution: Solution) -> Planned:
    """Where each model's best idle replica is to rest, what each idle one's rest is worth, which models are to have one, and
    which are to lie on a disk.

    Nothing for those that keep nothing, and for a model's others than the best.
    """
    found: dict[str, Rung] = {}
    values: dict[str, float] = {}
    ahead: dict[str, Choice] = {}
    fetched: dict[str, Choice] = {}
    for model in planned:
        choice = solution.choices.get(model)
        if choice is not None and not any(view.replicas_of(model)):
            if choice.option.rung is not Rung.FROZEN:
                ahead[model] = choice
            elif Resource.DISK in choice.option.uses:
                fetched[model] = choice
        replicas = [record for record in view.replicas_of(model) if _plannable(view, record)]
        if not replicas:  # since the plan was begun, or it is to be lifted
            continue
        best = min(replicas, key=_order).replica
        here = choice is not None and choice.option.group == best.node
        values |= {record.replica.replica_id: 0.0 for record in replicas}
        values[best.replica_id] = choice.value if choice is not None and here else 0.0
        found[best.replica_id] = choice.option.rung if choice is not None and here else Rung.FROZEN
    return Planned(found, values, _nodes(ahead), _nodes(fetched))


def _nodes(choices: Mapping[str, Choice]) -> dict[str, str]:
    """By model, what is worth most first."""
    first = sorted(choices, key=lambda model: -choices[model].value)
    return {model: choices[model].option.group for model in first}


def told(view: ClusterView, planned: Mapping[str, Item], solution: Solution) -> PlanView:
    """For people: those worth most first."""
    models = []
    for name, item in planned.items():
        choice = solution.choices.get(name)
        replicas = [record for record in view.replicas_of(name) if _plannable(view, record)]
        if replicas:
            best = min(replicas, key=_order).replica
            node, now = best.node, best.state.value
        elif any(view.replicas_of(name)):  # since the plan was begun
            continue
        else:
            node = choice.option.group if choice else item.options[0].group
            now = Rung.FROZEN.value
        models.append(
            PlannedModel(
                name,
                node,
                now,
                choice.option.rung if choice else Rung.FROZEN,
                1 / item.wakes_s,
                choice.option.wake_s if choice else item.away_s,
                item.away_s,
                choice.value if choice else 0.0,
                solution.reasons.get(name, ""),
            )
        )
    models.sort(key=lambda each: (-each.value, each.model))
    return PlanView(tuple(models), solution.solver, solution.seconds, solution.value)


def _options(
    spec: ModelSpec, name: str, node: NodeRecord, estimates: Estimates, context: int | None,
    frozen_s: float,
) -> Iterator[Option]:  # fmt: skip
    """For one replica on the node, which holds `context` bytes of a GPU beside the weights; None: it runs on the CPU.

    A wake from frozen, its weights pinned, takes `frozen_s`.
    """
    priors = estimates.priors
    own = {Resource.MEMORY: float(spec.memory_bytes), Resource.REPLICAS: 1.0}
    if context is None:
        way = Way(node.print_key, spec.name, Rung.PARKED)
        yield Option(name, Rung.PARKED, estimates.forecast(way, Branch(priors.thaw_s)).seconds, own)
        return
    hot = estimates.forecast(Way(node.print_key, spec.name, Rung.HOT), Branch(priors.hot_s))
    there = float(context + spec.weights_bytes)
    yield Option(name, Rung.HOT, hot.seconds, {**own, Resource.GPU: there})
    way = Way(node.print_key, spec.name, Rung.PARKED, copies=True)
    parked = estimates.forecast(way, Branch(priors.thaw_prior_s(True, spec.weights_bytes)))
    pinned = {Resource.PINNED: float(spec.weights_bytes)}
    held = {**own, Resource.GPU: float(context)}
    yield Option(name, Rung.PARKED, parked.seconds, {**held, **pinned})
    yield Option(name, Rung.PARKED, parked.seconds + _unpinned_s(spec, estimates), held)
    yield Option(name, Rung.FROZEN, frozen_s, pinned)


def _unpinned_s(spec: ModelSpec, estimates: Estimates) -> float:
    """That a wake takes longer when its weights come from the page cache. Which are pinned is the node's to say, by use."""
    priors = estimates.priors
    slower_s = spec.weights_bytes * (1 / priors.unpinned_bytes_s - 1 / priors.pcie_bytes_s)
    return max(0.0, slower_s) if spec.gpu_bytes else 0.0


def _plannable(view: ClusterView, record: ReplicaRecord) -> bool:
    """Idle, on no way, and not to be kept as it is."""
    return record.quiet and not record.kept and record.suspect_since is None and view.usable(record)


def _order(record: ReplicaRecord) -> tuple[bool, float, str]:
    """Of a model's idle replicas the one to keep: the highest, then the last used."""
    return (
        record.replica.state is ReplicaState.PARKED, -record.used, record.replica.replica_id
    )  # fmt: skip


def _weights_bytes(view: ClusterView, record: ReplicaRecord) -> int:
    model = view.models.get(record.replica.model)
    return model.spec.weights_bytes if model is not None else 0
