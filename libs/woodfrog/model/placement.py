"""What the scheduler and its routers tell each other."""

from dataclasses import dataclass

from woodfrog.model.node import GpuFacts, ReplicaState
from woodfrog.model.rung import Rung

PRICE_MAX = 1e6  # of WhatIf, as is the next
MEMORY_MAX = 1e6  # keeps the bytes of all nodes countable


@dataclass(frozen=True, slots=True)
class Caller:
    """For whom a replica is asked: where several wait for one model, each tenant has its turn."""

    tenant: str = ""
    share: float = 1.0  # of the turns, against other tenants'


ANYONE = Caller()


@dataclass(frozen=True, slots=True)
class ReadyReplica:
    replica_id: str
    model: str
    node: str
    socket_path: str  # unix socket on the node on which it serves HTTP
    slots: int  # requests that it runs at once


@dataclass(frozen=True, slots=True)
class Acquired:
    """A replica with room, promised to one request until it is released."""

    placement_id: str
    replica: ReadyReplica
    rung: Rung  # on which the model was when the request came
    climb_ms: float = 0.0  # of the climb that the request waited for
    fallback_reason: str = ""  # why a snapshot was passed over, one sentence
    climb_traceparent: str = ""  # empty when there was no climb


@dataclass(frozen=True, slots=True)
class ReplicaUsage:
    """Requests of one router on one replica, however it got it."""

    replica_id: str
    active: int  # running now
    started: int = 0  # since the router's last report


@dataclass(frozen=True, slots=True)
class TenantUse:
    """What a tenant asked of one router, or of all routers but one."""

    tenant: str
    active: int  # requests under way now
    requests: int = 0  # begun since the last report
    tokens: int = 0  # of answers that ended since the last report

    def then(self, later: "TenantUse") -> "TenantUse":
        """Both reports as one."""
        requests, tokens = self.requests + later.requests, self.tokens + later.tokens
        return TenantUse(self.tenant, later.active, requests, tokens)


@dataclass(frozen=True, slots=True)
class RouterReport:
    """What changed at one router since its last report."""

    usage: tuple[ReplicaUsage, ...] = ()
    tenants: tuple[TenantUse, ...] = ()


@dataclass(frozen=True, slots=True)
class TrackUpdate:
    """One step of a router's stream. When `full`, what is not named does not exist."""

    full: bool
    ready: tuple[ReadyReplica, ...] = ()
    gone: tuple[str, ...] = ()  # replica ids
    ended: tuple[str, ...] = ()  # replica ids; nothing comes from them any more
    elsewhere: tuple[
        ReplicaUsage, ...
    ] = ()  # of other routers; also of replicas that are not ready
    tenants: tuple[TenantUse, ...] = ()  # at other routers


@dataclass(frozen=True, slots=True)
class ReplicaView:
    replica_id: str
    node: str
    state: ReplicaState
    active: int  # requests over all routers


@dataclass(frozen=True, slots=True)
class ModelView:
    model: str
    rung: Rung  # the highest on any node
    replicas: tuple[ReplicaView, ...]
    idle_s: float | None  # since the last request that the scheduler knows of
    predicted_ms: float | None  # to serve a request that came now; None when nothing could
    trouble: str = ""  # why it does not start, one sentence
    trouble_age_s: float | None = None  # since that failure; None: it holds now


@dataclass(frozen=True, slots=True)
class NodeView:
    node: str
    memory_bytes: int
    memory_promised_bytes: int
    gpus: tuple[GpuFacts, ...] = ()
    draining: bool = False
    moving: int = 0  # models whose bytes are still to go to another node, where it drains
    tenants: tuple[str, ...] = ()  # whose models alone it takes; empty: everybody's


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What to plan with; None: as the scheduler's settings are."""

    gpu_price: float | None = None
    memory_price: float | None = None
    pinned_price: float | None = None
    disk_price: float | None = None
    memory: float | None = None  # times the bytes that nodes have


@dataclass(frozen=True, slots=True)
class PlannedModel:
    model: str
    node: str
    now: str  # "serving", "hot", "parked" or "frozen"
    rung: Rung  # where it should rest
    expected_s: float  # until its next request
    wake_s: float  # from there
    frozen_wake_s: float
    value: float  # seconds of waiting saved a second, less the price
    why: str  # in words


@dataclass(frozen=True, slots=True)
class PlanView:
    models: tuple[PlannedModel, ...]
    solver: str
    seconds: float
    value: float


@dataclass(frozen=True, slots=True)
class Predictions:
    """How the latest predictions of climbs came true."""

    count: int = 0
    error_p90: float = 0.0  # nine in ten were off by so much at most, relative to what was taken


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The scheduler's view, for people."""

    models: tuple[ModelView, ...]
    nodes: tuple[NodeView, ...]
    predictions: Predictions = Predictions()
