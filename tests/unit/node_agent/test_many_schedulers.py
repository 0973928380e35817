"""Twenty schedulers whose views lag ask 25 nodes for 100 GPUs. What the nodes promised is checked by a model of its own."""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from woodfrog.model import digest
from woodfrog.model.node import Climbed, NodeFacts, NodeUpdate, Replica, ReplicaState
from woodfrog.model.rung import Rung
from woodfrog.model.spec import ModelSpec
from woodfrog.node_agent import state as node_agent
from woodfrog.node_agent.gpu_state import GpuState, Need
from woodfrog.scheduler import events as on
from woodfrog.scheduler.board import Limits
from woodfrog.scheduler.state import SchedulerState

GIB = 1 << 30
SCHEDULERS, NODES, GPUS_EACH, MODELS = 20, 25, 4, 150
REQUESTS, SECONDS = 1000, 12.0
LAG_S = 1.5  # of a node's stream to a scheduler, at most; anything else takes a twentieth of it
SPECS = {
    name: ModelSpec(
        name, digest.of_bytes(name.encode()), 20 * GIB,
        memory_bytes=GIB, gpu_bytes=50 * GIB, slots=2, park_after_s=0.3, freeze_after_s=0.9,
    )
    for name in (f"m{i:03}" for i in range(MODELS))
}  # fmt: skip


@dataclass
class Promises:
    """The model: one replica that climbs or serves fills more than half of a GPU, so no GPU has two."""

    active: dict[str, str] = field(default_factory=dict)  # GPU, replica
    count: int = 0

    def promised(self, gpu: str, replica_id: str) -> None:
        assert gpu not in self.active, f"{gpu} has {self.active[gpu]} and {replica_id}"
        self.active[gpu] = replica_id
        self.count += 1

    def given_back(self, replica_id: str) -> None:
        self.active = {gpu: held for gpu, held in self.active.items() if held != replica_id}


class Cell:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.promises = Promises()
        self.answers: Counter[str] = Counter()
        self.in_use: Counter[str] = Counter()  # requests by replica
        self.numbers = itertools.count()
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.told: dict[tuple[str, int], float] = {}  # when a stream's last word arrives
        self.armed: dict[int, float | None] = {}
        self.nodes = {f"n{i:02}": self.node(f"n{i:02}") for i in range(NODES)}
        self.schedulers = [SchedulerState(f"s{i}", Limits()) for i in range(SCHEDULERS)]
        listed = on.CatalogListed(tuple(SPECS.values()), (), tuple(self.nodes))
        for i in range(SCHEDULERS):
            self.do(i, listed)
        for name in self.nodes:
            self.publish(name, NodeUpdate(True, self.facts(name)))
        for ticket in range(REQUESTS):
            asked = self.random.choice([*SPECS])
            when = self.random.uniform(LAG_S, SECONDS)
            event = on.AcquireRequested(ticket, asked, when + 30.0)
            self.at(when, lambda e=event: self.do(self.random.randrange(SCHEDULERS), e))  # type: ignore[misc]

    def node(self, name: str) -> node_agent.NodeState:
        gpus = [GpuState(f"{name}-{j}", 80 * GIB, 0, GIB // 2) for j in range(GPUS_EACH)]
        return node_agent.NodeState(1 << 40, 64, gpus)

    def run(self) -> None:
        while self.agenda:
            self.now, _, action = heapq.heappop(self.agenda)
            action()

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.agenda, (when, next(self.numbers), action))

    def soon(self, action: Callable[[], None]) -> None:
        self.at(self.now + self.random.uniform(0.0, LAG_S / 20), action)

    # --- schedulers ---

    def do(self, i: int, event: on.Event) -> None:
        for command in self.schedulers[i].handle(event, self.now):
            match command:
                case on.StartClimb():
                    self.soon(lambda c=command: self.climb(i, c))  # type: ignore[misc]
                case on.Descend():
                    self.soon(lambda c=command: self.descend(i, c))  # type: ignore[misc]
                case on.Grant(_, acquired):
                    self.grant(i, acquired.placement_id, acquired.replica.replica_id)
                case on.Refuse():
                    self.answers[command.reason] += 1
        when = self.schedulers[i].next_time()
        if when is not None and when != self.armed.get(i):
            self.at(max(when, self.now), lambda: self.tick(i, when))
        self.armed[i] = when

    def tick(self, i: int, when: float) -> None:
        if self.armed[i] == when:
            self.armed[i] = None
            self.do(i, on.Ticked())

    def grant(self, i: int, placement: str, replica_id: str) -> None:
        self.answers["granted"] += 1
        self.in_use[replica_id] += 1

        def release() -> None:
            self.in_use[replica_id] -= 1
            self.do(i, on.Released(placement))

        self.at(self.now + self.random.uniform(0.05, 0.5), release)

    # --- nodes ---

    def climb(self, i: int, start: on.StartClimb) -> None:
        node, spec = self.nodes[start.node], start.spec
        replica_id = start.replica_id or f"{start.node}-{next(self.numbers)}"
        event: node_agent.StartRequested | node_agent.ThawRequested
        event = node_agent.ThawRequested(replica_id)
        if start.replica_id is None:
            need = Need(spec.gpu_bytes, spec.weights, spec.weights_bytes)
            event = node_agent.StartRequested(replica_id, spec.name, spec.memory_bytes, need)
        command = node.handle(event)
        if isinstance(command, node_agent.Lower):
            for victim, rung in command.replicas:
                self.lower(start.node, victim, rung)
            command = node.handle(event)
        node.check()
        match command:
            case node_agent.Start() | node_agent.Thaw():
                self.promises.promised(node.promises[replica_id].gpu, replica_id)
                self.publish(
                    start.node, NodeUpdate(False, replicas=(self.told_of(start.node, replica_id),))
                )
                ends = self.now + self.random.uniform(0.05, 0.4)
                self.at(ends, lambda: self.climbed(i, start, replica_id))
            case node_agent.Refuse("NODE_FULL", message):
                self.answers["refused by a node"] += 1
                self.reply(i, on.ClimbRefused(start.attempt, self.facts(start.node), message))
            case node_agent.Refuse(reason, message):
                self.reply(i, on.ClimbFailed(start.attempt, reason, message))
            case _:
                serves = Climbed(self.told_of(start.node, replica_id), Rung.SERVING)
                self.reply(i, on.ClimbFinished(start.attempt, serves))

    def climbed(self, i: int, start: on.StartClimb, replica_id: str) -> None:
        node = self.nodes[start.node]
        if self.random.random() < 0.1:
            self.ended(start.node, replica_id)
            self.reply(i, on.ClimbFailed(start.attempt, "CLIMB_FAILED", "it broke"))
            return
        node.handle(node_agent.ClimbFinished(replica_id))
        told = self.told_of(start.node, replica_id)
        self.publish(start.node, NodeUpdate(False, replicas=(told,)))
        self.reply(i, on.ClimbFinished(start.attempt, Climbed(told, start.rung)))

    def reply(self, i: int, event: on.ClimbFinished | on.ClimbFailed | on.ClimbRefused) -> None:
        self.soon(lambda: self.do(i, event))

    def descend(self, i: int, order: on.Descend) -> None:
        busy = self.in_use[order.replica_id] > 0
        rung = None if busy else self.lower(order.node, order.replica_id, order.rung)
        event: on.Event = on.DescendFailed(order.replica_id, "REPLICA_BUSY", "it answers")
        if rung is not None:
            event = on.DescendFinished(order.replica_id, rung)
        self.soon(lambda: self.do(i, event))

    def lower(self, name: str, replica_id: str, rung: Rung) -> Rung | None:
        """At once. None when it is busy."""
        node = self.nodes[name]
        match node.handle(node_agent.DescendRequested(replica_id, rung)):
            case node_agent.Freeze():
                self.ended(name, replica_id)
                return Rung.FROZEN
            case node_agent.Park(_, hot):
                rests = ReplicaState.HOT if hot else ReplicaState.PARKED
                node.handle(node_agent.DescendFinished(replica_id, rests))
                self.promises.given_back(replica_id)
                told = self.told_of(name, replica_id)
                self.publish(name, NodeUpdate(False, replicas=(told,)))
                return Rung(rests.value)
            case node_agent.Refuse():
                return None
        promise = node.promises.get(replica_id)
        return Rung(promise.state.value) if promise is not None else Rung.FROZEN

    def ended(self, name: str, replica_id: str) -> None:
        self.nodes[name].handle(node_agent.ReplicaEnded(replica_id))
        self.promises.given_back(replica_id)
        self.publish(name, NodeUpdate(False, gone=(replica_id,)))

    def told_of(self, name: str, replica_id: str) -> Replica:
        promise = self.nodes[name].promises[replica_id]
        spec = SPECS[promise.model]
        held = self.nodes[name].gpus[promise.gpu].occupants[replica_id].held_bytes
        return Replica(
            replica_id, spec.name, spec.weights, promise.state, f"/{replica_id}", spec.slots,
            name, spec.memory_bytes, promise.gpu, held,
        )  # fmt: skip

    def facts(self, name: str) -> NodeFacts:
        node = self.nodes[name]
        gpus = tuple(gpu.facts() for gpu in node.gpus.values())
        promised = node.memory_promised_bytes
        return NodeFacts(name, {}, node.memory_bytes, promised, node.replica_count_max, gpus=gpus)

    def publish(self, name: str, update: NodeUpdate) -> None:
        """To each scheduler in order, but late, and to some much later than to others."""
        told = NodeUpdate(update.full, self.facts(name), update.replicas, update.gone)
        for i in range(SCHEDULERS):
            before = self.told.get((name, i), 0.0)
            when = max(before, self.now + self.random.uniform(0.0, LAG_S) ** 2 / LAG_S)
            self.told[name, i] = when
            self.at(when, lambda i=i: self.do(i, on.NodeReported(name, told)))  # type: ignore[misc]


def test_no_gpu_is_promised_twice_by_nodes_that_stale_schedulers_ask() -> None:
    cell = Cell(seed=1)
    cell.run()
    assert cell.promises.count > MODELS
    assert cell.answers["refused by a node"] > 50, "no view was stale enough to matter"
    assert cell.answers["granted"] > 0.9 * REQUESTS, cell.answers
    for node in cell.nodes.values():
        node.check()
