"""What the node is and has at the moment, and who is told of changes: the state, its live replicas, its residents."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection

from woodfrog.clients.node_agent import REFUSED, node_full
from woodfrog.clients.weight_fs import ResidencyUpdate
from woodfrog.errors import FailedPrecondition
from woodfrog.model.node import NodeFacts, NodeUpdate, Replica, ReplicaState, Resident
from woodfrog.model.rung import Rung
from woodfrog.model.spec import ModelSpec
from woodfrog.node_agent import state
from woodfrog.node_agent.gpu_state import Bring
from woodfrog.node_agent.live import Live

_WATCH_QUEUE_MAX = 256


class Board:
    """Owned by the loop. Every change of a replica's state goes through `decide`."""

    def __init__(self, node: str, node_state: state.NodeState, node_print: dict[str, str]) -> None:
        self.node = node
        self.node_print = node_print
        self.live: dict[str, Live] = {}
        self.specs: dict[str, ModelSpec] = {}
        self.broken = asyncio.Event()  # an invariant does not hold
        self.changed: Callable[[], None] = lambda: None  # called after each event
        self._state = node_state
        self._residents: dict[str, Resident] = {}
        self._disk_bytes = 0
        self._watchers: set[asyncio.Queue[NodeUpdate]] = set()

    def decide(self, event: state.Event) -> state.Command:
        """The command; a refusal is raised. The invariants hold after each event, or the process ends."""
        try:
            command = self._state.handle(event)
            self._state.check()
        except AssertionError:
            self.broken.set()
            raise
        self.changed()
        if isinstance(command, state.Refuse):
            if command.reason in REFUSED:
                raise node_full(self._facts(), command.reason, command.message)
            raise FailedPrecondition(command.reason, command.message)
        return command

    def admits(self, spec: ModelSpec) -> bool:
        return spec.admitted(self._state.tenants)

    def full(self, why: str) -> Exception:
        return node_full(self._facts(), "NODE_FULL", why)

    def rung_of(self, replica_id: str) -> Rung:
        """Of one that rests."""
        promise = self._state.promises.get(replica_id)
        hot = promise is not None and promise.state is ReplicaState.HOT
        return Rung.HOT if hot else Rung.PARKED

    def shared(self, bring: Bring, replica_id: str) -> bool:
        """Whether another replica uses these weights on that GPU."""
        occupants = self._state.gpus[bring.gpu].occupants.values()
        users = {t.replica_id for t in occupants if t.uses and t.need.weights == bring.weights}
        return bool(users - {replica_id})

    def weights_on(self, gpu: str) -> set[str]:
        """That are counted there, used or kept."""
        return set(self._state.gpus[gpu].weights)

    def rests(self, replica_id: str) -> bool:
        promise = self._state.promises.get(replica_id)
        return promise is not None and promise.state in (ReplicaState.HOT, ReplicaState.PARKED)

    def is_in(self, live: Live, states: Collection[ReplicaState]) -> bool:
        """Whether it is still there, in one of these."""
        promise = self._state.promises.get(live.replica_id)
        known = self.live.get(live.replica_id) is live
        return known and promise is not None and promise.state in states

    def set_draining(self, draining: bool) -> None:
        self.decide(state.DrainSet(draining))
        self._publish(NodeUpdate(False, facts=self._facts()))

    def forget(self, replica_id: str) -> None:
        self.decide(state.ReplicaEnded(replica_id))
        self.specs.pop(replica_id, None)
        self._publish(NodeUpdate(False, facts=self._facts(), gone=(replica_id,)))

    def replica(self, replica_id: str) -> Replica:
        promise = self._state.promises[replica_id]
        spec = self.specs[replica_id]
        live = self.live.get(replica_id)
        held, own = 0, 0
        if promise.gpu:
            occupant = self._state.gpus[promise.gpu].occupants[replica_id]
            held, own = occupant.held_bytes, occupant.need.own_bytes(promise.gpu)
        return Replica(
            replica_id=replica_id,
            model=promise.model,
            weights=spec.weights,
            state=promise.state,
            socket_path=str(live.socket_path) if live else "",
            slots=spec.slots,
            node=self.node,
            memory_bytes=promise.memory_bytes,
            gpu=promise.gpu,
            gpu_bytes=held,
            own_weights=own > 0,
            model_create_time=spec.create_time,
        )

    def publish_replica(self, replica_id: str) -> None:
        if replica_id in self._state.promises:
            self._publish(
                NodeUpdate(False, facts=self._facts(), replicas=(self.replica(replica_id),))
            )

    def residency_changed(self, update: ResidencyUpdate) -> set[str]:
        """Passes it on. The manifests whose trees are not whole any more."""
        fresh = {
            tree.manifest_digest: Resident(
                tree.manifest_digest,
                tree.size_bytes,
                tree.disk_bytes,
                tree.page_cache_bytes,
                tree.complete,
            )
            for tree in update.trees
        }
        lost = set(update.gone)
        if update.full:
            lost |= self._residents.keys() - fresh.keys()
        for manifest in lost:
            self._residents.pop(manifest, None)
        self._residents.update(fresh)
        facts = None
        if update.cache_bytes_max not in (0, self._disk_bytes):
            self._disk_bytes = update.cache_bytes_max
            facts = self._facts()
        residents, gone = tuple(fresh.values()), tuple(sorted(lost))
        self._publish(NodeUpdate(False, facts, residents=residents, residents_gone=gone))
        return lost | {manifest for manifest, tree in fresh.items() if not tree.complete}

    @property
    def empty(self) -> bool:
        """No resident is known."""
        return not self._residents

    async def watch(self) -> AsyncIterator[NodeUpdate]:
        """Everything, then each change. A watcher that falls behind gets everything again."""
        queue: asyncio.Queue[NodeUpdate] = asyncio.Queue(_WATCH_QUEUE_MAX)
        self._watchers.add(queue)
        try:
            yield self._full()
            while True:
                update = await queue.get()
                if queue.qsize() >= _WATCH_QUEUE_MAX - 1:  # it was full, and something may be lost
                    while not queue.empty():
                        queue.get_nowait()
                    update = self._full()
                yield update
        finally:
            self._watchers.discard(queue)

    def _facts(self) -> NodeFacts:
        return NodeFacts(
            node=self.node,
            fingerprint=self.node_print,
            memory_bytes=self._state.memory_bytes,
            memory_promised_bytes=self._state.memory_promised_bytes,
            replica_count_max=self._state.replica_count_max,
            draining=self._state.draining,
            gpus=tuple(gpu.facts() for gpu in self._state.gpus.values()),
            disk_bytes=self._disk_bytes,
            tenants=self._state.tenants,
        )

    def _full(self) -> NodeUpdate:
        return NodeUpdate(
            full=True,
            facts=self._facts(),
            replicas=tuple(self.replica(replica_id) for replica_id in self._state.promises),
            residents=tuple(self._residents.values()),
        )

    def _publish(self, update: NodeUpdate) -> None:
        for queue in self._watchers:
            if not queue.full():  # the watcher sees that it is full and asks for everything
                queue.put_nowait(update)
