"""A node as its agent tells it: what it is, what lies on it, which replicas it runs, and how a climb went."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from woodfrog.model.rung import Rung
from woodfrog.model.spec import ModelSpec


class ReplicaState(Enum):
    CLIMBING = "climbing"
    SERVING = "serving"
    PARKED = "parked"
    HOT = "hot"  # parked, weights still on the GPU
    DESCENDING = "descending"


@dataclass(frozen=True, slots=True)
class Replica:
    replica_id: str  # unique in the cell
    model: str
    weights: str  # digest of its weights manifest
    state: ReplicaState
    socket_path: str  # unix socket on the node on which it serves HTTP
    slots: int  # requests that it runs at once
    node: str
    memory_bytes: int  # private bytes promised to it
    gpu: str = ""  # uuid of the GPU that it is on
    gpu_bytes: int = 0  # private bytes that it holds there now
    own_weights: bool = False  # it shares none there: those that it has are part of gpu_bytes
    model_create_time: float = 0.0  # of the spec that it was started from

    def is_of(self, spec: ModelSpec) -> bool:
        """A model that was removed and added again is another one, though its name and its weights are the same."""
        of = self.model, self.weights, self.model_create_time
        return of == (spec.name, spec.weights, spec.create_time)


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One GPU of a node, and what of its memory is taken."""

    uuid: str
    memory_bytes: int  # that replicas and weights may fill
    promised_bytes: int  # part of it: of replicas, and of the weights below
    weights: tuple[
        str, ...
    ]  # digests of weights manifests that lie on it and are in use: no second copy is needed
    at_hand: tuple[str, ...] = ()  # of those in pinned memory, or left on it by their last user
    pinned_bytes: int = 0  # of host memory, in which weights wait for it


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a node is and has room for."""

    node: str
    fingerprint: Mapping[str, str]  # the node part of Fingerprint
    memory_bytes: int  # that replicas may own
    memory_promised_bytes: int
    replica_count_max: int
    draining: bool = False  # takes no new replica
    gpus: tuple[GpuFacts, ...] = ()
    disk_bytes: int = 0  # that its cache may hold; 0 while that is not known
    tenants: tuple[str, ...] = ()  # whose models alone it takes; empty: everybody's


@dataclass(frozen=True, slots=True)
class Resident:
    """How much of one manifest is on the node, by tier."""

    manifest: str  # digest
    size_bytes: int  # of its chunks
    disk_bytes: int
    page_cache_bytes: int  # part of disk_bytes
    complete: bool  # all of it is on disk, verified


@dataclass(frozen=True, slots=True)
class NodeUpdate:
    """One step of a node's stream. When `full`, what is not named does not exist, and `facts` is set."""

    full: bool = False
    facts: NodeFacts | None = None
    replicas: tuple[Replica, ...] = ()
    gone: tuple[str, ...] = ()  # replica ids
    residents: tuple[Resident, ...] = ()
    residents_gone: tuple[str, ...] = ()  # digests of manifests


@dataclass(frozen=True, slots=True)
class Stage:
    """One measured stage of a climb."""

    name: str  # e.g. "restore.criu"
    start_s: float  # since the climb began
    duration_s: float


@dataclass(frozen=True, slots=True)
class Climbed:
    """A climb that ended with a replica that serves."""

    replica: Replica
    from_rung: Rung
    stages: tuple[Stage, ...] = ()  # in the order in which they began
    fallback_reason: str = ""  # why a snapshot was passed over, one sentence; empty when it was not
