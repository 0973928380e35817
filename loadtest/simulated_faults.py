"""A simulated cell in which things go wrong: messages are late, overtake each other and get lost, streams break, replicas,
nodes and the scheduler die and come back.
"""

from collections.abc import Callable, Sequence

from loadtest.simulated_cell import SimulatedCell
from loadtest.simulated_node import SimulatedNode
from loadtest.simulated_setup import Faults, Setup
from woodfrog.model.node import ReplicaState
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler import events as on

_AWAY = "RPC_UNAVAILABLE"


class FaultyCell(SimulatedCell):
    def __init__(
        self,
        seed: int,
        models: Sequence[ModelSpec],
        node_count: int,
        setup: Setup,
        faults: Faults,
    ) -> None:
        self.faults = faults
        self.drained: list[int] = []  #: replicas that were left on each node when its drain ended
        super().__init__(seed, models, node_count, setup)
        for mean_s, cause in (
            (faults.replica_dies_s, self._kill_replica),
            (faults.node_dies_s, self._kill_node),
            (faults.stream_breaks_s, self._break_stream),
            (faults.scheduler_dies_s, self._kill_scheduler),
            (faults.node_drains_s, self._drain_node),
        ):
            if mean_s:
                self._again(mean_s, cause)

    def settle(self, seconds: float) -> None:
        """Nothing goes wrong any more. AssertionError when a climb or a descent is not over then."""
        self.faults = Faults()
        self.pass_time(seconds)
        assert self._scheduler is not None, "no scheduler came back"
        stuck = sorted(name for name in self.climbs if self._scheduler.climbing(name))
        assert not stuck, f"climbs that never end: {stuck}"
        moving = (ReplicaState.CLIMBING, ReplicaState.DESCENDING)
        for node in self.nodes.values():
            node.state.check()
            assert node.up, f"{node.name} never came back"
            for name, process in node.processes.items():
                assert process.replica.state not in moving, f"{name} never comes to rest"

    def delay(self) -> float:
        late = self.chance.random() < self.faults.late
        return super().delay() + (self.chance.uniform(0, self.faults.late_s) if late else 0.0)

    def loses(self) -> bool:
        return self.chance.random() < self.faults.lost

    def breaks(self) -> bool:
        return self.chance.random() < self.faults.climb_fails

    def answer(self, event: on.Event) -> None:
        """Where a node's answer is lost, the scheduler is told so much."""
        match event:
            case on.ClimbFinished() | on.ClimbRefused() | on.ClimbFailed() if self.loses():
                event = on.ClimbFailed(event.attempt, _AWAY, "its answer was lost")
            case on.DescendFinished() | on.DescendFailed() if self.loses():
                event = on.DescendFailed(event.replica_id, _AWAY, "its answer was lost")
            case on.PrefetchFinished() | on.PrefetchFailed() if self.loses():
                event = on.PrefetchFailed(event.attempt, _AWAY, "its answer was lost")
        super().answer(event)

    def _again(self, mean_s: float, cause: Callable[[], None]) -> None:
        faults = self.faults

        def happen() -> None:
            if self.faults is faults:
                cause()
                self._again(mean_s, cause)

        self.after(self.chance.expovariate(1 / mean_s), happen)

    def _kill_replica(self) -> None:
        found = [
            (node, name)
            for node in self.nodes.values()
            if node.up
            for name, process in node.processes.items()
            if process.replica.state is not ReplicaState.CLIMBING
        ]
        if found:
            node, name = self.chance.choice(found)
            node.end(name)

    def _kill_node(self) -> None:
        up = [node for node in self.nodes.values() if node.up]
        if len(up) < 2:
            return
        node = self.chance.choice(up)
        for name in list(node.processes):
            for number in sorted(node.processes[name].running):
                self.broken(number)
            node.processes[name].running.clear()
        node.up = False
        self._disconnect(node, self.noisy(self.faults.away_s))

    def _drain_node(self) -> None:
        """One at a time."""
        if any(node.draining for node in self.nodes.values()):
            return
        node = self.chance.choice(list(self.nodes.values()))
        node.drain(True)
        self.after(self.faults.drain_s, lambda: self._undrain_node(node))

    def _undrain_node(self, node: SimulatedNode) -> None:
        self.drained.append(len(node.processes))
        node.drain(False)

    def _break_stream(self) -> None:
        up = [node for node in self.nodes.values() if node.up and node.name in self._connected]
        if up:
            self._disconnect(self.chance.choice(up), self.chance.uniform(0.1, 6.0))

    def _kill_scheduler(self) -> None:
        if self._scheduler is None:
            return
        self._scheduler = None
        self._ready.clear()
        self._model_of.clear()
        self._connected.clear()
        self.after(self.noisy(1.0), self._start_scheduler)
