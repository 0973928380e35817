"""Which replicas are offered, which are idle, and when an idle one is lowered. Pure."""

from typing import NamedTuple

from woodfrog.model.node import ReplicaState
from woodfrog.model.rung import Rung
from woodfrog.scheduler.board import Board
from woodfrog.scheduler.view import ReplicaRecord


class _Due(NamedTuple):
    when: float
    rung: Rung
    by_plan: bool = False  #: else by the clock; only what the plan moves is counted and bounded


class Rest:
    def __init__(self, board: Board) -> None:
        self._board = board

    def refresh(self, replica_id: str) -> None:
        """Re-derives what follows from a replica's state and use."""
        board = self._board
        record = board.view.replicas.get(replica_id)
        if record is None:
            return
        active = board.usage.active(replica_id)
        model = record.replica.model
        if model in board.view.models:
            board.service_times.held(model, record.active * (board.now - record.active_since))
        record.active, record.active_since = active, board.now
        busy = active > 0
        if busy or record.busy:
            record.use(board.now)
        record.busy = busy
        record.kept = not busy and board.now < self._kept_until(record)
        board.view.changed(record.replica.node)
        was_quiet = record.quiet
        record.needed = self._needed(record)
        idle = record.live and not busy and not record.needed
        record.quiet = idle and board.now >= record.descend_after
        if record.quiet and not was_quiet:
            board.stir_room(record.replica.node)  # who waits may have it lowered
        offered = board.view.offered(record)
        if offered != record.announced:
            board.announce(record, offered)
        if model in board.waiting or model in board.joined:
            board.stir(model)

    def plan(self, replica_id: str) -> None:
        """Lowers the replica if it is time, else notes when to look again."""
        board = self._board
        record = board.view.replicas.get(replica_id)
        if record is None or not record.live or record.busy or record.needed:
            return
        if not record.quiet:
            board.timers.set(("replica", replica_id), record.descend_after)
            return
        due = self._due(record)
        if due is None:
            return
        when = max(due.when, board.listed_at + board.limits.routers_s)
        if when <= board.now:
            if due.by_plan:
                board.moves.note(record.replica.node, board.now)
            board.descend(record, due.rung, led=due.by_plan)
        else:
            again = min(when, self._kept_until(record)) if record.kept else when
            board.timers.set(("replica", replica_id), again)

    def suspect(self, replica_id: str) -> None:
        """It failed a router: not offered until its node names it again, and ended if that does not happen soon."""
        record = self._board.view.replicas.get(replica_id)
        if record is not None and record.live and record.suspect_since is None:
            record.suspect_since = self._board.now
            self._board.touch(replica_id)

    def lowered(self, record: ReplicaRecord, busy: bool, over: bool = False) -> None:
        """Its node answered; `busy` when it was not lowered, `over` when only because another scheduler leads."""
        self._board.view.lower(record, None)
        if busy and not over:
            record.use(self._board.now)
        if busy:
            record.descend_after = self._board.now + self._board.limits.descend_retry_s
            self._board.stir_room(record.replica.node)  # whoever waited for its room
        self._board.touch(record.replica.replica_id)

    def _needed(self, record: ReplicaRecord) -> bool:
        """Of a model's replicas that serve, the first `replicas_min` by name are; those on nodes that drain are the last,
        and only while others climb in their place.
        """
        model, view = record.replica.model, self._board.view
        if model not in self._board.minded or not view.offered(record):
            return False

        def order(each: ReplicaRecord) -> tuple[bool, str]:
            return view.nodes[each.replica.node].facts.draining, each.replica.replica_id

        if order(record)[0] and not (self._board.rising[model] or view.coming_slots(model)):
            return False
        offered = sorted(order(each) for each in view.replicas_of(model) if view.offered(each))
        return order(record) in offered[: view.models[model].spec.replicas_min]

    def _kept_until(self, record: ReplicaRecord) -> float:
        model = self._board.view.models.get(record.replica.model)
        return record.used + (model.spec.keep_hot_s if model is not None else 0.0)

    def _due(self, record: ReplicaRecord) -> _Due | None:
        board = self._board
        if record.suspect_since is not None:
            return _Due(record.suspect_since + board.limits.suspect_s, Rung.FROZEN)
        if not board.view.usable(record):
            return _Due(board.now, Rung.FROZEN) if board.listed else None
        spec = board.view.models[record.replica.model].spec
        idle_s = spec.freeze_after_s
        planned = board.planned.get(record.replica.replica_id) if idle_s is None else None
        state = record.replica.state
        free_at = board.moves.free_at(record.replica.node, board.now)
        if state is ReplicaState.SERVING and (idle_s is None or spec.park_after_s < idle_s):
            highest = Rung.HOT if spec.gpu_bytes else Rung.PARKED
            lower = planned not in (None, highest) and not record.kept and free_at <= board.now
            rung = planned if planned is not None and lower else highest
            return _Due(record.used + spec.park_after_s, rung, lower)
        if record.kept:
            return _Due(self._kept_until(record), planned or Rung.FROZEN)  # looked at again then
        if planned is not None:
            lower = planned is Rung.FROZEN or (planned is Rung.PARKED and state is ReplicaState.HOT)
            return _Due(free_at, planned, by_plan=True) if lower else None
        if idle_s is None and not board.leads:
            return None
        if idle_s is None:  # until a plan names it
            since = max(self._kept_until(record), board.led_since)
            return _Due(since + board.limits.freeze_s, Rung.FROZEN)
        return _Due(record.used + idle_s, Rung.FROZEN)

    def check(self) -> None:
        for replica_id, record in self._board.view.replicas.items():
            assert record.needed == self._needed(record), (
                f"{replica_id} is kept for nothing, or not"
            )
