"""Climbs that no request asked for: up to a model's `replicas_min`, and to what the plan wants at rest. Pure."""

from collections.abc import Mapping

from woodfrog.model.node import ReplicaState
from woodfrog.scheduler.board import Board
from woodfrog.scheduler.climbs import Climbs
from woodfrog.scheduler.view import ReplicaRecord


class Ahead:
    def __init__(self, board: Board, climbs: Climbs) -> None:
        self._board = board
        self._climbs = climbs

    def mark(self) -> None:
        """Which of a model's replicas it must keep may be others now."""
        for model in self._board.lacking:
            self._touch(model)

    def look(self) -> None:
        """Lifts what is lacking to `replicas_min`, as far as there is room."""
        board = self._board
        if not board.lacking or not board.leads or not board.listed or board.starting:
            return
        lacking, board.lacking = board.lacking, {}
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
            if board.moves.free_at(name, board.now) > board.now:
                continue
            if self._climbs.climb_ahead(record.spec, name):
                board.moves.note(name, board.now)

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
