"""The view for people. Pure."""

from woodfrog.model.node import ReplicaState
from woodfrog.model.placement import ClusterView, ModelView, NodeView, ReplicaView
from woodfrog.model.rung import Rung
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler.forecasts import Placement, PlaceRequest
from woodfrog.scheduler.policy import Eviction, NoCapacity, make_room, place
from woodfrog.scheduler.refusals import standing
from woodfrog.scheduler.state import SchedulerState
from woodfrog.scheduler.troubles import Troubles
from woodfrog.scheduler.view import ModelRecord

_PREDICTIONS_MAX = (
    50_000  # models times nodes; beyond it nobody reads them all, and they would hold up requests
)
_ROOMS_MAX = 5_000  # the same where room must be made first, which takes ten times as long to see


def describe(
    state: SchedulerState, now: float, troubles: Troubles, *, predict: bool = True
) -> ClusterView:
    """Without `predict` nothing is placed on trial, which is what takes long."""
    view = state.view
    predict = predict and len(view.models) * len(view.nodes) <= _PREDICTIONS_MAX
    models = [
        _model(state, model, now, troubles, predict=predict)
        for _, model in sorted(view.models.items())
    ]
    nodes = [
        NodeView(
            name,
            node.facts.memory_bytes,
            node.facts.memory_promised_bytes,
            node.facts.gpus,
            node.facts.draining,
            state.moving(name),
            node.facts.tenants,
        )
        for name, node in sorted(view.nodes.items())
    ]
    return ClusterView(tuple(models), tuple(nodes), state.estimates.predictions())


def _model(
    state: SchedulerState, model: ModelRecord, now: float, troubles: Troubles, *, predict: bool
) -> ModelView:
    view, spec = state.view, model.spec
    records = sorted(view.replicas_of(spec.name), key=lambda record: record.replica.replica_id)
    states = {record.replica.state for record in records if view.usable(record)}
    pointers = view.pointers(spec)
    request = PlaceRequest(spec, pointers)
    found = place(request, view, state.estimates) if predict else None
    predicted_ms = found.predicted_s * 1000 if isinstance(found, Placement) else None
    if isinstance(found, NoCapacity) and len(view.models) * len(view.nodes) <= _ROOMS_MAX:
        predicted_ms = _once_there_is_room_ms(state, request)
    if ReplicaState.SERVING in states:
        rung, predicted_ms = Rung.SERVING, 0.0
    elif ReplicaState.HOT in states:
        rung = Rung.HOT
    elif ReplicaState.PARKED in states:
        rung = Rung.PARKED
    elif any(
        (resident := node.residents.get(pointer.manifest)) is not None and resident.complete
        for node in view.nodes.values()
        if (pointer := pointers.get(node.print_key)) is not None
    ):
        rung = Rung.FROZEN
    else:
        rung = Rung.STORED if pointers else Rung.ABSENT
    replicas = tuple(
        ReplicaView(
            record.replica.replica_id,
            record.replica.node,
            record.replica.state,
            state.active(record.replica.replica_id),
        )
        for record in records
    )
    used = [record.used if not record.busy else now for record in records if record.live]
    requested = max(
        [*used, *([model.requested] if model.requested is not None else [])], default=None
    )
    idle_s = None if model.requested is None or requested is None else now - requested
    told = ("", None) if rung is Rung.SERVING else _trouble(spec, found, troubles, now)
    return ModelView(spec.name, rung, replicas, idle_s, predicted_ms, *told)


def _once_there_is_room_ms(state: SchedulerState, request: PlaceRequest) -> float | None:
    """None where none can be made."""
    made = make_room(request, state.view, state.estimates)
    if not isinstance(made, Eviction):
        return None
    kind = state.view.nodes[made.placement.node].print_key
    return (made.placement.predicted_s + state.estimates.lower_s(kind, made.rung)) * 1000


def _trouble(
    spec: ModelSpec, found: Placement | NoCapacity | None, troubles: Troubles, now: float
) -> tuple[str, float | None]:
    """What keeps it down now, as far as one look tells; else why it last did not start, and how many seconds ago."""
    if isinstance(found, NoCapacity) and (why := standing(spec, found)) is not None:
        return why, None
    last = troubles.last(spec.name)
    return ("", None) if last is None else (last.sentence, now - last.at)
