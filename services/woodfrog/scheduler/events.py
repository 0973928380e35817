"""What the scheduler hears and what it orders. Events are past, commands imperative. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from woodfrog.model.node import Climbed, NodeFacts, NodeUpdate
from woodfrog.model.placement import ANYONE, Acquired, Caller, ReadyReplica, ReplicaUsage
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler.forecasts import Seen


@dataclass(frozen=True, slots=True)
class CatalogListed:
    """All that is in the catalog; it replaces what was known."""

    models: tuple[ModelSpec, ...] = ()
    snapshots: tuple[SnapshotPointer, ...] = ()
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelListed:
    spec: ModelSpec


@dataclass(frozen=True, slots=True)
class ModelRemoved:
    model: str


@dataclass(frozen=True, slots=True)
class SnapshotListed:
    pointer: SnapshotPointer


@dataclass(frozen=True, slots=True)
class SnapshotRemoved:
    pointer: SnapshotPointer  # as it was


@dataclass(frozen=True, slots=True)
class NodeListed:
    """It registered; its stream is awaited for a while."""

    node: str


@dataclass(frozen=True, slots=True)
class NodeReported:
    node: str
    update: NodeUpdate


@dataclass(frozen=True, slots=True)
class NodeSilent:
    """Its stream broke. It may come back: what it runs stays offered, nothing new goes there."""

    node: str


@dataclass(frozen=True, slots=True)
class NodeLost:
    node: str


@dataclass(frozen=True, slots=True)
class AcquireRequested:
    ticket: int  # rises with each
    model: str
    deadline: float  # on the clock of `now`
    router: str = ""
    excluded: frozenset[str] = frozenset()  # replicas that just failed it
    caller: Caller = ANYONE


@dataclass(frozen=True, slots=True)
class AcquireCancelled:
    ticket: int


@dataclass(frozen=True, slots=True)
class Released:
    placement_id: str
    replica_failed: bool = False


@dataclass(frozen=True, slots=True)
class UsageReported:
    router: str
    usage: tuple[ReplicaUsage, ...]


@dataclass(frozen=True, slots=True)
class RouterLost:
    router: str


@dataclass(frozen=True, slots=True)
class ClimbFinished:
    attempt: str
    climbed: Climbed


@dataclass(frozen=True, slots=True)
class ClimbRefused:
    attempt: str
    facts: NodeFacts  # fresh
    message: str


@dataclass(frozen=True, slots=True)
class ClimbFailed:
    attempt: str
    reason: str  # ErrorInfo reason
    message: str


@dataclass(frozen=True, slots=True)
class DescendFinished:
    replica_id: str
    rung: Rung


@dataclass(frozen=True, slots=True)
class DescendFailed:
    replica_id: str
    reason: str  # ErrorInfo reason; REPLICA_BUSY when it answers requests
    message: str


@dataclass(frozen=True, slots=True)
class PrefetchFinished:
    attempt: str


@dataclass(frozen=True, slots=True)
class PrefetchFailed:
    attempt: str
    reason: str  # ErrorInfo reason
    message: str


@dataclass(frozen=True, slots=True)
class Planned:
    """Where idle replicas are to rest: HOT, PARKED or FROZEN. Those that are not named go by the clock."""

    rungs: Mapping[str, Rung]
    values: Mapping[str, float] = field(default_factory=dict)  # of each that may be lowered
    #: Models without a replica that are to have one at rest, and on which node; what is worth most first.
    ahead: Mapping[str, str] = field(default_factory=dict)
    #: Models whose bytes are to lie on a node's disk, and of which.
    fetched: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Led:
    """Whether this scheduler leads now. Who does not has no plan, and leaves to the leader's what goes by one."""

    leads: bool


@dataclass(frozen=True, slots=True)
class Ticked:
    """A time that `next_time` named has come."""


Event = (
    CatalogListed
    | ModelListed
    | ModelRemoved
    | SnapshotListed
    | SnapshotRemoved
    | NodeListed
    | NodeReported
    | NodeSilent
    | NodeLost
    | AcquireRequested
    | AcquireCancelled
    | Released
    | UsageReported
    | RouterLost
    | ClimbFinished
    | ClimbRefused
    | ClimbFailed
    | DescendFinished
    | DescendFailed
    | PrefetchFinished
    | PrefetchFailed
    | Planned
    | Led
    | Ticked
)


class Refusal(Enum):
    """The error class that the caller gets."""

    NOT_FOUND = "NotFound"
    RESOURCE_EXHAUSTED = "ResourceExhausted"
    FAILED_PRECONDITION = "FailedPrecondition"
    UNAVAILABLE = "Unavailable"
    DEADLINE_EXCEEDED = "DeadlineExceeded"


@dataclass(frozen=True, slots=True)
class StartClimb:
    """Answers with ClimbFinished, ClimbRefused or ClimbFailed of the same `attempt`."""

    climb: str
    attempt: str  # unique, also over restarts of the scheduler
    node: str
    spec: ModelSpec
    snapshot: SnapshotPointer | None  # None: a cold start, or a thaw
    replica_id: str | None  # to thaw
    rung: Rung  # on which the model is there
    predicted_s: float
    ticket: int  # that caused the climb; its trace is the climb's; 0: none did
    yields: tuple[
        str, ...
    ] = ()  # who rests on the node's GPUs, in the order in which they make room
    seen: tuple[Seen, ...] = ()  # nodes between which it was decided
    led: bool = False


@dataclass(frozen=True, slots=True)
class CancelClimb:
    """Its answer is not wanted any more."""

    attempt: str


@dataclass(frozen=True, slots=True)
class Descend:
    """Answers with DescendFinished or DescendFailed."""

    replica_id: str
    node: str
    rung: Rung  # PARKED or FROZEN
    led: bool = False  # a leader's own order, as are those of a plan


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Answers with PrefetchFinished or PrefetchFailed of the same `attempt`. Twice is harmless."""

    attempt: str  # unique, also over restarts of the scheduler
    node: str
    spec: ModelSpec
    snapshot: SnapshotPointer | None  # None: the weights alone
    led: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    ticket: int
    acquired: Acquired  # without a traceparent: that is the shell's to know
    climb: str | None = None  # that the ticket waited for


@dataclass(frozen=True, slots=True)
class Refuse:
    ticket: int
    refusal: Refusal
    reason: str
    message: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Announce:
    """What changed for routers."""

    ready: tuple[ReadyReplica, ...]
    gone: tuple[str, ...]
    ended: tuple[str, ...] = ()  # of those that routers may still wait for


Command = StartClimb | CancelClimb | Descend | Prefetch | Grant | Refuse | Announce
