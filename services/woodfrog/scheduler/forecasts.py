"""How long a model's climb on a given node would take, from what lies and what goes on there. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from woodfrog.model.node import GpuFacts, Replica, ReplicaState
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler.estimates import Branch, Estimates, Forecast, Missing, Way
from woodfrog.scheduler.rates import Rates
from woodfrog.scheduler.room import sharable
from woodfrog.scheduler.view import NodeRecord, ReplicaRecord

OnGpu = tuple[GpuFacts, int]  # a GPU, and what is taken there


@dataclass(frozen=True, slots=True)
class PlaceRequest:
    spec: ModelSpec
    pointers: Mapping[str, SnapshotPointer] = field(default_factory=dict)  # by fingerprint_key
    excluded_nodes: frozenset[str] = frozenset()
    excluded_replicas: frozenset[str] = frozenset()  # parked ones that must not be thawed
    new: bool = True  # false when only a thaw is wanted: the model has all the replicas it may have
    node: str = ""  # where a new one has to be; empty: anywhere


class Seen(NamedTuple):
    """A node as a restore's decision saw it."""

    node: str
    page_cache_bytes: int  # of the snapshot
    predicted_s: float | None  # None: it takes no replica
    misfit: str = ""  # why not


@dataclass(frozen=True, slots=True)
class Placement:
    node: str
    rung: Rung  # on which the model is there
    predicted_s: float
    snapshot: SnapshotPointer | None = None
    replica_id: str | None = None  # to thaw
    gpu: str = ""  # uuid of the one that has room; which one it will be is the node's to choose
    gpu_bytes: int = 0  # that it takes there
    forecast: Forecast | None = field(default=None, compare=False)  # that `predicted_s` is of
    seen: tuple[Seen, ...] = field(default=(), compare=False)  # of a restore that found room


def of_thaw(
    record: ReplicaRecord,
    node: NodeRecord,
    spec: ModelSpec,
    estimates: Estimates,
    found: OnGpu | None,
) -> Placement:
    """A parked process has its weights mapped: what is in memory costs it nothing but the way onto its GPU."""
    priors = estimates.priors
    replica = record.replica
    hot = replica.state is ReplicaState.HOT
    copies = not hot and _copies(spec, found, replica)
    resident = node.residents.get(spec.weights)
    missing = Missing()
    needs = not hot and (found is None or (copies and not _at_hand(spec, found)))
    if resident is not None and needs:
        missing = Missing(disk_bytes=resident.disk_bytes - resident.page_cache_bytes)
    copied = spec.weights_bytes if copies else 0
    prior_s = priors.hot_s if hot else priors.thaw_prior_s(found is not None, copied)
    rung = Rung.HOT if hot else Rung.PARKED
    forecast = estimates.forecast(
        Way(node.print_key, spec.name, rung, copies),
        Branch(prior_s),
        Branch(0.0, missing),
        node.climbs,
        yields=_yields(node, found),
    )
    return Placement(
        replica.node,
        rung,
        forecast.seconds,
        replica_id=replica.replica_id,
        gpu=found[0].uuid if found else "",
        gpu_bytes=found[1] if found else 0,
        forecast=forecast,
    )


def of_climb(
    name: str, node: NodeRecord, request: PlaceRequest, estimates: Estimates, found: OnGpu | None
) -> Placement:
    """Weights and process come at the same time and meet at the thaw."""
    spec, priors = request.spec, estimates.priors
    weights = _bring(node, spec.weights, spec.weights_bytes, priors)
    copies = _copies(spec, found, home=home_of(node, request))
    copied = spec.weights_bytes if copies else 0
    restore_s, over_s = priors.restore_prior_s(found is not None, copied)
    if found is not None:
        if not copies or _at_hand(spec, found):
            weights = Branch(0.0)
        weights = replace(weights, prior_s=max(weights.prior_s, over_s))
    pointer = request.pointers.get(node.print_key)
    if pointer is None:
        rung, process = Rung.ABSENT, Branch(priors.cold_s)
    else:
        resident = node.residents.get(pointer.manifest)
        pages = _bring(node, pointer.manifest, pointer.size_bytes, priors)
        process = replace(pages, prior_s=restore_s + pages.prior_s)
        complete = resident is not None and resident.complete
        rung = Rung.FROZEN if complete else Rung.STORED
    checkpoint = pointer is None and spec.snapshot == "eager"
    forecast = estimates.forecast(
        Way(node.print_key, spec.name, rung, copies, checkpoint),
        process,
        weights,
        node.climbs,
        yields=_yields(node, found),
    )
    return Placement(
        name,
        rung,
        forecast.seconds,
        pointer,
        gpu=found[0].uuid if found else "",
        gpu_bytes=found[1] if found else 0,
        forecast=forecast,
    )


def _bring(node: NodeRecord, manifest: str, size_bytes: int, priors: Rates) -> Branch:
    resident = node.residents.get(manifest)
    coming = manifest in node.coming
    if resident is None:
        return Branch(0.0, Missing(store_bytes=size_bytes), coming)
    missing = Missing(
        resident.size_bytes - resident.disk_bytes, resident.disk_bytes - resident.page_cache_bytes
    )
    return Branch(resident.page_cache_bytes / priors.page_cache_bytes_s, missing, coming)


def _yields(node: NodeRecord, found: OnGpu | None) -> bool:
    """Whether others that rest on the GPU must be lowered first: its node does that."""
    return found is not None and found[1] > node.free_gpu_bytes(found[0].uuid)


def _copies(
    spec: ModelSpec, found: OnGpu | None, replica: Replica | None = None, home: str = ""
) -> bool:
    """Whether its weights come onto the GPU: they do not lie there, or it can share none."""
    return found is not None and (
        sharable(spec, found[0].uuid, replica, home) not in found[0].weights
    )


def _at_hand(spec: ModelSpec, found: OnGpu) -> bool:
    """Whether its weights come onto the GPU quickly, wherever else they are."""
    return spec.weights in found[0].at_hand


def home_of(node: NodeRecord, request: PlaceRequest) -> str:
    """The GPU that the snapshot for the node is from."""
    pointer = request.pointers.get(node.print_key)
    return pointer.gpu if pointer is not None else ""


def pages_bytes(node: NodeRecord, request: PlaceRequest) -> int:
    """Of the snapshot for the node, those in its page cache, as it last told."""
    pointer = request.pointers.get(node.print_key)
    resident = node.residents.get(pointer.manifest) if pointer is not None else None
    return resident.page_cache_bytes if resident is not None else 0
