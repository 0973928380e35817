"""What this node promised: its replicas, their states, and whether one more fits.

Pure: nothing here waits, reads a clock or touches the system. `loop.py` carries the commands out and returns their
results as events. The node's answer is final, so two schedulers can never be promised the same memory.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from woodfrog.model.node import ReplicaState as State
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.node_agent.gpu_state import Bring, GpuState, Need, choose


@dataclass(frozen=True, slots=True)
class Promise:
    """One replica and the memory promised to it."""

    replica_id: str
    model: str
    memory_bytes: int
    state: State
    gpu: str = ""  # uuid; empty: it runs on the CPU


@dataclass(frozen=True, slots=True)
class Order:
    """What a scheduler asks for: that a model serves."""

    spec: ModelSpec
    pointer: SnapshotPointer | None = None  # None: a cold start
    replica_id: str = ""  # to thaw; empty: a new one
    yields: tuple[str, ...] = ()  # who rests on the GPUs, in the order in which they make room


@dataclass(frozen=True, slots=True)
class StartRequested:
    """A new replica is wanted."""

    replica_id: str
    model: str
    memory_bytes: int
    need: Need | None = None  # of a GPU
    yields: tuple[str, ...] = ()  # as in Order
    admitted: bool = True  # this node takes its model's tenant


@dataclass(frozen=True, slots=True)
class ThawRequested:
    replica_id: str
    yields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClimbFinished:
    replica_id: str


@dataclass(frozen=True, slots=True)
class DescendRequested:
    replica_id: str
    rung: Rung  # HOT (which is PARKED without a GPU), PARKED or FROZEN


@dataclass(frozen=True, slots=True)
class DescendFinished:
    replica_id: str
    state: State  # HOT or PARKED, or SERVING when it was busy


@dataclass(frozen=True, slots=True)
class EndBegun:
    """Its process is being ended, from whatever state it was in; nobody may have it any more."""

    replica_id: str


@dataclass(frozen=True, slots=True)
class ReplicaEnded:
    """Its process is gone, on purpose or not, or a climb failed."""

    replica_id: str


@dataclass(frozen=True, slots=True)
class ProofRequested:
    """A restore that proves a fresh snapshot, if its GPU has room as it is."""

    proof_id: str
    need: Need


@dataclass(frozen=True, slots=True)
class ColdRequested:
    """The climbing replica was to be restored from a snapshot, which could not be."""

    replica_id: str


@dataclass(frozen=True, slots=True)
class ProofEnded:
    proof_id: str


@dataclass(frozen=True, slots=True)
class WeightsLost:
    """The vault could not bring them."""

    gpu: str
    weights: str


@dataclass(frozen=True, slots=True)
class VaultDied:
    gpu: str


@dataclass(frozen=True, slots=True)
class DrainSet:
    """Whether it drains: then no replica climbs here, also none that rests."""

    draining: bool


@dataclass(frozen=True, slots=True)
class Start:
    replica_id: str
    bring: Bring | None = None


@dataclass(frozen=True, slots=True)
class Thaw:
    replica_id: str
    bring: Bring | None = None
    stopped: bool = True  # its processes are; those of a hot one sleep by themselves


@dataclass(frozen=True, slots=True)
class Lower:
    """These must go down before there is room; then the same is asked again."""

    replicas: tuple[tuple[str, Rung], ...]


@dataclass(frozen=True, slots=True)
class Park:
    replica_id: str
    hot: bool = False  # its weights stay on the GPU


@dataclass(frozen=True, slots=True)
class Freeze:
    replica_id: str


@dataclass(frozen=True, slots=True)
class Nothing:
    """It is already so."""


@dataclass(frozen=True, slots=True)
class Refuse:
    reason: str  # NODE_FULL, NODE_DRAINING, NODE_OF_OTHERS, REPLICA_GONE or REPLICA_BUSY
    message: str


Request = StartRequested | ThawRequested | DescendRequested | ProofRequested | ColdRequested
Fact = (
    ClimbFinished
    | DescendFinished
    | EndBegun
    | ReplicaEnded
    | ProofEnded
    | WeightsLost
    | VaultDied
    | DrainSet
)
Event = Request | Fact
Command = Start | Thaw | Lower | Park | Freeze | Nothing | Refuse

#: (state, event) -> next state. What is not here is refused, or is our own mistake.
TRANSITIONS: dict[tuple[State, type], State] = {
    (State.PARKED, ThawRequested): State.CLIMBING,
    (State.HOT, ThawRequested): State.CLIMBING,
    (State.SERVING, DescendRequested): State.DESCENDING,
    (State.PARKED, DescendRequested): State.DESCENDING,
    (State.HOT, DescendRequested): State.DESCENDING,
}
_DRAINS = Refuse("NODE_DRAINING", "it drains")
_DEPTH = {State.SERVING: 0, State.HOT: 1, State.PARKED: 2}  # and FROZEN is 3


def of_others(tenants: Sequence[str]) -> str:
    """Why a node with these tenants does not take a model."""
    if not tenants:
        return "the model is dedicated to its tenant's nodes, and this one is everybody's"
    return f"it takes only models of: {', '.join(tenants)}"


class NodeState:
    """Mutable; one owner, the loop."""

    def __init__(
        self, memory_bytes: int, replica_count_max: int, gpus: Iterable[GpuState] = ()
    ) -> None:
        self.memory_bytes = memory_bytes
        self.replica_count_max = replica_count_max
        self.gpus = {gpu.uuid: gpu for gpu in gpus}
        self.promises: dict[str, Promise] = {}
        self.proofs: dict[str, str] = {}  # to their GPU
        self.draining = False
        self.tenants: tuple[str, ...] = ()  #: whose models alone it takes; empty: everybody's

    @property
    def memory_promised_bytes(self) -> int:
        return sum(promise.memory_bytes for promise in self.promises.values())

    def handle(self, event: Event) -> Command:
        """Raises AssertionError on an event that cannot be: our own mistake."""
        match event:
            case StartRequested():
                return self._start(event)
            case ThawRequested(replica_id, yields):
                return self._thaw(replica_id, yields)
            case DescendRequested(replica_id, rung):
                return self._descend(replica_id, rung)
            case ProofRequested():
                return self._prove(event)
            case ColdRequested(replica_id):
                gpu = self.promises[replica_id].gpu
                return Start(replica_id, self.gpus[gpu].come_home(replica_id) if gpu else None)
        self._note(event)
        return Nothing()

    def check(self) -> None:
        """The invariants; AssertionError when one is broken."""
        assert self.memory_promised_bytes <= self.memory_bytes
        assert len(self.promises) <= self.replica_count_max
        assert all(key == promise.replica_id for key, promise in self.promises.items())
        for gpu in self.gpus.values():
            gpu.check()
            states = {i: t.state for i, t in gpu.occupants.items() if i not in self.proofs}
            promised = {i: p.state for i, p in self.promises.items() if p.gpu == gpu.uuid}
            assert states == promised

    def _note(self, event: Fact) -> None:
        match event:
            case ClimbFinished(replica_id):
                promise = self.promises.get(replica_id)  # it may have ended, or be ending
                if promise is not None and promise.state is State.CLIMBING:
                    self._move(replica_id, State.SERVING)
            case DescendFinished(replica_id, state):
                assert state in (State.HOT, State.PARKED, State.SERVING)
                if replica_id in self.promises:
                    assert self._state(replica_id) is State.DESCENDING
                    self._move(replica_id, state)
            case EndBegun(replica_id):
                self._move(replica_id, State.DESCENDING)
            case ReplicaEnded(replica_id):
                promise = self.promises.pop(replica_id, None)
                if promise is not None and promise.gpu:
                    self.gpus[promise.gpu].leave(replica_id)
            case DrainSet(draining):
                self.draining = draining
            case _:
                self._note_of_gpu(event)

    def _note_of_gpu(self, event: ProofEnded | WeightsLost | VaultDied) -> None:
        match event:
            case ProofEnded(proof_id):
                if gpu := self.proofs.pop(proof_id, ""):
                    self.gpus[gpu].leave(proof_id)
            case WeightsLost(gpu, weights):
                self.gpus[gpu].lose(weights)
            case VaultDied(gpu):
                self.gpus[gpu].lose_all()

    def _start(self, event: StartRequested) -> Command:
        assert event.replica_id not in self.promises
        if not event.admitted:
            return Refuse("NODE_OF_OTHERS", of_others(self.tenants))
        if self.draining:
            return _DRAINS
        free = self.memory_bytes - self.memory_promised_bytes
        if event.memory_bytes > free:
            return Refuse(
                "NODE_FULL",
                f"a replica of {event.model} needs {event.memory_bytes} bytes, {free} are free",
            )
        if len(self.promises) >= self.replica_count_max:
            return Refuse("NODE_FULL", f"it has its {self.replica_count_max} replicas")
        promise = Promise(event.replica_id, event.model, event.memory_bytes, State.CLIMBING)
        bring = None
        if event.need is not None:
            chosen = choose(self.gpus.values(), event.need)
            if chosen is None:
                return Refuse("NODE_FULL", "it has no GPU")
            gpu, missing = chosen
            if missing > 0:
                who = event.replica_id, event.model
                return _lower(gpu, missing, event.need, *who, event.yields)
            bring = gpu.admit(event.replica_id, event.need, 0)
            promise = replace(promise, gpu=gpu.uuid)
        self.promises[event.replica_id] = promise
        return Start(event.replica_id, bring)

    def _prove(self, event: ProofRequested) -> Command:
        chosen = choose(self.gpus.values(), event.need)
        if chosen is None or chosen[1] > 0:
            return Nothing()
        gpu, _ = chosen
        self.proofs[event.proof_id] = gpu.uuid
        return Start(event.proof_id, gpu.admit(event.proof_id, event.need, 0))

    def _thaw(self, replica_id: str, yields: tuple[str, ...]) -> Command:
        promise = self.promises.get(replica_id)
        if promise is None or promise.state is State.DESCENDING:
            return Refuse("REPLICA_GONE", f"replica {replica_id} is gone or going")
        if promise.state is State.SERVING:
            return Nothing()
        if promise.state is State.CLIMBING:
            return Refuse("REPLICA_BUSY", f"replica {replica_id} is climbing already")
        if self.draining:
            return _DRAINS
        bring = None
        stopped = promise.state is State.PARKED
        if promise.gpu:
            gpu = self.gpus[promise.gpu]
            occupant = gpu.occupants[replica_id]
            missing = gpu.missing_bytes(occupant.need, occupant.held_bytes)
            if missing > 0:
                return _lower(gpu, missing, occupant.need, replica_id, promise.model, yields)
            admitted = gpu.admit(replica_id, occupant.need, occupant.held_bytes)
            # A hot one has its weights mapped; what must go for its room goes all the same.
            idle = promise.state is State.HOT and not admitted.drop_device
            bring = None if idle else admitted
        self._move(replica_id, TRANSITIONS[promise.state, ThawRequested])
        return Thaw(replica_id, bring, stopped)

    def _descend(self, replica_id: str, rung: Rung) -> Command:
        assert rung in (Rung.HOT, Rung.PARKED, Rung.FROZEN)
        promise = self.promises.get(replica_id)
        if promise is None:
            return Nothing()
        if promise.state in (State.CLIMBING, State.DESCENDING):
            return Refuse("REPLICA_BUSY", f"replica {replica_id} is {promise.state.value}")
        if rung is Rung.HOT and not promise.gpu:
            rung = Rung.PARKED
        depth = {Rung.HOT: 1, Rung.PARKED: 2, Rung.FROZEN: 3}[rung]
        if depth <= _DEPTH[promise.state]:
            return Nothing()
        self._move(replica_id, TRANSITIONS[promise.state, DescendRequested])
        return Freeze(replica_id) if rung is Rung.FROZEN else Park(replica_id, rung is Rung.HOT)

    def _state(self, replica_id: str) -> State:
        return self.promises[replica_id].state

    def _move(self, replica_id: str, state: State) -> None:
        promise = self.promises[replica_id] = replace(self.promises[replica_id], state=state)
        if promise.gpu:
            self.gpus[promise.gpu].move(replica_id, state)


def _lower(
    gpu: GpuState, missing: int, need: Need, replica_id: str, model: str, yields: Sequence[str]
) -> Command:
    if lowered := gpu.lower(missing, need, replica_id, yields):
        return Lower(tuple(lowered))
    return Refuse(
        "NODE_FULL",
        f"a replica of {model} needs {missing} bytes more of GPU memory than can be made free",
    )
