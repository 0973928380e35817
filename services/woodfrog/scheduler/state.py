"""The scheduler's decisions: events in, commands out. Pure; `loop.py` carries the commands out.

`board.py` is what the parts share, `world.py` notes what catalog and nodes say, `climbs.py` lifts, `rest.py` lowers,
`drains.py` empties nodes. Each event is handled in three steps: write down what happened, give waiting tickets what they
can have now, lower what is due.
"""

from collections.abc import Callable
from typing import Any

from woodfrog.model.node import ReplicaState
from woodfrog.model.placement import ReadyReplica
from woodfrog.model.rung import Rung
from woodfrog.scheduler import bursts, candidates, hope
from woodfrog.scheduler import events as on
from woodfrog.scheduler.ahead import Ahead
from woodfrog.scheduler.board import Board, Limits, Ticket
from woodfrog.scheduler.climbs import Climbs
from woodfrog.scheduler.demand import Demand
from woodfrog.scheduler.drains import Drains
from woodfrog.scheduler.estimates import Estimates
from woodfrog.scheduler.events import Command, Event, Refusal
from woodfrog.scheduler.rates import Rates
from woodfrog.scheduler.rest import Rest
from woodfrog.scheduler.view import ClusterView, ReplicaRecord
from woodfrog.scheduler.world import World

_STANDARD_LIMITS = Limits()


class SchedulerState:
    """Mutable; one owner, the loop."""

    def __init__(
        self,
        epoch: str,
        limits: Limits = _STANDARD_LIMITS,
        estimates: Estimates | None = None,
    ) -> None:
        """`epoch` differs in each life of the scheduler, so that no name is ever given twice."""
        self._board = Board(epoch, limits, estimates or Estimates(Rates()))
        self._rest = Rest(self._board)
        self._climbs = Climbs(self._board)
        self._ahead = Ahead(self._board, self._climbs)
        self._drains = Drains(self._board)
        self._world = world = World(self._board, self._climbs)
        self._alarms: dict[str, Callable[[str], None]] = {
            "ticket": lambda number: self._deadline_passed(self._board.tickets[int(number)]),
            "replica": self._board.touch,
            "placement": self._placement_is_old,
            "awaited": self._awaited_long,
            "refused": self._refused_long_ago,
            "queue": self._board.stir,
            "room": self._board.stir,
            "ahead": self._board.lacks,
            "drain": self._drains.look,
        }
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            on.AcquireRequested: self._acquire_requested,
            on.AcquireCancelled: self._acquire_cancelled,
            on.Released: self._released,
            on.UsageReported: self._usage_reported,
            on.RouterLost: self._router_lost,
            on.ClimbFinished: self._climbs.finished,
            on.ClimbRefused: self._climbs.refused,
            on.ClimbFailed: self._climbs.failed,
            on.DescendFinished: self._descended,
            on.DescendFailed: self._descended,
            on.PrefetchFinished: self._prefetched,
            on.PrefetchFailed: self._prefetched,
            on.CatalogListed: world.catalog_listed,
            on.ModelListed: world.model_listed,
            on.ModelRemoved: world.model_removed,
            on.SnapshotListed: world.snapshot_listed,
            on.SnapshotRemoved: world.snapshot_removed,
            on.NodeListed: world.node_listed,
            on.NodeReported: self._node_reported,
            on.NodeSilent: world.node_silent,
            on.NodeLost: self._node_lost,
            on.Planned: self._planned,
            on.Led: self._led,
            on.Ticked: self._ticked,
        }

    @property
    def view(self) -> ClusterView:
        return self._board.view

    @property
    def estimates(self) -> Estimates:
        return self._board.estimates

    @property
    def planned(self) -> bool:
        """Whether the last plan says anything."""
        return bool(self._board.planned)

    @property
    def demand(self) -> Demand:
        return self._board.demand

    def moving(self, node: str) -> int:
        """Models that are still to move from a node that drains."""
        return self._drains.waiting(node)

    def next_time(self) -> float | None:
        """When a Ticked is wanted."""
        return self._board.timers.next()

    def ready(self) -> tuple[ReadyReplica, ...]:
        """All that was announced."""
        replicas = self.view.replicas.values()
        return tuple(record.ready for record in replicas if record.announced)

    def active(self, replica_id: str) -> int:
        return self._board.usage.active(replica_id)

    def rises(self, model: str) -> bool:
        """Whether a climb of it is under way."""
        return self._board.rising[model] > 0

    def climbing(self, climb: str) -> bool:
        return climb in self._climbs

    def handle(self, event: Event, now: float) -> list[Command]:
        """Raises AssertionError on an event that cannot be: our own mistake, not the world's."""
        assert now >= self._board.now, "time went back"
        self._board.now = now
        self._handlers[type(event)](event)
        self._settle()
        return self._board.take_commands()

    def check(self) -> None:
        """The invariants; AssertionError when one is broken."""
        self._board.check()
        self._climbs.check()
        self._rest.check()
        self._drains.check()
        under_way = (part.under_way() for part in (self._climbs, self._drains, self._ahead))
        self._board.fetches.check(set().union(*under_way))
        candidates.check(self.view)
        for model, waiting in self._board.waiting.items():
            for ticket in waiting.values():
                assert not any(
                    self._board.has_slot(record, ticket) for record in self.view.replicas_of(model)
                ), f"ticket {ticket.number} waits beside a free slot"
            self._climbs.check_waits(self._board.in_turn(model)[0])

    # --- routers ---

    def _acquire_requested(self, event: on.AcquireRequested) -> None:
        board = self._board
        assert event.ticket not in board.tickets
        deadline = event.deadline
        if (model := self.view.models.get(event.model)) is not None:
            model.requested = board.now
            self._active(event.model)
            if model.spec.deadline_s is not None:
                deadline = min(deadline, board.now + model.spec.deadline_s)
        for replica_id in sorted(event.excluded):
            self._rest.suspect(replica_id)
        excluded = event.excluded
        if model is not None and self._climbs.replica_count(model.spec) >= model.spec.replicas_max:
            # Nothing else can answer. What moves, maybe by another scheduler, is welcome when it serves again.
            moving = (r for r in self.view.replicas_of(event.model) if not r.live)
            excluded = excluded.difference(r.replica.replica_id for r in moving)
        ticket = Ticket(
            event.ticket, event.model, event.router, excluded, board.now, deadline, event.caller
        )
        board.tickets[ticket.number] = ticket
        board.wait(ticket)
        self._serve(event.model)
        if ticket.number not in board.tickets:
            return
        if board.crowds(ticket):
            board.refuse(
                ticket,
                Refusal.RESOURCE_EXHAUSTED,
                "NO_CAPACITY",
                f"as many requests wait for model {event.model!r} as may; "
                f"try again in {board.limits.retry_after_s:g} s",
                board.limits.retry_after_s,
            )
        else:
            board.timers.set(("ticket", str(ticket.number)), deadline)

    def _acquire_cancelled(self, event: on.AcquireCancelled) -> None:
        ticket = self._board.tickets.get(event.ticket)
        if ticket is not None:
            self._climbs.leave(ticket)
            self._board.close(ticket)

    def _usage_reported(self, event: on.UsageReported) -> None:
        for usage in event.usage:
            kept = self._board.usage.report(event.router, usage)
            self._board.end_promises(kept)
            record = self.view.replicas.get(usage.replica_id)
            if record is not None and record.replica.model in self.view.models:
                more = usage.started - len(kept)  # that came without Acquire
                self._board.service_times.began(record.replica.model, max(0, more))
            self._used(usage.replica_id, usage.started > 0)

    def _router_lost(self, event: on.RouterLost) -> None:
        replicas, placements = self._board.usage.lose(event.router)
        self._board.end_promises(placements)
        self._board.touched.update(dict.fromkeys(sorted(replicas)))

    def _released(self, event: on.Released) -> None:
        replica_id = event.placement_id.rpartition("@")[2]
        if self._board.usage.keep(event.placement_id) is not None:
            self._board.end_promises((event.placement_id,))
            self._used(replica_id, started=False)
        if event.replica_failed:
            self._rest.suspect(replica_id)

    def _used(self, replica_id: str, started: bool) -> None:
        record = self.view.replicas.get(replica_id)
        if record is None:
            return
        self._board.touch(replica_id)
        self._active(record.replica.model)
        if not started:
            return
        record.use(self._board.now)  # even when it has ended by now
        if record.replica.model in self.view.models:
            self.view.models[record.replica.model].requested = self._board.now

    def _active(self, model: str) -> None:
        """It is asked for, or used: how long it idled tells when it will be again."""
        record = self.view.models.get(model)
        if record is None:
            return
        board = self._board
        climbs = board.rising[model] > 0 or model in board.waiting  # it woke already
        busy = climbs or any(each.busy for each in self.view.replicas_of(model))
        if record.active is not None and not busy:
            self._board.demand.woke(model, self._board.now - record.active)
        record.active = self._board.now

    # --- the plan ---

    def _planned(self, event: on.Planned) -> None:
        if (event.rungs or event.ahead or event.fetched) and not self._board.leads:
            return  # its term ended while it was made
        before, self._board.planned = self._board.planned, dict(event.rungs)
        for replica_id in {**before, **event.rungs}:  # in an order that is the same each time
            if before.get(replica_id) is not event.rungs.get(replica_id):
                self._board.touch(replica_id)
        for replica_id, record in self.view.replicas.items():
            record.value = event.values.get(replica_id, float("inf"))
        self._ahead.planned(event.ahead)
        self._ahead.fetch(event.fetched)

    def _prefetched(self, event: on.PrefetchFinished | on.PrefetchFailed) -> None:
        self._ahead.fetched(event)
        if isinstance(event, on.PrefetchFailed):
            self._drains.failed(event)
        else:
            self._drains.finished(event)

    def _led(self, event: on.Led) -> None:
        self._board.leads = event.leads
        self._board.led_since = self._board.now
        self._board.lacking.update(dict.fromkeys(self._board.minded))
        if not event.leads:
            self._planned(on.Planned({}))
        self._board.touched.update(dict.fromkeys(self.view.replicas))

    # --- nodes ---

    def _node_reported(self, event: on.NodeReported) -> None:
        self._world.node_reported(event)
        self._drains.heard(event.node)

    def _node_lost(self, event: on.NodeLost) -> None:
        self._world.node_lost(event)
        self._ahead.lost(event.node)
        self._drains.heard(event.node)

    def _descended(self, event: on.DescendFinished | on.DescendFailed) -> None:
        record = self.view.replicas.get(event.replica_id)
        if record is None or record.descending is None:
            return
        if isinstance(event, on.DescendFailed):
            self._rest.lowered(record, busy=True, over=event.reason == "TERM_OVER")
            self._climbs.victim_stayed(event.replica_id)
            return
        target = record.descending
        kind = self.view.nodes[record.replica.node].print_key
        self.estimates.learn_lowered(kind, event.rung, self._board.now - record.descend_began)
        self._rest.lowered(record, busy=False)
        if target is not Rung.FROZEN and event.rung in (Rung.PARKED, Rung.HOT):
            self._climbs.parked(record, ReplicaState(event.rung.value))
        else:
            self._climbs.end_replica(record)

    # --- time ---

    def _ticked(self, event: on.Ticked) -> None:
        for kind, name in self._board.timers.due(self._board.now):
            self._alarms[kind](name)

    def _placement_is_old(self, placement_id: str) -> None:
        replica_id = self._board.usage.keep(placement_id)
        if replica_id is not None:
            self._board.touch(replica_id)

    def _awaited_long(self, node: str) -> None:
        self._board.awaited.discard(node)
        self._board.starting.discard(node)
        self._board.stir_all()

    def _refused_long_ago(self, node: str) -> None:
        if node in self.view.nodes:
            self.view.nodes[node].refused_bytes = None
            self._board.stir_room(node)

    def _deadline_passed(self, ticket: Ticket) -> None:
        board = self._board
        waited_s = board.now - ticket.came
        doing = "all its replicas are full, or no node has room"
        retry_after_s = board.limits.retry_after_s
        if ticket.climb is not None:
            climb = self._climbs.get(ticket.climb)
            retry_after_s = max(retry_after_s, bursts.left_s(board, climb))
            doing = f"it still climbs on node {climb.node!r}"
            self._climbs.leave(ticket)
        board.refuse(
            ticket,
            Refusal.DEADLINE_EXCEEDED,
            "ACQUIRE_DEADLINE",
            f"model {ticket.model!r} was not ready after {waited_s:.1f} s: {doing}; "
            f"allow more time, or try again",
            retry_after_s,
        )

    # --- what follows ---

    def _settle(self) -> None:
        board = self._board
        seen: dict[str, None] = {}
        self._ahead.mark()
        while board.touched or board.stirred:
            touched, board.touched = board.touched, {}
            seen.update(touched)
            for replica_id in touched:
                self._rest.refresh(replica_id)
            stirred, board.stirred = board.stirred, {}
            for model in sorted(stirred, key=self._urgency) if len(stirred) > 1 else stirred:
                nodes = stirred[model]
                if nodes is None or hope.changed(board, model, nodes):
                    self._serve(model)
        self._ahead.look()
        for replica_id in board.touched:
            self._rest.refresh(replica_id)  # what it lifts now tells what is kept until then
        for replica_id in seen:
            self._rest.plan(replica_id)
        for replica_id in board.touched:
            self._rest.refresh(replica_id)
        board.touched = {}
        board.stirred = {}

    def _urgency(self, model: str) -> tuple[float, float]:
        """Where several wait for room: by what their waiting counts, then by deadline."""
        record, waiting = self.view.models.get(model), self._board.waiting.get(model, {})
        deadline = min((ticket.deadline for ticket in waiting.values()), default=float("inf"))
        return -(record.spec.priority if record is not None else 0.0), deadline

    def _serve(self, model: str) -> None:
        """By turns, of one tenant first come, first served; who excludes replicas does not hold up the others.

        Where the first waits on, the last may still be better off with one more replica. Where nobody waits for a slot,
        those that wait for climbs may have it.
        """
        board = self._board
        coming = self.view.coming_slots(model)
        wait: set[frozenset[str]] = set()  # who excludes as much as one that waits on, does too
        last: Ticket | None = None  # that waits on
        for ticket in board.in_turn(model):
            if ticket.excluded in wait or self._decide(ticket, slot_comes=coming > 0):
                continue
            coming, last = coming - 1, ticket
            if coming < 0:
                wait.add(ticket.excluded)
                if not ticket.excluded:
                    break
        while waiting := board.waiting.get(model):
            ticket = max(waiting.values(), key=lambda each: each.rank)
            if ticket is last or not self._decide(ticket, slot_comes=coming >= 0):
                break
        some = any(map(board.is_open, self.view.replicas_of(model)))
        for ticket in self._climbs.joined(model) if some else ():
            free = [r for r in self.view.replicas_of(model) if board.has_slot(r, ticket)]
            if free:
                self._climbs.leave(ticket)
                board.grant(ticket, min(free, key=self._load))

    def _decide(self, ticket: Ticket, slot_comes: bool) -> bool:
        """False when the ticket waits on."""
        board = self._board
        model = self.view.models.get(ticket.model)
        if model is None:
            if board.listed:
                board.refuse(
                    ticket,
                    Refusal.NOT_FOUND,
                    "MODEL_NOT_FOUND",
                    f"model {ticket.model!r} is not known; `woodfrog models list` shows those that are",
                )
            return board.listed
        free = [r for r in self.view.replicas_of(ticket.model) if board.has_slot(r, ticket)]
        if free:
            board.grant(ticket, min(free, key=self._load))
            return True
        if not board.listed or board.starting:
            return False
        return self._climbs.lift(ticket, model.spec, slot_comes)

    def _load(self, record: ReplicaRecord) -> tuple[int, str]:
        return self.active(record.replica.replica_id), record.replica.replica_id
