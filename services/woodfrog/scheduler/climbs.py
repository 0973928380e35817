"""Climbs under way: who waits for which, what is tried next when one fails. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import replace

from woodfrog.model.node import Replica, ReplicaState
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler import bursts, climb_checks, fetches, hope, reservations
from woodfrog.scheduler.board import Board, Ticket
from woodfrog.scheduler.climb import RETRIES, Climb, Effort, Phase
from woodfrog.scheduler.events import (
    CancelClimb,
    ClimbFailed,
    ClimbFinished,
    ClimbRefused,
    Refusal,
)
from woodfrog.scheduler.forecasts import Placement, PlaceRequest
from woodfrog.scheduler.policy import SOON_S, Eviction, NoCapacity, find, place
from woodfrog.scheduler.refusals import no_capacity
from woodfrog.scheduler.room import facts_off_gpu, facts_with, facts_without, yields
from woodfrog.scheduler.view import RESTING, ReplicaRecord

_AWAY = ("NODE_LOST", "RPC_UNAVAILABLE")  # the node did not answer; it may be back soon


class Climbs:
    def __init__(self, board: Board) -> None:
        self._board = board
        self._climbs: dict[str, Climb] = {}
        self._of_model: dict[str, dict[str, Climb]] = {}
        self._victims: dict[str, Climb] = {}  # by replica
        self._count = 0

    def __contains__(self, name: str) -> bool:
        return name in self._climbs

    def of_model(self, model: str) -> Collection[Climb]:
        return self._of_model.get(model, {}).values()

    def get(self, name: str) -> Climb:
        return self._climbs[name]

    def under_way(self) -> set[str]:
        """Attempts on which nodes work."""
        return {c.attempt for c in self._climbs.values() if c.phase is Phase.RUNNING}

    # --- from a ticket to a climb ---

    def lift(self, ticket: Ticket, spec: ModelSpec, slot_comes: bool) -> bool:
        """Joins a climb or starts one. False: the ticket must wait, for a slot, or for nodes that may come."""
        board = self._board
        pointers = board.view.pointers(spec)
        queue_s = bursts.queue_s(board, ticket, self.of_model(spec.name))
        request = PlaceRequest(spec, pointers, excluded_replicas=ticket.excluded)
        thaw = place(replace(request, new=False), board.view, board.estimates)
        quick = isinstance(thaw, Placement) and thaw.predicted_s < SOON_S
        if slot_comes and not quick:
            return False
        climb = self._open(ticket, spec, thaw_only=quick)
        if climb is not None and (queue_s is None or queue_s >= bursts.left_s(board, climb)):
            self._join(climb, ticket)
            return True
        if quick and isinstance(thaw, Placement):
            return self._if_it_pays(ticket, spec, thaw, queue_s)
        new = self.replica_count(spec) < spec.replicas_max
        found = find(replace(request, new=new), board.view, board.estimates)
        if not isinstance(found, NoCapacity):
            return self._if_it_pays(ticket, spec, found, queue_s)
        slots = bursts.slots(board, ticket, self.of_model(spec.name))
        if not new or slots or hope.waits(board, ticket, spec):
            return False
        self._refuse_no_capacity(ticket, spec, found)
        return True

    def _if_it_pays(
        self, ticket: Ticket, spec: ModelSpec, found: Placement | Eviction, queue_s: float | None
    ) -> bool:
        """One more replica, unless a slot of those there are comes sooner; once waiting took as long as a climb, it does."""
        board = self._board
        placement = found.placement if isinstance(found, Eviction) else found
        waits_until = ticket.came + placement.predicted_s
        if bursts.pays(queue_s, placement.predicted_s) or board.now >= waits_until:
            climb = self._name(spec, ticket.number)
            self._join(climb, ticket)
            self._begin(climb, found)
            return True
        board.timers.set(("queue", spec.name), waits_until)
        return False

    def climb_ahead(self, spec: ModelSpec, node: str = "") -> bool:
        """Lifts one more replica though nobody asked: on the node, if it has room there, else anywhere.

        False when there is no room, or the model has as many as it may have.
        """
        view = self._board.view
        # One more than it may have takes the place of one whose node drains.
        new = self.replica_count(spec) - view.draining_count(spec.name) < spec.replicas_max
        request = PlaceRequest(spec, view.pointers(spec), new=new, node=node)
        found = (place if node else find)(request, view, self._board.estimates)
        if isinstance(found, NoCapacity):
            return False
        self._begin(self._name(spec, ticket=0, ahead=True), found)
        return True

    def leave(self, ticket: Ticket) -> None:
        """The climb goes on: its result is kept for the next."""
        if ticket.climb is not None:
            del self._climbs[ticket.climb].waiters[ticket.number]
            self._board.unjoin(ticket.model, 1)
            ticket.climb = None

    def joined(self, model: str) -> list[Ticket]:
        """Who waits for climbs of the model, in turn."""
        found = [ticket for climb in self.of_model(model) for ticket in climb.waiters.values()]
        return sorted(found, key=lambda ticket: ticket.rank)

    def _open(self, ticket: Ticket, spec: ModelSpec, *, thaw_only: bool) -> Climb | None:
        """One that will have a slot for the ticket; of several the fullest, then the oldest."""
        fitting = [
            climb
            for climb in self.of_model(spec.name)
            if climb.spec.weights == spec.weights
            and len(climb.waiters) < climb.spec.slots
            and climb.replica_id not in ticket.excluded
            and (climb.thaws or not thaw_only)
        ]
        return max(fitting, key=lambda climb: len(climb.waiters), default=None)

    def _name(self, spec: ModelSpec, ticket: int, *, ahead: bool = False) -> Climb:
        self._count += 1
        name = f"{self._board.epoch}-c{self._count}"
        climb = self._climbs[name] = Climb(name, spec, ticket, self._board.now, ahead)
        self._board.rises(spec.name)
        self._of_model.setdefault(spec.name, {})[name] = climb
        return climb

    def _join(self, climb: Climb, ticket: Ticket) -> None:
        self._board.stop_waiting(ticket)
        climb.waiters[ticket.number] = ticket
        self._board.joined[climb.spec.name] += 1
        ticket.climb = climb.name

    def replica_count(self, spec: ModelSpec) -> int:
        """Replicas that answer or will answer for the model, and climbs to new ones."""
        view = self._board.view
        named = sum(
            record.suspect_since is None and view.usable(record) and not view.leaves(record)
            for record in view.replicas_of(spec.name)
        )
        return named + sum(climb.replica_id is None for climb in self.of_model(spec.name))

    # --- attempts ---

    def _begin(self, climb: Climb, found: Placement | Eviction) -> None:
        if isinstance(found, Placement):
            climb.placement = found
            self._run(climb)
            return
        climb.placement = found.placement
        climb.phase = Phase.ROOM
        if found.placement.replica_id is not None:
            self._own(climb, self._board.view.replicas[found.placement.replica_id])
        reservations.reserve(self._board.view, climb)
        for replica_id in found.victims:
            climb.victims.add(replica_id)
            self._victims[replica_id] = climb
            self._board.descend(self._board.view.replicas[replica_id], found.rung)

    def _run(self, climb: Climb) -> None:
        placement = climb.placement
        assert placement is not None
        climb.phase = Phase.RUNNING
        climb.attempts += 1
        climb.started = self._board.now
        self._board.view.nodes[placement.node].climbs += 1
        self._board.view.changed(placement.node)
        climb.restored = climb.restored or placement.snapshot is not None
        manifests = fetches.wanted(placement, climb.spec.weights)
        self._board.fetches.begin(climb.attempt, placement.node, manifests)
        reservations.reserve(self._board.view, climb)
        if placement.replica_id is not None:
            record = self._board.view.replicas[placement.replica_id]
            record.words_then = record.words
            self._own(climb, record)
        node = self._board.view.nodes[placement.node]
        self._board.order(climb.order(yields(node) if climb.spec.gpu_bytes else ()))

    def _unreserve(self, climb: Climb) -> None:
        if reservations.unreserve(self._board.view, climb):
            self._board.stir_room(climb.node)

    def _own(self, climb: Climb, record: ReplicaRecord) -> None:
        climb.replica_id = record.replica.replica_id
        record.climb = climb.name
        record.quiet = False
        self._board.touch(climb.replica_id)

    def _let_go(self, climb: Climb) -> ReplicaRecord | None:
        """Ends the attempt at hand. Returns the replica that it was lifting, if that has a name and exists."""
        self._unreserve(climb)
        if climb.phase is Phase.RUNNING:
            self._board.fetches.end(climb.attempt)
            self._board.view.climb_over(climb.node)
        climb.phase = Phase.ROOM
        for replica_id in climb.victims:
            del self._victims[replica_id]
        climb.victims.clear()
        record = self._board.view.replicas.get(climb.replica_id or "")
        climb.replica_id = None
        if record is not None:
            record.climb = None
            record.use(self._board.now)
            self._board.touch(record.replica.replica_id)
        return record

    def _end(self, climb: Climb) -> list[Ticket]:
        """Returns who waited; they wait for nothing then."""
        self._let_go(climb)
        del self._climbs[climb.name]
        of_model = self._of_model[climb.spec.name]
        del of_model[climb.name]
        if not of_model:
            del self._of_model[climb.spec.name]
        self._board.risen(climb.spec.name)
        self._board.unjoin(climb.spec.name, len(climb.waiters))
        for ticket in climb.waiters.values():
            ticket.climb = None
        return list(climb.waiters.values())

    # --- what nodes answer ---

    def finished(self, event: ClimbFinished) -> None:
        climb = self._current(event.attempt)
        if climb is None:
            return
        board, climbed = self._board, event.climbed
        name = climbed.replica.replica_id
        if name in climb.ended:  # its node's stream was faster
            self.failed(ClimbFailed(event.attempt, "REPLICA_LOST", f"replica {name!r} ended"))
            return
        assert climb.placement is not None
        if (forecast := climb.placement.forecast) is not None:
            took_s = board.now - climb.started
            board.estimates.learn(forecast, climbed.from_rung, climbed.stages, took_s)
        self._claim(climb, climbed.replica)
        waiters = self._end(climb)
        record = board.view.replicas.get(name)
        if record is None or record.behind(ReplicaState.CLIMBING, ReplicaState.SERVING):
            if record is None or record.replica.state in RESTING:
                before = record.replica if record is not None else None
                facts = board.view.nodes[climb.node].facts
                board.put_facts(climb.node, facts_with(facts, climb.spec, climbed.replica, before))
            record = self._put(climb.node, climbed.replica)
            record.suspect_since = None
        board.try_ahead_anew(climb.spec.name)
        if climb.ahead and not waiters:  # it goes to rest at once, unless `replicas_min` keeps it
            record.used = board.now - climb.spec.park_after_s
        waited = climb.waited(board.now, climbed.from_rung, climbed.fallback_reason)
        for ticket in waiters:
            ticket.waited = ticket.waited or waited
            board.wait(ticket)
        for ticket in board.in_turn(climb.spec.name):
            if board.has_slot(record, ticket):
                board.grant(ticket, record)

    def refused(self, event: ClimbRefused) -> None:
        climb = self._current(event.attempt)
        if climb is None:
            return
        board = self._board
        board.put_facts(climb.node, event.facts)
        if climb.spec.admitted(event.facts.tenants):  # else it refuses no other's
            self._note_refusal(climb)
        board.timers.set(("refused", climb.node), board.now + board.limits.refusal_s)
        self._let_go(climb)
        if climb.waiters and board.view.coming_slots(climb.spec.name) >= len(climb.waiters):
            for ticket in self._end(climb):  # another scheduler was faster
                board.wait(ticket)
            return
        later = () if climb.effort is Effort.FIRST else RETRIES[climb.effort]
        self._go_on(climb, (climb.effort, *later))

    def failed(self, event: ClimbFailed) -> None:
        climb = self._current(event.attempt)
        if climb is None:
            return
        record = self._let_go(climb)
        raced = climb.thaws_amid(event, "REPLICA_BUSY")  # another scheduler lifts it
        if raced and record is not None and record.behind(ReplicaState.CLIMBING):
            record = self._put(climb.node, replace(record.replica, state=ReplicaState.CLIMBING))
        if raced or (record is not None and record.replica.state is ReplicaState.SERVING):
            # Or its node named it before the answer was lost.
            for ticket in self._end(climb):
                self._board.wait(ticket)
            return
        gone = climb.thaws_amid(event, "REPLICA_GONE")  # another one may have lowered it
        climb.failure = climb.failure if gone else event
        if record is not None and (not gone or record.behind(ReplicaState.DESCENDING)):
            self.end_replica(record)
        if climb.thaws:  # one process failed: that says nothing about its node or the snapshot
            self._go_on(climb, (climb.effort, *RETRIES[climb.effort]))
        else:
            climb.failed_nodes |= {climb.node}
            self._go_on(climb, RETRIES[climb.effort])

    def _note_refusal(self, climb: Climb) -> None:
        assert climb.placement is not None
        node = self._board.view.nodes[climb.node]
        node.refused_bytes, node.refused_gpu_bytes = climb.spec.memory_bytes, 0
        if climb.placement.gpu:
            node.refused_bytes = climb.new_bytes
            node.refused_gpu_bytes = max(1, climb.placement.gpu_bytes)

    # --- replicas come and go ---

    def put_replica(self, node: str, replica: Replica) -> ReplicaRecord:
        """As its node tells it. A new one is taken for that of a climb that goes on there."""
        known = replica.replica_id in self._board.view.replicas
        record = self._put(node, replica)
        record.words += 1
        if not known and replica.state in (ReplicaState.CLIMBING, ReplicaState.SERVING):
            for climb in self.of_model(replica.model):
                mine = replica.is_of(climb.spec) and climb.node == node
                if mine and climb.phase is Phase.RUNNING and not climb.replica_id:
                    self._unreserve(climb)
                    self._own(climb, record)
                    break
        elif record.climb is not None and replica.state not in RESTING:
            climb = self._climbs[record.climb]
            if climb.phase is Phase.RUNNING:  # its node counts what it thaws
                self._unreserve(climb)
        return record

    def _put(self, node: str, replica: Replica) -> ReplicaRecord:
        board = self._board
        known = board.view.replicas.get(replica.replica_id)
        if known is not None and (known.replica.node, known.replica.model) != (node, replica.model):
            self.drop_replica(replica.replica_id)
        record = board.view.put_replica(replace(replica, node=node), board.now)
        board.touch(replica.replica_id)
        return record

    def _claim(self, climb: Climb, replica: Replica) -> None:
        """It is this climb's: when two climb on one node, its name may have been taken for the other's."""
        record = self._board.view.replicas.get(replica.replica_id)
        if record is None or record.climb is None or record.climb == climb.name:
            return
        other = self._climbs[record.climb]
        if climb.replica_id is not None:
            self._own(other, self._board.view.replicas[climb.replica_id])
        else:
            other.replica_id = None
            self._unreserve(climb)
            reservations.reserve(self._board.view, other)
        self._own(climb, record)

    def parked(self, record: ReplicaRecord, state: ReplicaState) -> None:
        """Its node did what it was asked; the stream says so too, before or later."""
        if record.behind(ReplicaState.DESCENDING):
            told = replace(record.replica, state=state)
            if state is ReplicaState.PARKED and told.gpu:
                facts = facts_off_gpu(self._board.view.nodes[told.node], record.replica)
                self._board.put_facts(told.node, facts)
                told = replace(told, gpu_bytes=0)
            record.replica = told
            self._board.touch(told.replica_id)
        self._victim_left(record.replica.replica_id)

    def end_replica(self, record: ReplicaRecord) -> None:
        """It ended, and its node's facts may not say so yet."""
        replica = record.replica
        node = self._board.view.nodes[replica.node]
        self._board.put_facts(replica.node, facts_without(node, replica))
        self.drop_replica(replica.replica_id)

    def replica_gone(self, replica: Replica) -> None:
        """As its node tells it."""
        for climb in self.of_model(replica.model):
            if climb.phase is Phase.RUNNING and climb.node == replica.node:
                climb.ended.add(replica.replica_id)
        self.drop_replica(replica.replica_id)

    def drop_replica(self, replica_id: str) -> None:
        record = self._board.drop(replica_id)
        if record is None:
            return
        if record.climb is not None:
            self._climbs[record.climb].replica_id = None
        self._victim_left(replica_id)

    def _victim_left(self, replica_id: str) -> None:
        climb = self._victims.pop(replica_id, None)
        if climb is None:
            return
        climb.victims.discard(replica_id)
        if not climb.victims:
            self._room_made(climb)

    def victim_stayed(self, replica_id: str) -> None:
        """It was not lowered."""
        climb = self._victims.get(replica_id)
        if climb is not None:
            self._room_missed(climb)

    def _room_made(self, climb: Climb) -> None:
        view = self._board.view
        gone = climb.thaws and climb.replica_id is None
        hopes = [
            other for other in self._climbs.values() if other.victims and other.node == climb.node
        ]
        if not gone and reservations.fits(view, climb, hopes):
            self._run(climb)
        else:  # what it was to thaw ended, or somebody else was faster
            self._room_missed(climb)

    def _room_missed(self, climb: Climb) -> None:
        climb.attempts += 1
        self._let_go(climb)
        self._go_on(climb, (climb.effort,))

    def node_lost(self, node: str) -> None:
        """Call while the node is still in the view, but silent."""
        for climb in [climb for climb in self._climbs.values() if climb.node == node]:
            if climb.phase is Phase.RUNNING:
                self._board.order(CancelClimb(climb.attempt))
                self.failed(ClimbFailed(climb.attempt, "NODE_LOST", f"node {node!r} was lost"))
            else:
                self._room_missed(climb)

    def stop_model(self, model: str) -> list[Ticket]:
        """Returns who waited."""
        waiters = []
        for climb in list(self.of_model(model)):
            if climb.phase is Phase.RUNNING:
                self._board.order(CancelClimb(climb.attempt))
            waiters += self._end(climb)
        return waiters

    # --- what comes next ---

    def _current(self, attempt: str) -> Climb | None:
        """None when the attempt was cancelled."""
        climb = self._climbs.get(attempt.rpartition(".")[0])
        return climb if climb is not None and climb.attempt == attempt else None

    def _go_on(self, climb: Climb, efforts: Iterable[Effort]) -> None:
        """Another attempt, if somebody waits and anything is left to try."""
        board = self._board
        spec = climb.spec
        wanted = climb.waiters or (climb.ahead and spec.replicas_min)  # a plan makes another
        for effort in efforts if wanted and climb.attempts < board.limits.attempts_max else ():
            cold = effort is Effort.COLD
            if cold and not climb.restored and climb.effort is Effort.ELSEWHERE:
                continue  # two nodes failed to start it cold
            request = PlaceRequest(
                spec,
                {} if cold else board.view.pointers(spec),
                frozenset() if cold else climb.failed_nodes,
                frozenset().union(*(ticket.excluded for ticket in climb.waiters.values())),
                new=not climb.thaws or self.replica_count(spec) <= spec.replicas_max,
            )
            found = find(request, board.view, board.estimates)
            if not isinstance(found, NoCapacity):
                climb.effort = effort
                self._begin(climb, found)
                return
        self._give_up(climb)

    def _give_up(self, climb: Climb) -> None:
        board, failure = self._board, climb.failure
        exhausted = climb.attempts >= board.limits.attempts_max
        returning = failure is not None and failure.reason in _AWAY and bool(board.awaited)
        if climb.ahead:
            board.try_ahead_later(climb.spec.name, failed=failure is not None)
        for ticket in self._end(climb):
            if failure is not None and not returning:
                board.refuse(
                    ticket,
                    Refusal.UNAVAILABLE,
                    "CLIMB_FAILED",
                    f"model {ticket.model!r} could not be lifted in {climb.attempts} attempts, the last "
                    f"on node {climb.node!r}: {failure.message}; its log says more",
                )
            elif exhausted:
                self._refuse_no_capacity(ticket, climb.spec, NoCapacity({"refusing": 1}))
            else:  # decided again at once: refused, unless nodes may come
                board.wait(ticket)

    def _refuse_no_capacity(self, ticket: Ticket, spec: ModelSpec, found: NoCapacity) -> None:
        self._board.refuse(ticket, *no_capacity(spec, found, self._board.limits.retry_after_s))

    def check_waits(self, ticket: Ticket) -> None:
        """AssertionError when it waits though there is room."""
        model = self._board.view.models.get(ticket.model)
        if model is not None and self.replica_count(model.spec) < model.spec.replicas_max:
            climb_checks.check_waits(self._board, ticket, model.spec, self.of_model(ticket.model))

    def check(self) -> None:
        climb_checks.check(self._board, self._climbs, self._of_model, self._victims)
