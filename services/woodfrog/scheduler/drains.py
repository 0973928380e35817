"""A node that drains: its models' bytes go elsewhere first, then what idles there is lowered, then it is asked no more. Pure.

Several schedulers may do so at once: a prefetch that was ordered twice moves nothing twice.
"""

from collections import Counter
from dataclasses import dataclass

from woodfrog.model.node import ReplicaState
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler import fetches
from woodfrog.scheduler.board import Board
from woodfrog.scheduler.events import Prefetch, PrefetchFailed, PrefetchFinished
from woodfrog.scheduler.forecasts import Placement, PlaceRequest
from woodfrog.scheduler.policy import NoCapacity, could_take, homes, make_room, place
from woodfrog.scheduler.view import NodeRecord, ReplicaRecord

TO_A_NODE_MAX = 2  # prefetches at once: more only share its line
AT_ONCE_MAX = 16  # in all: more only share the store's
FAILURES_MAX = 2  # of one model, then it is lowered without
_LOOK_S = 1.0  # between two looks at what has become idle


@dataclass(slots=True)
class _Move:
    """One model's way to another node."""

    target: str = ""
    sent: tuple[str, SnapshotPointer | None] = "", None  #: digest of the weights, and the snapshot
    attempt: str = ""  #: under way; empty: none is
    failures: int = 0
    failed: frozenset[str] = frozenset()  #: nodes that are not tried again


class Drains:
    def __init__(self, board: Board) -> None:
        self._board = board
        self._view = board.view
        self._waiting: dict[str, int] = {}  # by node that drains: models not moved yet
        self._moves: dict[str, _Move] = {}  # by model
        self._under_way: dict[str, _Move] = {}  # by attempt; also of drains that ended meanwhile
        self._count = 0

    def waiting(self, node: str) -> int:
        """Models that are still to move from there."""
        return self._waiting.get(node, 0)

    def heard(self, name: str) -> None:
        """The node reported, or was lost."""
        node = self._view.nodes.get(name)
        if node is None:
            for attempt in [a for a, move in self._under_way.items() if move.target == name]:
                self.failed(PrefetchFailed(attempt, "NODE_LOST", f"node {name!r} was lost"))
        drains = node is not None and node.facts.draining
        if node is not None and drains and name not in self._waiting:
            self._waiting[name] = len(self._models(node))
            self._board.timers.set(("drain", name), self._board.now)
        elif not drains and self._waiting.pop(name, None) is not None:
            self._end(name)

    def look(self, name: str) -> None:
        """Orders what can be done by now, and looks again in a while."""
        if name not in self._waiting:
            return
        node = self._view.nodes[name]
        moved = {model: self._moved(self._view.models[model].spec) for model in self._models(node)}
        self._waiting[name] = sum(not done for done in moved.values())
        for record in node.replicas.values() if not node.silent else ():
            if moved.get(record.replica.model, False):
                self._let_go(record)
        self._board.timers.set(("drain", name), self._board.now + _LOOK_S)

    def finished(self, event: PrefetchFinished) -> None:
        self._board.fetches.end(event.attempt)
        move = self._under_way.pop(event.attempt, None)
        if move is not None:
            move.attempt = ""
            self._look_soon()

    def failed(self, event: PrefetchFailed) -> None:
        """The shell logged why."""
        self._board.fetches.end(event.attempt)
        move = self._under_way.pop(event.attempt, None)
        if move is not None:
            move.failed |= {move.target}
            move.failures += 1
            move.attempt = move.target = ""
            self._look_soon()

    def under_way(self) -> set[str]:
        """Attempts."""
        return set(self._under_way)

    def check(self) -> None:
        for name, node in self._view.nodes.items():
            assert name not in self._waiting or ("drain", name) in self._board.timers
            assert not any(r.leaving for r in node.replicas.values()) or name in self._waiting
        assert self._waiting.keys() <= self._view.nodes.keys()
        assert max(self._toward().values(), default=0) <= TO_A_NODE_MAX
        assert len(self._under_way) <= AT_ONCE_MAX
        assert all(move.attempt == attempt for attempt, move in self._under_way.items())

    # --- which models, and where to ---

    def _models(self, node: NodeRecord) -> list[str]:
        """That have a replica there, or all that a restore needs."""
        view = self._view
        found = {r.replica.model for r in node.replicas.values() if view.usable(r)}
        for model, record in view.models.items():
            if node.holds(record.spec.weights):  # few are: pointers are looked up for these
                pointer = view.pointers(record.spec).get(node.print_key)
                if pointer is not None and node.holds(pointer.manifest):
                    found.add(model)
        return sorted(found)

    def _moved(self, spec: ModelSpec) -> bool:
        """Whether another node has it, or none can; orders a prefetch where one can."""
        move = self._moves.setdefault(spec.name, _Move())
        if move.failures >= FAILURES_MAX or self._elsewhere(spec, move):
            return True
        if move.attempt or len(self._under_way) >= AT_ONCE_MAX:
            return False
        full = {node for node, count in self._toward().items() if count >= TO_A_NODE_MAX}
        found = self._best(spec, move.failed | full)
        if found is None:
            none = not full or self._best(spec, move.failed) is None
            return none and not self._may_come(spec)
        self._count += 1
        move.target, move.attempt = found.node, f"{self._board.epoch}-p{self._count}"
        move.sent = spec.weights, found.snapshot
        self._under_way[move.attempt] = move
        manifests = fetches.wanted(found, spec.weights)
        self._board.fetches.begin(move.attempt, found.node, manifests)
        self._board.order(Prefetch(move.attempt, found.node, spec, found.snapshot))
        return False

    def _may_come(self, spec: ModelSpec) -> bool:
        """Whether a node that could take it is not heard at the moment, and may be soon."""
        nodes = self._view.nodes.values()
        silent = any(n.silent and could_take(n.facts, spec) and not n.facts.draining for n in nodes)
        return silent or bool(self._board.starting)

    def _elsewhere(self, spec: ModelSpec, move: _Move) -> bool:
        """Whether a node that takes it has all of it, as it says or as we were answered."""
        view = self._view
        for record in view.replicas_of(spec.name):
            if view.usable(record) and self._takes(record.replica.node, spec):
                return True
        pointers = view.pointers(spec)
        if not move.attempt and self._takes(move.target, spec):
            wanted = spec.weights, pointers.get(view.nodes[move.target].print_key)
            if move.sent == wanted:
                return True
        for name in view.holders.get(spec.weights, ()):
            node = view.nodes[name]
            if self._takes(name, spec) and node.holds(spec.weights):
                pointer = pointers.get(node.print_key)
                if not pointers or (pointer is not None and node.holds(pointer.manifest)):
                    return True
        return False

    def _takes(self, name: str, spec: ModelSpec) -> bool:
        node = self._view.nodes.get(name)
        return (
            node is not None
            and not node.silent
            and not node.facts.draining
            and could_take(node.facts, spec)
        )

    def _best(self, spec: ModelSpec, excluded: frozenset[str]) -> Placement | None:
        """The least predicted, then the one to which fewest moved; one without room only where none has."""
        view = self._view
        request = PlaceRequest(spec, view.pointers(spec), excluded)
        chosen = Counter(move.target for move in self._moves.values())

        def cost(found: Placement) -> tuple[float, int, int, str]:
            replicas = len(view.nodes[found.node].replicas)
            return round(found.predicted_s, 2), chosen[found.node], replicas, found.node

        for crowded in (False, True):
            found = homes(request, view, self._board.estimates, crowded=crowded)
            if found:
                return min(found, key=cost)
        return None

    def _toward(self) -> Counter[str]:
        return Counter(move.target for move in self._under_way.values())

    # --- what is there ---

    def _let_go(self, record: ReplicaRecord) -> None:
        """Lowers what idles. What does not is asked no more, where new requests would find a place."""
        board = self._board
        if record.quiet:
            board.descend(record, Rung.FROZEN)
        elif record.busy and not record.leaving and record.replica.state is ReplicaState.SERVING:
            spec = self._view.models[record.replica.model].spec
            request = PlaceRequest(spec, self._view.pointers(spec))
            if any(
                not isinstance(decide(request, self._view, board.estimates), NoCapacity)
                for decide in (place, make_room)
            ):
                record.leaving = True
                board.touch(record.replica.replica_id)

    def _end(self, name: str) -> None:
        """What is under way ends by itself."""
        board = self._board
        board.timers.drop(("drain", name))
        node = self._view.nodes.get(name)
        for record in node.replicas.values() if node is not None else ():
            record.leaving = False
            board.touch(record.replica.replica_id)
        left = {model for other in self._waiting for model in self._models(self._view.nodes[other])}
        self._moves = {m: move for m, move in self._moves.items() if m in left or move.attempt}

    def _look_soon(self) -> None:
        for name in self._waiting:
            self._board.timers.set(("drain", name), self._board.now)
