"""One node of a simulated cell: the node agent's real state, made-up processes, and a cache of whole trees."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from loadtest.simulated_cache import Cache
from woodfrog.clients.node_agent import REFUSED
from woodfrog.model.node import (
    Climbed,
    GpuFacts,
    NodeFacts,
    NodeUpdate,
    Replica,
    ReplicaState,
    Stage,
)
from woodfrog.model.rung import Rung
from woodfrog.node_agent import state as agent
from woodfrog.node_agent.gpu_state import Bring, GpuState, Need
from woodfrog.scheduler import events as on

PRINT = {"kernel": "simulated"}
_ROOM_TRIES = 3

Answer = Callable[[on.Event], None]  # to the scheduler that asked


class Cell(Protocol):
    """What a node needs of the cell that it is in."""

    now: float
    checked: bool

    def new_name(self, node: str) -> str: ...

    def after(self, seconds: float, do: Callable[[], None]) -> None: ...

    def stream(self, node: "SimulatedNode", update: NodeUpdate) -> None: ...

    def lower_s(self) -> float: ...

    def climb_s(
        self, node: "SimulatedNode", order: on.StartClimb, bring: Bring | None, pinned: bool
    ) -> tuple[float, Rung]: ...

    def thaw_s(
        self, node: "SimulatedNode", order: on.StartClimb, bring: Bring | None, pinned: bool
    ) -> tuple[float, Rung]:
        """`pinned`: its weights were in pinned memory already."""

    def breaks(self) -> bool:
        """Whether a climb does."""

    def climbed(
        self, node: "SimulatedNode", order: on.StartClimb, replica: Replica, rung: Rung
    ) -> None:
        """It serves, and who asked for it was told."""

    def broken(self, number: int) -> None:
        """A request's replica died under it."""


@dataclass(frozen=True, slots=True)
class NodeSize:
    """An eighth of a usual machine with eight H100, 2 TiB of memory and 30 TB of disk."""

    memory_bytes: int = 96 << 30  # that replicas are given
    replica_count_max: int = 64
    gpu_count: int = 1
    gpu_bytes: int = 80 << 30
    arena_bytes: int = 128 << 30
    disk_bytes: int = 3840 * 10**9
    page_cache_bytes: int = 32 << 30
    tenants: tuple[str, ...] = ()  # whose models alone it takes


@dataclass(slots=True)
class Process:
    replica: Replica
    running: set[int] = field(default_factory=set)


class SimulatedNode:
    def __init__(self, cell: Cell, name: str, size: NodeSize, cache: Cache) -> None:
        self.name = name
        self._cell = cell
        self.size = size
        self.cache = cache
        self.up = True
        self.lives = 0
        self._paid, self._share = 0.0, 0.0
        self._since: float | None = None
        self.draining = False
        self.start()

    def start(self) -> None:
        """Anew, with an empty memory and what is on its disk."""
        self.lives += 1
        self.up = True
        self.processes: dict[str, Process] = {}
        self.cache.forget_memory()
        size = self.size
        gpus = [
            GpuState(f"{self.name}-gpu{n}", size.gpu_bytes, size.arena_bytes, 1 << 30)
            for n in range(size.gpu_count)
        ]
        self.state = agent.NodeState(size.memory_bytes, size.replica_count_max, gpus)
        self.state.tenants = size.tenants
        self.decide(agent.DrainSet(self.draining))

    def facts(self) -> NodeFacts:
        gpus: tuple[GpuFacts, ...] = tuple(gpu.facts() for gpu in self.state.gpus.values())
        return NodeFacts(
            self.name, PRINT, self.size.memory_bytes, self.state.memory_promised_bytes,
            self.size.replica_count_max, self.state.draining, gpus, self.size.disk_bytes, self.size.tenants,
        )  # fmt: skip

    def full(self) -> NodeUpdate:
        replicas = tuple(process.replica for process in self.processes.values())
        return NodeUpdate(True, self.facts(), replicas, residents=self.cache.residents())

    def reach(self, manifest: str, size_bytes: int, stays: bool = True) -> tuple[float, bool]:
        """Seconds until the tree is in memory, where it may stay, and whether it comes from the store."""
        life = self.lives
        seconds, stored, began = self.cache.reach(manifest, size_bytes, self._cell.now)

        def came() -> None:
            if self.lives == life:
                self.keep(manifest, size_bytes, stays)

        if began:
            self._cell.after(seconds, came)
        return seconds, stored

    def keep(self, manifest: str, size_bytes: int, stays: bool = True) -> None:
        """A tree on disk, and in memory if it `stays`; others go for it."""
        residents, gone = self.cache.came(manifest, size_bytes, stays)
        self.tell(NodeUpdate(residents=tuple(residents), residents_gone=tuple(gone)))

    def paid(self) -> float:
        """GPU-seconds so far: of each GPU the share that replicas and the weights that they use take, over time."""
        if self._since is not None:
            self._paid += self._share * (self._cell.now - self._since)
        self._since = self._cell.now
        taken = sum(gpu.facts().promised_bytes for gpu in self.state.gpus.values())
        self._share = taken / self.size.gpu_bytes
        return self._paid

    def tell(self, update: NodeUpdate) -> None:
        self.paid()
        self._cell.stream(self, update)

    def decide(self, event: agent.Event) -> agent.Command:
        command = self.state.handle(event)
        if self._cell.checked:
            self.state.check()
        return command

    def publish(self, replica_id: str) -> None:
        """What became of a replica."""
        process = self.processes.get(replica_id)
        promise = self.state.promises.get(replica_id)
        if process is None or promise is None:
            self.tell(NodeUpdate(facts=self.facts(), gone=(replica_id,)))
            return
        held, own = 0, 0
        if promise.gpu:
            occupant = self.state.gpus[promise.gpu].occupants[replica_id]
            held, own = occupant.held_bytes, occupant.need.own_bytes(promise.gpu)
        replica = process.replica
        process.replica = Replica(
            replica_id, replica.model, replica.weights, promise.state, replica.socket_path,
            replica.slots, self.name, replica.memory_bytes, promise.gpu, held, own > 0,
        )  # fmt: skip
        self.tell(NodeUpdate(facts=self.facts(), replicas=(process.replica,)))

    def drain(self, draining: bool) -> None:
        self.draining = draining
        self.decide(agent.DrainSet(draining))
        self.tell(NodeUpdate(facts=self.facts()))

    # --- what a scheduler asks ---

    def do(self, order: on.StartClimb | on.Prefetch | on.Descend, answer: Answer) -> None:
        if not isinstance(order, on.Descend):
            assert order.spec.admitted(self.size.tenants), f"{order} to {self.name}"
        match order:
            case on.StartClimb():
                self.climb(order, answer)
            case on.Prefetch():
                self.prefetch(order, answer)
            case on.Descend():
                self.descend(order, answer)

    def prefetch(self, order: on.Prefetch, answer: Answer) -> None:
        life, pointer = self.lives, order.snapshot
        trees = [(order.spec.weights, order.spec.weights_bytes)]
        if pointer is not None:
            trees.append((pointer.manifest, pointer.size_bytes))

        def arrive() -> None:
            if self.lives != life or not self.up:
                answer(on.PrefetchFailed(order.attempt, "NODE_LOST", "it died"))
            else:
                answer(on.PrefetchFinished(order.attempt))

        if self._cell.breaks():
            answer(on.PrefetchFailed(order.attempt, "CACHE_FULL", "it is full"))
        else:
            away = [tree for tree in trees if not self.cache.has(tree[0])]
            took_s = max((self.reach(*tree)[0] for tree in away), default=0.0)
            self._cell.after(took_s, arrive)

    def climb(self, order: on.StartClimb, answer: Answer) -> None:
        life = self.lives
        request = self._request(order)
        room_s = 0.0
        before = {u for u, gpu in self.state.gpus.items() if order.spec.weights in gpu.pinned}
        for _ in range(_ROOM_TRIES):
            command = self.decide(request)
            if not isinstance(command, agent.Lower):
                break
            for replica_id, rung in command.replicas:
                room_s += self._cell.lower_s()  # promised to the climb at once
                self._lower_now(replica_id, rung)
        match command:
            case agent.Start(replica_id, bring):
                spec = order.spec
                replica = Replica(
                    replica_id, spec.name, spec.weights, ReplicaState.CLIMBING, f"/{replica_id}",
                    spec.slots, self.name, spec.memory_bytes,
                )  # fmt: skip
                self.processes[replica_id] = Process(replica)
                self.publish(replica_id)
                pinned = bring is not None and bring.gpu in before
                seconds, rung = self._cell.climb_s(self, order, bring, pinned)
            case agent.Thaw(replica_id, bring):
                self.publish(replica_id)
                pinned = bring is not None and bring.gpu in before
                seconds, rung = self._cell.thaw_s(self, order, bring, pinned)
            case agent.Nothing():
                replica_id, seconds, rung = order.replica_id or "", 0.0, Rung.SERVING
            case agent.Refuse(reason, message):
                if reason in REFUSED:
                    answer(on.ClimbRefused(order.attempt, self.facts(), message))
                else:
                    answer(on.ClimbFailed(order.attempt, reason, message))
                return
            case _:
                answer(on.ClimbRefused(order.attempt, self.facts(), "no room came"))
                return
        stages = (Stage("room", 0.0, room_s),) if room_s else ()
        answered = partial(Climbed, from_rung=rung, stages=stages)
        self._cell.after(
            room_s + seconds, lambda: self._climbed(order, replica_id, answered, life, answer)
        )

    def _request(self, order: on.StartClimb) -> agent.StartRequested | agent.ThawRequested:
        if order.replica_id:
            return agent.ThawRequested(order.replica_id, order.yields)
        spec = order.spec
        need = None
        if spec.gpu_bytes:
            home = order.snapshot.gpu if order.snapshot is not None else ""
            need = Need(spec.gpu_bytes, spec.weights, spec.weights_bytes, home)
        name = self._cell.new_name(self.name)
        admitted = spec.admitted(self.size.tenants)
        return agent.StartRequested(
            name, spec.name, spec.memory_bytes, need, order.yields, admitted
        )

    def _climbed(
        self,
        order: on.StartClimb,
        replica_id: str,
        answered: Callable[[Replica], Climbed],
        life: int,
        answer: Answer,
    ) -> None:
        process = self.processes.get(replica_id)
        if self.lives != life or not self.up:
            answer(on.ClimbFailed(order.attempt, "RPC_UNAVAILABLE", "its node died"))
            return
        if process is None:
            return  # whoever killed it told
        if self._cell.breaks():
            self.end(replica_id)
            answer(on.ClimbFailed(order.attempt, "CLIMB_FAILED", "it broke"))
            return
        self.decide(agent.ClimbFinished(replica_id))
        self.publish(replica_id)
        climbed = answered(process.replica)
        answer(on.ClimbFinished(order.attempt, climbed))
        self._cell.climbed(self, order, climbed.replica, climbed.from_rung)

    def descend(self, order: on.Descend, answer: Answer) -> None:
        process = self.processes.get(order.replica_id)
        if process is not None and process.running:
            answer(on.DescendFailed(order.replica_id, "REPLICA_BUSY", "it answers"))
            return
        command = self.decide(agent.DescendRequested(order.replica_id, order.rung))
        if isinstance(command, agent.Refuse):
            answer(on.DescendFailed(order.replica_id, command.reason, command.message))
            return
        life = self.lives
        if isinstance(command, agent.Nothing):
            answer(on.DescendFinished(order.replica_id, order.rung))
            return
        self.publish(order.replica_id)
        took = self._cell.lower_s()
        self._cell.after(took, lambda: self._descended(order, command, life, answer))

    def _descended(
        self, order: on.Descend, command: agent.Command, life: int, answer: Answer
    ) -> None:
        if self.lives != life or not self.up or order.replica_id not in self.processes:
            return
        self._finish_lowering(order.replica_id, command)
        answer(on.DescendFinished(order.replica_id, order.rung))

    def _lower_now(self, replica_id: str, rung: Rung) -> None:
        command = self.decide(agent.DescendRequested(replica_id, rung))
        self._finish_lowering(replica_id, command)

    def _finish_lowering(self, replica_id: str, command: agent.Command) -> None:
        process = self.processes[replica_id]
        assert not process.running, f"{replica_id} is lowered while it answers"
        match command:
            case agent.Park(_, hot):
                state = ReplicaState.HOT if hot else ReplicaState.PARKED
                self.decide(agent.DescendFinished(replica_id, state))
                self.publish(replica_id)
            case agent.Freeze():
                self.end(replica_id)

    def end(self, replica_id: str) -> None:
        """A process is gone, with what it answered."""
        process = self.processes.pop(replica_id)
        self.decide(agent.ReplicaEnded(replica_id))
        for number in sorted(process.running):
            self._cell.broken(number)
        self.publish(replica_id)
