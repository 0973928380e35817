"""What no request asked for: climbs up to a model's `replicas_min`, and to what the plan wants at rest; bytes that it wants
on a disk. Pure.
"""

from collections.abc import Mapping

from woodfrog.model.node import ReplicaState
from woodfrog.scheduler.board import Board
from woodfrog.scheduler.climbs import Climbs
from woodfrog.scheduler.events import Prefetch, PrefetchFailed, PrefetchFinished
from woodfrog.scheduler.view import ReplicaRecord

FETCHES_MAX = 8  # at once, in all
FETCH_RETRY_S = 60.0


class Ahead:
    def __init__(self, board: Board, climbs: Climbs) -> None:
        self._board = board
        self._climbs = climbs
        self._fetches: dict[str, Prefetch] = {}  # under way, by attempt
        self._fetch_after: dict[
            str, float
        ] = {}  # of models, not before: its node has to say so first, or it failed
        self._count = 0

    def mark(self) -> None:
        """Which of a model's replicas it must keep may be others now."""
        for model in self._board.lacking:
            self._touch(model)

    def look(self) -> None:
        """Lifts what is lacking to `replicas_min`, as far as there is room."""
        board = self._board
        if not board.lacking or not board.listed or board.starting:
            return
        lacking, board.lacking = board.lacking, {}
        if not board.leads:  # who leads does it
            return
        for model in lacking:
            waits = ("ahead", model) in board.timers
            while not waits and model in board.minded and self._lacks(model):
                if not self._climbs.climb_ahead(board.view.models[model].spec):
                    board.try_ahead_later(model)
                    break
                self._touch(model)

    def planned(self, wanted: Mapping[str, str]) -> None:
        """Models and nodes; the first are worth most. A node that has a climb under way is left alone until the next plan."""
        board = self._board
        for model, name in wanted.items():
            record, node = board.view.models.get(model), board.view.nodes.get(name)
            if record is None or node is None or node.climbs:
                continue
            if any(board.view.replicas_of(model)) or any(self._climbs.of_model(model)):
                continue
            if ("ahead", model) in board.timers:  # the last one failed
                continue
            if board.moves.free_at(name, board.now) > board.now:
                continue
            if self._climbs.climb_ahead(record.spec, name):
                board.moves.note(name, board.now)

    def fetch(self, wanted: Mapping[str, str]) -> None:
        """Models and nodes; one at once to each node, none to one that has a climb under way."""
        board, view = self._board, self._board.view
        busy = {order.node for order in self._fetches.values()}
        under_way = {order.spec.name for order in self._fetches.values()}
        for model, name in wanted.items():
            record, node = view.models.get(model), view.nodes.get(name)
            if record is None or node is None or node.climbs or name in busy or model in under_way:
                continue
            if not record.spec.admitted(node.facts.tenants):  # any more
                continue
            pointer = view.pointers(record.spec).get(node.print_key)
            if pointer is None or self._fetch_after.get(model, board.now) > board.now:
                continue
            if (
                len(self._fetches) >= FETCHES_MAX
                or board.moves.free_at(name, board.now) > board.now
            ):
                continue
            self._count += 1
            order = Prefetch(f"{board.epoch}-f{self._count}", name, record.spec, pointer, led=True)
            self._fetches[order.attempt] = order
            busy.add(name)
            board.moves.note(name, board.now)
            manifests = (record.spec.weights, pointer.manifest)
            board.fetches.begin(order.attempt, name, (m for m in manifests if not node.holds(m)))
            board.order(order)

    def fetched(self, event: PrefetchFinished | PrefetchFailed) -> None:
        """The shell logged why one failed."""
        order = self._fetches.pop(event.attempt, None)
        if order is None:
            return
        self._board.fetches.end(event.attempt)
        now, known = self._board.now, self._board.view.models
        after = {m: at for m, at in self._fetch_after.items() if m in known and at > now}
        self._fetch_after = {**after, order.spec.name: now + FETCH_RETRY_S}

    def lost(self, node: str) -> None:
        """What was fetched there is not waited for."""
        self._fetches = {a: order for a, order in self._fetches.items() if order.node != node}

    def under_way(self) -> set[str]:
        """Attempts."""
        return set(self._fetches)

    def _touch(self, model: str) -> None:
        for record in self._board.view.replicas_of(model):
            self._board.touched[record.replica.replica_id] = None

    def _lacks(self, model: str) -> bool:
        board = self._board
        spec = board.view.models[model].spec
        serving = sum(map(self._serves, board.view.replicas_of(model)))
        nameless = sum(climb.replica_id is None for climb in self._climbs.of_model(model))
        return serving + nameless < spec.replicas_min

    def _serves(self, record: ReplicaRecord) -> bool:
        """Now, or soon, and on a node that stays."""
        drains = self._board.view.nodes[record.replica.node].facts.draining
        rises = (
            record.climb is not None
            or record.replica.state is ReplicaState.CLIMBING
            or (record.replica.state is ReplicaState.SERVING and record.descending is None)
        )
        return (
            rises
            and not drains
            and record.suspect_since is None
            and self._board.view.usable(record)
        )
