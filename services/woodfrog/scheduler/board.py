"""What the parts of the state share: the view, who waits, and the commands of the event at hand. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from woodfrog.model.node import NodeFacts
from woodfrog.model.placement import ANYONE, Acquired, Caller, ReadyReplica
from woodfrog.model.rung import Rung
from woodfrog.scheduler.demand import Demand
from woodfrog.scheduler.estimates import Estimates
from woodfrog.scheduler.events import Announce, Command, Descend, Grant, Refusal, Refuse
from woodfrog.scheduler.fetches import Fetches
from woodfrog.scheduler.moves import Moves
from woodfrog.scheduler.room import more_room
from woodfrog.scheduler.service_times import ServiceTimes
from woodfrog.scheduler.timers import Timers
from woodfrog.scheduler.turns import Turns
from woodfrog.scheduler.usage import Usage
from woodfrog.scheduler.view import ClusterView, ReplicaRecord, fingerprint_key

AHEAD_RETRY_MAX_S = 300.0


@dataclass(frozen=True, slots=True)
class Limits:
    waiting_max: int = 1024  # tickets of one model that wait for a slot
    node_patience_s: float = 3.0  # a registered node has so long to connect
    node_return_s: float = 10.0  # a lost node has so long to come back before requests fail for it
    suspect_s: float = (
        2.0  # a replica that failed a router is ended unless its node names it by then
    )
    promise_s: float = 10.0  # a grant that no router reports counts so long
    refusal_s: float = 2.0  # a node that refused with room is asked again after this
    freeze_s: float = 300.0  # idle time before an end, where neither spec nor plan tells
    descend_retry_s: float = 1.0  # a replica that was not lowered counts as used for so long
    retry_after_s: float = 1.0  # what a caller without capacity is told
    attempts_max: int = 8  # of one climb, refusals counted
    routers_s: float = (
        3.0  # routers have so long to say what runs, before the clock lowers anything
    )
    room_s: float = 10.0  # a request waits so long for room that comes once others idle
    ahead_retry_s: float = 10.0  # after a climb that nobody asked for found no room, or failed
    moves_per_minute: int = 30  # on one node, by the plan


@dataclass(frozen=True, slots=True)
class Waited:
    """The climb that a ticket waited for."""

    climb: str
    rung: Rung
    climb_ms: float
    fallback_reason: str


@dataclass(slots=True)
class Ticket:
    """One Acquire that is not answered yet."""

    number: int
    model: str
    router: str
    excluded: frozenset[str]
    came: float
    deadline: float
    caller: Caller = ANYONE
    turn: float = 0.0  #: of those that wait for the model
    waited: Waited | None = None  #: for the first climb that ended for it
    climb: str | None = None  #: that it waits for; None while it waits for a slot or for room

    @property
    def rank(self) -> tuple[float, int]:
        """Who is served first."""
        return self.turn, self.number


class Board:
    def __init__(self, epoch: str, limits: Limits, estimates: Estimates) -> None:
        self.epoch = epoch
        self.limits = limits
        self.estimates = estimates
        self.demand = Demand()
        self.moves = Moves(limits.moves_per_minute)
        self.service_times = ServiceTimes()
        #: Where idle replicas are to rest, by the plan; others go by the clock.
        self.planned: Mapping[str, Rung] = {}
        self.led_since = float("-inf")
        self.leads = True
        self.now = float("-inf")
        self.view = ClusterView()
        self.fetches = Fetches(self.view, estimates)
        self.usage = Usage()
        self.timers = Timers()
        self.tickets: dict[int, Ticket] = {}
        self.waiting: dict[str, dict[int, Ticket]] = {}  #: by model; never empty
        self._turns: dict[str, Turns] = {}  # by model of `waiting` and `joined`
        self.rising: Counter[str] = Counter()  #: climbs under way, by model; never 0
        self.joined: Counter[str] = Counter()  #: tickets that wait for climbs, by model; never 0
        self.listed = False  #: the catalog came once
        self.starting: set[str] = (
            set()
        )  #: nodes of the first listing that still have time to connect
        self.awaited: set[str] = set()  #: nodes that may bring capacity soon; "" is any node
        self.touched: dict[str, None] = {}  #: replicas to look at before the event ends
        #: Models whose waiting tickets may have a chance now; None where all is to be looked at, else what the named nodes may give.
        self.stirred: dict[str, set[str] | None] = {}
        self.ahead_fails: dict[str, int] = {}  #: in a row, by model
        self.listed_at = float("inf")  #: when the catalog came
        self.minded: set[str] = set()  #: models of which some replicas are to serve always
        self.lacking: dict[str, None] = {}  #: of them, those to count before the event ends
        self._commands: list[Command] = []
        self._changes: dict[str, ReadyReplica | None] = {}  # for routers; None: gone
        self._ended: list[str] = []  # that routers may still wait for
        self._placements = 0

    def order(self, command: Command) -> None:
        self._commands.append(command)

    def take_commands(self) -> list[Command]:
        if self._changes or self._ended:
            ready = tuple(replica for replica in self._changes.values() if replica is not None)
            gone = tuple(name for name, replica in self._changes.items() if replica is None)
            self.order(Announce(ready, gone, tuple(self._ended)))
            self._changes, self._ended = {}, []
        commands, self._commands = self._commands, []
        return commands

    def touch(self, replica_id: str) -> None:
        self.touched[replica_id] = None
        if (record := self.view.replicas.get(replica_id)) is not None:
            self.view.changed(record.replica.node)
            self.lacks(record.replica.model)

    def lacks(self, model: str) -> None:
        """It may have too few replicas that serve, or those that it must keep may be others."""
        if model in self.minded:
            self.lacking[model] = None

    def try_ahead_later(self, model: str, *, failed: bool = False) -> None:
        """What nobody asked for is not tried again at once; what failed, twice as late each time."""
        fails = self.ahead_fails[model] = self.ahead_fails.get(model, -1) + failed
        pause_s = self.limits.ahead_retry_s * 2 ** max(0, fails)
        self.timers.set(("ahead", model), self.now + min(pause_s, AHEAD_RETRY_MAX_S))

    def try_ahead_anew(self, model: str) -> None:
        """It climbed, or is another now."""
        self.ahead_fails.pop(model, None)
        self.timers.drop(("ahead", model))
        self.lacks(model)

    def stir(self, model: str) -> None:
        self.stirred[model] = None

    def stir_room(self, node: str) -> None:
        """Room or hope changed there."""
        for model in self.waiting:
            nodes = self.stirred.setdefault(model, set())
            if nodes is not None:
                nodes.add(node)

    def stir_all(self) -> None:
        """Room or hope changed everywhere."""
        self.stirred.update(dict.fromkeys(self.waiting))

    # --- tickets ---

    def wait(self, ticket: Ticket) -> None:
        """A new one takes its turn; one whose climb came to nothing has it already."""
        ticket.climb = None
        turns = self._turns.setdefault(ticket.model, Turns())
        ticket.turn = ticket.turn or turns.take(ticket.caller)
        self.waiting.setdefault(ticket.model, {})[ticket.number] = ticket
        self.stirred[ticket.model] = None

    def stop_waiting(self, ticket: Ticket) -> None:
        waiting = self.waiting.get(ticket.model, {})
        waiting.pop(ticket.number, None)
        if not waiting:
            self.waiting.pop(ticket.model, None)

    def crowds(self, ticket: Ticket) -> bool:
        """It waits and is one too many: of the whole, or of its tenant, which leaves as many to others as it has."""
        waiting, most = self.waiting.get(ticket.model, {}), self.limits.waiting_max
        if ticket.number not in waiting or len(waiting) <= most // 2:
            return False
        tenant = ticket.caller.tenant
        own = sum(each.caller.tenant == tenant for each in waiting.values()) if tenant else 0
        return len(waiting) > most or own > most - len(waiting) + 1

    def in_turn(self, model: str) -> list[Ticket]:
        """Those that wait, the next to be served first."""
        return sorted(self.waiting.get(model, {}).values(), key=lambda ticket: ticket.rank)

    def unjoin(self, model: str, count: int) -> None:
        _less(self.joined, model, count)

    def rises(self, model: str) -> None:
        """A climb of it begins. Which of its replicas it must keep may be others while it does."""
        self.rising[model] += 1
        for record in self.view.replicas_of(model) if model in self.minded else ():
            self.touched[record.replica.replica_id] = None

    def risen(self, model: str) -> None:
        """A climb of it is over."""
        _less(self.rising, model, 1)
        self.lacks(model)
        if model in self.waiting:  # they counted on its slots
            self.stir(model)

    def close(self, ticket: Ticket) -> None:
        """It is answered, or nobody wants the answer."""
        self.stop_waiting(ticket)
        if ticket.model not in self.waiting and ticket.model not in self.joined:
            self._turns.pop(ticket.model, None)
        del self.tickets[ticket.number]
        self.timers.drop(("ticket", str(ticket.number)))

    def refuse(
        self,
        ticket: Ticket,
        refusal: Refusal,
        reason: str,
        message: str,
        retry_after_s: float | None = None,
    ) -> None:
        self.close(ticket)
        self.order(Refuse(ticket.number, refusal, reason, message, retry_after_s))

    def has_slot(self, record: ReplicaRecord, ticket: Ticket) -> bool:
        return record.replica.replica_id not in ticket.excluded and self.is_open(record)

    def is_open(self, record: ReplicaRecord) -> bool:
        """It has a slot for somebody."""
        replica = record.replica
        free = self.usage.active(replica.replica_id) < replica.slots
        return free and self.view.offered(record)

    def grant(self, ticket: Ticket, record: ReplicaRecord) -> None:
        replica_id = record.replica.replica_id
        assert self.has_slot(record, ticket), f"{replica_id} has no slot"
        self._placements += 1
        placement_id = f"{self.epoch}-{self._placements}@{replica_id}"
        if (turns := self._turns.get(ticket.model)) is not None:
            turns.served(ticket.turn)
        self.close(ticket)
        self.usage.promise(placement_id, replica_id, ticket.router)
        self.service_times.began(ticket.model, 1)
        self.timers.set(("placement", placement_id), self.now + self.limits.promise_s)
        record.busy = True
        record.quiet = False
        self.touch(replica_id)
        waited = ticket.waited
        if waited is None:
            acquired = Acquired(placement_id, record.ready, Rung.SERVING)
        else:
            acquired = Acquired(
                placement_id,
                record.ready,
                waited.rung,
                waited.climb_ms,
                waited.fallback_reason,
            )
        self.order(Grant(ticket.number, acquired, waited.climb if waited else None))

    # --- replicas ---

    def announce(self, record: ReplicaRecord, offered: bool) -> None:
        record.announced = offered
        self._changes[record.replica.replica_id] = record.ready if offered else None

    def descend(self, record: ReplicaRecord, rung: Rung, *, led: bool = False) -> None:
        replica = record.replica
        assert record.quiet, f"{replica.replica_id} is in use"
        self.view.lower(record, rung)
        record.descend_began = self.now
        record.words_then = record.words
        record.quiet = False
        self.touch(replica.replica_id)
        self.order(Descend(replica.replica_id, replica.node, rung, led))

    def put_facts(self, node: str, facts: NodeFacts) -> None:
        record = self.view.nodes[node]
        if facts != record.facts:
            if facts.draining != record.facts.draining:
                for each in record.replicas.values():
                    self.lacks(each.replica.model)
            if more_room(record.facts, facts):
                self.stir_room(node)
            record.facts = facts
            record.print_key = fingerprint_key(facts.fingerprint)
            record.refused_bytes = None
            self.view.changed(node)

    def drop(self, replica_id: str) -> ReplicaRecord | None:
        """It ended, with all that ran on it."""
        record = self.view.drop_replica(replica_id)
        if record is not None:
            self.end_promises(self.usage.forget(replica_id))
            self.timers.drop(("replica", replica_id))
            if record.announced:
                self._changes[replica_id] = None
            if record.announced or record.busy:
                self._ended.append(replica_id)
            self.lacks(record.replica.model)
            self.stir_room(record.replica.node)
            if record.replica.model in self.waiting:
                self.stir(record.replica.model)
        return record

    def end_promises(self, placements: Iterable[str]) -> None:
        for placement_id in placements:
            self.timers.drop(("placement", placement_id))

    def check(self) -> None:
        self.view.check()
        self.usage.check()
        for model, waiting in self.waiting.items():
            assert waiting, "a model that nobody waits for is kept"
            for number, ticket in waiting.items():
                assert self.tickets[number] is ticket
                assert (ticket.model, ticket.climb) == (model, None)
        for number, ticket in self.tickets.items():
            assert ("ticket", str(number)) in self.timers, "a ticket without a deadline"
            waits = number in self.waiting.get(ticket.model, {})
            assert waits != (ticket.climb is not None), "a ticket waits for one thing exactly"
        for placement_id in self.usage.promised():
            assert ("placement", placement_id) in self.timers, "a promise without an end"
        for replica_id, record in self.view.replicas.items():
            assert record.announced == self.view.offered(record), "routers know otherwise"
            assert record.busy == (self.usage.active(replica_id) > 0)
            if record.live and not (record.busy or record.quiet or record.needed):
                assert ("replica", replica_id) in self.timers, "an idle replica is forgotten"
        assert not self.touched
        assert not self.stirred


def _less(counts: Counter[str], name: str, count: int) -> None:
    counts[name] -= count
    if not counts[name]:
        del counts[name]
