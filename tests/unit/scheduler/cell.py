"""Small values to build a cell from."""

from dataclasses import replace
from typing import TypeVar

from woodfrog.model import digest
from woodfrog.model.node import (
    Climbed,
    GpuFacts,
    NodeFacts,
    NodeUpdate,
    Replica,
    ReplicaState,
    Resident,
)
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import Fingerprint, SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler import events as on
from woodfrog.scheduler.board import Limits
from woodfrog.scheduler.events import Command
from woodfrog.scheduler.state import SchedulerState

T = TypeVar("T")
GIB = 1 << 30
PRINT = {"kernel": "6.18", "cpu": "one"}
OTHER_PRINT = {"kernel": "6.18", "cpu": "another"}


def spec(name: str = "frog", **changes: object) -> ModelSpec:
    plain = ModelSpec(
        name, digest.of_bytes(name.encode()), 270 << 20, memory_bytes=4 * GIB, slots=2
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def pointer(model: ModelSpec, node_print: dict[str, str] = PRINT, gpu: str = "") -> SnapshotPointer:
    fingerprint = Fingerprint(node_print, {"engine": "transformers"}, model.weights)
    manifest = digest.of_bytes(f"{model.name} {sorted(node_print.items())}".encode())
    return SnapshotPointer(model.name, manifest, fingerprint, 280 << 20, 1.0, gpu)


def facts(node: str, promised: int = 0, **changes: object) -> NodeFacts:
    return replace(NodeFacts(node, PRINT, 16 * GIB, promised, 8), **changes)  # type: ignore[arg-type]


def replica(
    name: str, model: ModelSpec, node: str, state: ReplicaState = ReplicaState.SERVING
) -> Replica:
    return Replica(
        name,
        model.name,
        model.weights,
        state,
        f"/run/{name}",
        model.slots,
        node,
        model.memory_bytes,
        model_create_time=model.create_time,
    )


def on_gpu(told: Replica, gpu_bytes: int, gpu: str = "GPU-0") -> Replica:
    return replace(told, gpu=gpu, gpu_bytes=gpu_bytes)


def gpu(
    *promised: int, memory: int = 80 * GIB, weights: tuple[str, ...] = (), pinned: int = 64 * GIB
) -> GpuFacts:
    """GPU-0, unless told otherwise."""
    return GpuFacts("GPU-0", memory, sum(promised), weights, (), pinned)


def resident(manifest: str, size: int, disk: float = 1.0, page_cache: float = 1.0) -> Resident:
    return Resident(manifest, size, int(size * disk), int(size * page_cache), disk == 1.0)


class Cell:
    """A state with a clock, a catalog and connected nodes; `do` checks the invariants each time."""

    def __init__(
        self, *models: ModelSpec, nodes: tuple[str, ...] = ("a",), limits: Limits | None = None
    ) -> None:
        self.state = SchedulerState("e", limits or Limits())
        self.now = 100.0
        self.tickets = 0
        self.do(on.CatalogListed(models, (), nodes))
        for node in nodes:
            self.report(node)
        self.wait(limits.node_patience_s if limits else Limits().node_patience_s)

    def do(self, event: on.Event) -> list[Command]:
        commands = self.state.handle(event, self.now)
        self.state.check()
        return commands

    def report(
        self, node: str, *replicas: Replica, full: bool = True, **more: object
    ) -> list[Command]:
        promised = sum(each.memory_bytes for each in replicas)
        told = more.pop("facts", facts(node, promised))
        update = NodeUpdate(full, told, replicas, **more)  # type: ignore[arg-type]
        return self.do(on.NodeReported(node, update))

    def acquire(self, model: str = "frog", *excluded: str, router: str = "r") -> list[Command]:
        """By ticket `self.tickets`, which may wait for 60 s."""
        self.tickets += 1
        return self.do(
            on.AcquireRequested(self.tickets, model, self.now + 60.0, router, frozenset(excluded))
        )

    def wait(self, seconds: float) -> list[Command]:
        """As the loop does: a tick whenever the state asked for one."""
        end = self.now + seconds
        commands: list[Command] = []
        while (when := self.state.next_time()) is not None and when <= end:
            self.now = max(self.now, when)
            commands += self.do(on.Ticked())
        self.now = end
        return commands

    def finish(
        self, start: on.StartClimb, name: str = "f1", rung: Rung = Rung.FROZEN
    ) -> list[Command]:
        served = replica(name, start.spec, start.node)
        return self.do(on.ClimbFinished(start.attempt, Climbed(served, rung)))

    def fail(self, start: on.StartClimb, reason: str = "CLIMB_FAILED") -> list[Command]:
        return self.do(on.ClimbFailed(start.attempt, reason, "it broke"))


def only(kind: type[T], commands: list[Command]) -> T:
    found = every(kind, commands)
    assert len(found) == 1, commands
    return found[0]


def every(kind: type[T], commands: list[Command]) -> list[T]:
    return [command for command in commands if isinstance(command, kind)]
