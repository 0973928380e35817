"""One climb: an effort to get one more serving replica of a model, over as many attempts as it takes. Pure."""

from dataclasses import dataclass, field
from enum import Enum

from woodfrog.model.rung import Rung
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler.board import Ticket, Waited
from woodfrog.scheduler.events import ClimbFailed, StartClimb
from woodfrog.scheduler.forecasts import Placement


class Phase(Enum):
    ROOM = "room"  # waits until its victims are frozen
    RUNNING = "running"  # a node works on it


class Effort(Enum):
    FIRST = "first"  # where it is fastest
    ELSEWHERE = "elsewhere"  # on a node that did not fail
    COLD = "cold"  # anywhere, without the snapshot


#: What is tried, in this order, after an attempt of each kind failed.
RETRIES: dict[Effort, tuple[Effort, ...]] = {
    Effort.FIRST: (Effort.ELSEWHERE, Effort.COLD),
    Effort.ELSEWHERE: (Effort.COLD,),
    Effort.COLD: (),
}


@dataclass(slots=True)
class Climb:
    name: str
    spec: ModelSpec
    ticket: int  # that caused it; 0: none did
    began: float
    ahead: bool = False  # nobody needs to wait for it
    waiters: dict[int, Ticket] = field(default_factory=dict)
    effort: Effort = Effort.FIRST
    attempts: int = 0
    phase: Phase = Phase.ROOM
    placement: Placement | None = None  #: of the attempt at hand
    victims: set[str] = field(default_factory=set)  #: in ROOM: replicas that still hold its memory
    replica_id: str | None = None  #: that it lifts, once it has a name
    reserved: bool = False  #: its node's reservation counts it
    failed_nodes: frozenset[str] = frozenset()
    restored: bool = False  #: a snapshot was used
    started: float = 0.0  #: the attempt at hand, by its node
    failure: ClimbFailed | None = None  #: the last
    ended: set[str] = field(default_factory=set)  #: of its model, as its node told

    @property
    def attempt(self) -> str:
        return f"{self.name}.{self.attempts}"

    @property
    def thaws(self) -> bool:
        return self.placement is not None and self.placement.replica_id is not None

    def thaws_amid(self, event: ClimbFailed, reason: str) -> bool:
        """Its thaw was refused for the reason: the replica moves already."""
        return self.thaws and event.reason == reason

    @property
    def new_bytes(self) -> int:
        """Of memory that its attempt promises; what is thawed has it."""
        return 0 if self.thaws else self.spec.memory_bytes

    @property
    def new_count(self) -> int:
        return 0 if self.thaws else 1

    @property
    def node(self) -> str:
        assert self.placement is not None
        return self.placement.node

    def waited(self, now: float, from_rung: Rung, fallback_reason: str = "") -> Waited:
        """What it was to those who waited for it."""
        return Waited(self.name, from_rung, (now - self.began) * 1000, fallback_reason)

    def order(self, yields: tuple[str, ...]) -> StartClimb:
        """Of the attempt at hand. `yields`: who makes room on the node's GPUs, in this order."""
        placement = self.placement
        assert placement is not None
        return StartClimb(
            self.name, self.attempt, placement.node, self.spec, placement.snapshot,
            placement.replica_id, placement.rung, placement.predicted_s, self.ticket, yields,
            placement.seen, led=self.ahead and not self.waiters,
        )  # fmt: skip
