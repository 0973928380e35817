"""What the catalog and the nodes say, written into the view. Pure."""

from woodfrog.model.node import NodeUpdate, ReplicaState
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler import events as on
from woodfrog.scheduler.board import Board
from woodfrog.scheduler.climbs import Climbs
from woodfrog.scheduler.view import ModelRecord, NodeRecord, fingerprint_key


class World:
    def __init__(self, board: Board, climbs: Climbs) -> None:
        self._board = board
        self._view = board.view
        self._climbs = climbs

    # --- nodes ---

    def node_listed(self, event: on.NodeListed) -> None:
        node = self._view.nodes.get(event.node)
        if node is None or node.silent:
            self._await(event.node, self._board.limits.node_patience_s)

    def node_reported(self, event: on.NodeReported) -> None:
        board, name, update = self._board, event.node, event.update
        node = self._view.nodes.get(name)
        if node is None:
            if update.facts is None or not update.full:
                return  # of a stream that began before the node was lost
            node = NodeRecord(update.facts, fingerprint_key(update.facts.fingerprint), silent=True)
            self._view.put_node(name, node)
        if update.facts is not None:
            board.put_facts(name, update.facts)
        self._put_replicas(name, node, update)
        gone = [*node.residents] if update.full else update.residents_gone
        if any(resident.manifest not in node.residents for resident in update.residents):
            board.stir_room(name)  # how much others free by going is known now
        self._view.put_residents(name, update.residents, gone)
        self._view.changed(name)
        if node.silent:
            node.silent = False
            board.awaited.discard(name)
            if name in board.starting:
                board.starting.discard(name)
                board.stir_all()
            board.stir_room(name)

    def node_silent(self, event: on.NodeSilent) -> None:
        """It takes nothing new; what runs there is offered until it is lost."""
        node = self._view.nodes.get(event.node)
        if node is not None and not node.silent:
            node.silent = True
            self._view.changed(event.node)
            self._await(event.node, self._board.limits.node_patience_s)
            for record in node.replicas.values():  # what climbs there may not come
                if record.replica.model in self._board.waiting:
                    self._board.stir(record.replica.model)

    def node_lost(self, event: on.NodeLost) -> None:
        node = self._view.nodes.get(event.node)
        if node is None:
            return
        node.silent = True
        self._view.changed(event.node)
        self._await(event.node, self._board.limits.node_return_s)
        self._climbs.node_lost(event.node)
        for replica_id in list(node.replicas):
            self._climbs.drop_replica(replica_id)
        self._board.fetches.lost(event.node)
        self._view.drop_node(event.node)
        self._board.moves.forget(event.node)

    def _put_replicas(self, name: str, node: NodeRecord, update: NodeUpdate) -> None:
        named = {replica.replica_id for replica in update.replicas}
        gone = sorted(node.replicas.keys() - named) if update.full else update.gone
        for replica_id in gone:
            if replica_id in node.replicas:
                self._climbs.replica_gone(node.replicas[replica_id].replica)
        for replica in update.replicas:
            record = self._climbs.put_replica(name, replica)
            if replica.state is ReplicaState.SERVING:
                record.suspect_since = None

    def _await(self, node: str, patience_s: float) -> None:
        self._board.awaited.add(node)
        self._board.timers.drop(("awaited", node))
        self._board.timers.set(("awaited", node), self._board.now + patience_s)

    # --- catalog ---

    def catalog_listed(self, event: on.CatalogListed) -> None:
        board = self._board
        for model in sorted(self._view.models.keys() - {spec.name for spec in event.models}):
            self._remove(model)
        for spec in event.models:
            self._put(spec)
        self._view.clear_pointers()
        for pointer in event.snapshots:
            self._view.put_pointer(pointer)
        if not board.listed:
            board.listed, board.listed_at = True, board.now
            self._await("", board.limits.node_patience_s)
            board.starting = {name for name in event.nodes if name not in self._view.nodes}
            board.touched.update(dict.fromkeys(self._view.replicas))
            board.stir_all()
        for name in event.nodes:
            self.node_listed(on.NodeListed(name))

    def model_listed(self, event: on.ModelListed) -> None:
        self._put(event.spec)

    def model_removed(self, event: on.ModelRemoved) -> None:
        self._remove(event.model)

    def snapshot_listed(self, event: on.SnapshotListed) -> None:
        self._view.put_pointer(event.pointer)
        if event.pointer.model in self._board.waiting:
            self._board.stir(event.pointer.model)

    def snapshot_removed(self, event: on.SnapshotRemoved) -> None:
        self._view.drop_pointer(event.pointer)

    def _put(self, spec: ModelSpec) -> None:
        known = self._view.models.get(spec.name)
        if known is None:
            self._view.models[spec.name] = ModelRecord(spec)
        else:
            if known.spec != spec:
                self._board.try_ahead_anew(spec.name)
            if (known.spec.weights, known.spec.create_time) != (spec.weights, spec.create_time):
                self._stop_climbs(spec.name)
            known.spec = spec
        if spec.replicas_min:
            self._board.minded.add(spec.name)
        else:
            self._board.minded.discard(spec.name)
        self._look_again(spec.name)

    def _remove(self, model: str) -> None:
        if self._view.models.pop(model, None) is not None:
            self._board.estimates.forget(model)
            self._board.demand.forget(model)
            self._board.service_times.forget(model)
            self._board.minded.discard(model)
            self._board.try_ahead_anew(model)
            self._stop_climbs(model)
            self._look_again(model)

    def _stop_climbs(self, model: str) -> None:
        for ticket in self._climbs.stop_model(model):
            self._board.wait(ticket)

    def _look_again(self, model: str) -> None:
        self._board.lacks(model)
        for record in self._view.replicas_of(model):
            self._board.touch(record.replica.replica_id)
        if model in self._board.waiting:
            self._board.stir(model)
