"""From the view to the plan's problem, and from its solution to what replicas may rest on. Pure.

An idle replica rests where it is worth most, as long as what it holds is wanted by nobody more and is worth its price. What
is frozen comes back by requests.
"""

from collections.abc import Iterator, Mapping

from woodfrog.model.node import Replica, ReplicaState
from woodfrog.model.placement import PlannedModel, PlanView
from woodfrog.model.rung import Rung
from woodfrog.scheduler.demand import Demand
from woodfrog.scheduler.estimates import Branch, Estimates, Way
from woodfrog.scheduler.events import Planned
from woodfrog.scheduler.plan import Item, Limits, Option, Prices, Resource, Solution
from woodfrog.scheduler.view import RESTING, ClusterView, NodeRecord, ReplicaRecord

HEADROOM = 0.1  # of a node stays free, so that a climb finds room at once
CONTEXT_BYTES = 1 << 30  # of a GPU, by a replica that never rested there yet


def items(
    view: ClusterView, demand: Demand, estimates: Estimates, now: float
) -> Iterator[Item | None]:
    """One of each model that idles and may be kept; None for others, so that a caller can stop after any number."""
    for name, model in list(view.models.items()):
        replicas = []
        if model.spec.freeze_after_s is None and model.active is not None:
            replicas = [record for record in view.replicas_of(name) if _plannable(view, record)]
        if not replicas or model.active is None:
            yield None
            continue
        best = min(replicas, key=_order)
        node = view.nodes[best.replica.node]
        wakes_s = 1 / max(1.0, demand.wait_s(name, now - model.active))
        gpu = best.replica.gpu != ""
        process_s, weights_s = estimates.priors.restore_prior_s(gpu, model.spec.weights_bytes)
        frozen = Way(node.print_key, name, Rung.FROZEN, copies=gpu)
        away = estimates.forecast(frozen, Branch(process_s), Branch(weights_s))
        options = tuple(_options(best, node, model.spec.weights_bytes, estimates))
        rung = Rung.HOT if best.replica.gpu else Rung.PARKED
        rests = Rung(best.replica.state.value) if best.replica.state in RESTING else rung
        at = next((n for n, option in enumerate(options) if option.rung is rests), None)
        yield Item(name, wakes_s, away.seconds, options, model.spec.priority, at)


def limits(view: ClusterView, planned: Mapping[str, Item], room: float = 1.0) -> Limits:
    """What nodes have for what the plan is about: `room` times all, less a reserve, less what others hold."""
    found: dict[str, dict[Resource, float]] = {}
    for name, node in view.nodes.items():
        facts = node.facts
        part = room * (1 - HEADROOM)
        left = {
            Resource.MEMORY: facts.memory_bytes * part - node.reserved_bytes,
            Resource.REPLICAS: facts.replica_count_max * room - node.reserved_count,
            Resource.GPU: sum(gpu.memory_bytes for gpu in facts.gpus) * part
            - sum(node.reserved_gpu_bytes.values()),
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


def prices(view: ClusterView, gpu_price: float, memory_price: float) -> Prices:
    """Of a whole GPU, and of a whole node's memory: of the largest of the cell."""
    gpus = [gpu.memory_bytes for node in view.nodes.values() for gpu in node.facts.gpus]
    memories = [node.facts.memory_bytes for node in view.nodes.values()]
    return Prices(
        {
            Resource.GPU: gpu_price / max(gpus, default=1),
            Resource.MEMORY: memory_price / max(memories, default=1),
        }
    )


def _weights_on(node: NodeRecord, replica: Replica) -> tuple[str, ...]:
    """That lie on its GPU and are shared there."""
    return next((gpu.weights for gpu in node.facts.gpus if gpu.uuid == replica.gpu), ())


def rests(view: ClusterView, planned: Mapping[str, Item], solution: Solution) -> Planned:
    """Where each model's best idle replica is to rest, and what each idle one's rest is worth.

    Nothing for those that keep nothing, and for a model's others than the best.
    """
    found: dict[str, Rung] = {}
    values: dict[str, float] = {}
    for model in planned:
        replicas = [record for record in view.replicas_of(model) if _plannable(view, record)]
        if not replicas:  # since the plan was begun
            continue
        best = min(replicas, key=_order).replica
        choice = solution.choices.get(model)
        here = choice is not None and choice.option.group == best.node
        values |= {record.replica.replica_id: 0.0 for record in replicas}
        values[best.replica_id] = choice.value if choice is not None and here else 0.0
        found[best.replica_id] = choice.option.rung if choice is not None and here else Rung.FROZEN
    return Planned(found, values)


def told(view: ClusterView, planned: Mapping[str, Item], solution: Solution) -> PlanView:
    """For people: those worth most first."""
    models = []
    for name, item in planned.items():
        choice = solution.choices.get(name)
        replicas = [record for record in view.replicas_of(name) if _plannable(view, record)]
        if not replicas:
            continue
        best = min(replicas, key=_order).replica
        models.append(
            PlannedModel(
                name,
                best.node,
                best.state.value,
                choice.option.rung if choice else Rung.FROZEN,
                1 / item.wakes_s,
                choice.option.wake_s if choice else item.away_s,
                item.away_s,
                choice.value if choice else 0.0,
            )
        )
    models.sort(key=lambda each: (-each.value, each.model))
    return PlanView(tuple(models), solution.solver, solution.seconds, solution.value)


def _options(
    record: ReplicaRecord, node: NodeRecord, weights_bytes: int, estimates: Estimates
) -> Iterator[Option]:
    replica, priors = record.replica, estimates.priors
    own = {Resource.MEMORY: float(replica.memory_bytes), Resource.REPLICAS: 1.0}
    if not replica.gpu:
        way = Way(node.print_key, replica.model, Rung.PARKED)
        yield Option(
            replica.node, Rung.PARKED, estimates.forecast(way, Branch(priors.thaw_s)).seconds, own
        )
        return
    context = min(replica.gpu_bytes, CONTEXT_BYTES)
    if replica.state in RESTING:
        has_them = replica.own_weights and replica.state is ReplicaState.HOT
        context = max(0, replica.gpu_bytes - (weights_bytes if has_them else 0))
    hot = estimates.forecast(Way(node.print_key, replica.model, Rung.HOT), Branch(priors.hot_s))
    yield Option(
        replica.node, Rung.HOT, hot.seconds, {**own, Resource.GPU: float(context + weights_bytes)}
    )
    way = Way(node.print_key, replica.model, Rung.PARKED, copies=True)
    parked = estimates.forecast(way, Branch(priors.thaw_prior_s(True, weights_bytes)))
    yield Option(replica.node, Rung.PARKED, parked.seconds, {**own, Resource.GPU: float(context)})


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
