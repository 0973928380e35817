"""What one GPU's memory, and its vault's pinned memory, are promised to. Pure; part of `state.py`'s node.

Weights that no replica uses stay as a cache, least recently used first to go. Replicas that rest on the GPU are lowered
by one rung when room is needed, in the order that a scheduler gives; one that serves or moves never is.

CUDA lets a process that was restored onto another GPU than it was frozen on map no memory of others (ADR 0017): its
weights are a copy of its own, counted as private.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from woodfrog.model.node import GpuFacts
from woodfrog.model.node import ReplicaState as State
from woodfrog.model.rung import Rung
from woodfrog.model.spec import ModelSpec

_WEIGHTS_ROUND_BYTES = 64 << 20  # covers what alignment adds


@dataclass(frozen=True, slots=True)
class Bring:
    """What the vault must do before a replica can have its weights. In this order: drop, then load."""

    gpu: str
    weights: str
    host: bool  # also into pinned memory
    drop_device: tuple[str, ...] = ()
    drop_host: tuple[str, ...] = ()
    private_bytes: int = 0  # that the replica will take of the GPU on top of what it holds
    weights_bytes: int = 0
    own: bool = False  # into the replica's memory, which `private_bytes` has in it


@dataclass(frozen=True, slots=True)
class Need:
    """Of one replica."""

    gpu_bytes: int  # private, when it serves
    weights: str
    weights_bytes: int
    home: str = (
        ""  # the GPU that its snapshot was made on; empty: a cold start is at home everywhere
    )

    def own_bytes(self, gpu: str) -> int:
        """Weights that it cannot share there."""
        return 0 if self.home in ("", gpu) else self.weights_bytes


def need_of(spec: ModelSpec, home: str) -> Need | None:
    """None of a model for the CPU."""
    if not spec.gpu_bytes:
        return None
    size = -(-spec.weights_bytes // _WEIGHTS_ROUND_BYTES) * _WEIGHTS_ROUND_BYTES
    return Need(spec.gpu_bytes, spec.weights, size, home)


@dataclass(frozen=True, slots=True)
class Occupant:
    """A replica on the GPU, as room is counted."""

    replica_id: str
    state: State
    held_bytes: int  # private
    uses: bool  # it has the weights mapped, or is about to
    need: Need


@dataclass(slots=True)
class GpuState:
    uuid: str
    memory_bytes: int
    arena_bytes: int
    context_bytes: int  # what a resting replica keeps
    weights: dict[str, int] = field(default_factory=dict)  # on the GPU, by last use
    pinned: dict[str, int] = field(default_factory=dict)  # in the arena, by last use
    occupants: dict[str, Occupant] = field(default_factory=dict)  # by last change of state

    @property
    def free_bytes(self) -> int:
        held = sum(occupant.held_bytes for occupant in self.occupants.values())
        return self.memory_bytes - held - sum(self.weights.values())

    @property
    def used_weights(self) -> set[str]:
        return {t.need.weights for t in self.occupants.values() if t.uses}

    def facts(self) -> GpuFacts:
        used = self.used_weights
        idle = self.weights.keys() - used
        idle_bytes = sum(self.weights[digest] for digest in idle)
        return GpuFacts(
            self.uuid,
            self.memory_bytes,
            self.memory_bytes - self.free_bytes - idle_bytes,
            tuple(sorted(self.weights.keys() & used)),
            tuple(sorted(self.pinned.keys() | idle)),
            self.arena_bytes,
        )

    def check(self) -> None:
        assert self.free_bytes >= 0, "more GPU memory is promised than there is"
        assert sum(self.pinned.values()) <= self.arena_bytes
        assert self.used_weights <= self.weights.keys()

    def missing_bytes(self, need: Need, held_bytes: int) -> int:
        """That must become free before the need is met, idle weights apart; <= 0 when it fits."""
        idle = sum(self.weights[digest] for digest in self._idle(need))
        return self._wanted(need, held_bytes) - self.free_bytes - idle

    def admit(self, replica_id: str, need: Need, held_bytes: int) -> Bring:
        """Promises it, as a climbing replica. The caller looked at `missing_bytes`.

        Weights that are on the GPU already, or the replica's own, are not pinned for its sake: that would read them again.
        """
        drop = []
        for digest in self._idle(need):
            if self._wanted(need, held_bytes) <= self.free_bytes:
                break
            self.weights.pop(digest)
            drop.append(digest)
        there = need.weights in self.weights
        wanted = self._wanted(need, held_bytes)
        assert wanted <= self.free_bytes
        own = need.own_bytes(self.uuid)
        if there or not own:
            self.weights[need.weights] = self.weights.pop(need.weights, need.weights_bytes)
        before = self.occupants.pop(replica_id, None)
        self.occupants[replica_id] = Occupant(
            replica_id, State.CLIMBING, need.gpu_bytes + own, not own, need
        )
        has = before is not None and before.state is State.HOT
        host, drop_host = (False, ()) if there or has else self._pin(need)
        private = need.gpu_bytes + own - held_bytes
        return Bring(
            self.uuid, need.weights, host, tuple(drop), drop_host, private, need.weights_bytes,
            own=own > 0,
        )  # fmt: skip

    def come_home(self, replica_id: str) -> Bring:
        """A climbing replica that was to be restored starts cold instead, so it shares the weights."""
        need = replace(self.occupants.pop(replica_id).need, home="")
        return self.admit(replica_id, need, 0)

    def move(self, replica_id: str, state: State) -> None:
        """What it holds follows from its state."""
        occupant = self.occupants.pop(replica_id)
        held, uses = occupant.held_bytes, occupant.uses
        own = occupant.need.own_bytes(self.uuid)
        resting = min(occupant.need.gpu_bytes, self.context_bytes)
        match state:
            case State.PARKED:
                held, uses = resting, False
            case State.HOT:
                held, uses = resting + own, not own
            case State.CLIMBING | State.SERVING:
                held, uses = occupant.need.gpu_bytes + own, not own
        self.occupants[replica_id] = Occupant(replica_id, state, held, uses, occupant.need)

    def leave(self, replica_id: str) -> None:
        self.occupants.pop(replica_id, None)

    def lose(self, weights: str) -> None:
        """They are neither on the GPU nor pinned, because bringing them failed. Who uses them keeps both promises."""
        if weights not in self.used_weights:
            self.weights.pop(weights, None)
            self.pinned.pop(weights, None)

    def lose_all(self) -> None:
        """The vault died. Its replicas are about to end."""
        used = self.used_weights
        self.weights = {digest: size for digest, size in self.weights.items() if digest in used}
        self.pinned.clear()

    def lower(
        self, missing_bytes: int, need: Need, spared: str, yields: Sequence[str] = ()
    ) -> list[tuple[str, Rung]]:
        """Resting replicas that give that much when they go one rung down, or two; [] if all do not.

        Longest at rest first, then those in `yields` in its order. `need` is whose room it is; the replica `spared` is not
        touched.
        """
        found: list[tuple[str, Rung]] = []
        turns = {replica_id: turn for turn, replica_id in enumerate(yields)}
        resting = [t for t in self.occupants.values() if t.replica_id != spared]
        resting.sort(key=lambda t: turns.get(t.replica_id, -1))
        hot = [t for t in resting if t.state is State.HOT]
        users = {t.replica_id: t.need.weights for t in self.occupants.values() if t.uses}
        kept = "" if need.own_bytes(self.uuid) else need.weights
        for occupant in hot:
            if missing_bytes <= 0:
                break
            weights = occupant.need.weights
            if own := occupant.need.own_bytes(self.uuid):
                found.append((occupant.replica_id, Rung.PARKED))
                missing_bytes -= own
                continue
            users.pop(occupant.replica_id)
            if weights != kept and weights not in users.values():
                sharers = [t.replica_id for t in hot if t.uses and t.need.weights == weights]
                found += ((replica_id, Rung.PARKED) for replica_id in sharers)
                missing_bytes -= self.weights[weights]
        for occupant in (t for t in resting if t.state is State.PARKED):
            if missing_bytes <= 0:
                break
            found.append((occupant.replica_id, Rung.FROZEN))
            missing_bytes -= occupant.held_bytes
        for occupant in hot:  # those lowered above, all the way
            if missing_bytes <= 0:
                break
            counted = (occupant.replica_id, Rung.PARKED) in found
            found = [each for each in found if each[0] != occupant.replica_id]
            found.append((occupant.replica_id, Rung.FROZEN))
            missing_bytes -= occupant.held_bytes
            missing_bytes += occupant.need.own_bytes(self.uuid) if counted else 0
        return found if missing_bytes <= 0 else []

    def _wanted(self, need: Need, held_bytes: int) -> int:
        own = need.own_bytes(self.uuid)
        weights = 0 if own or need.weights in self.weights else need.weights_bytes
        return need.gpu_bytes + own - held_bytes + weights

    def _idle(self, need: Need) -> list[str]:
        """Weights that may go for the need: in this order, its own last, which a copy is quickly made of."""
        used = self.used_weights
        idle = [d for d in self.weights if d not in used and d != need.weights]
        if need.own_bytes(self.uuid) and need.weights in self.weights.keys() - used:
            idle.append(need.weights)
        return idle

    def _pin(self, need: Need) -> tuple[bool, tuple[str, ...]]:
        """Whether the weights are to be in the arena, and which others must leave it for them."""
        if need.weights in self.pinned:
            self.pinned[need.weights] = self.pinned.pop(need.weights)
            return True, ()
        if need.weights_bytes > self.arena_bytes:
            return False, ()
        drop = []
        for digest in list(self.pinned):
            if sum(self.pinned.values()) + need.weights_bytes <= self.arena_bytes:
                break
            self.pinned.pop(digest)
            drop.append(digest)
        self.pinned[need.weights] = need.weights_bytes
        return True, tuple(drop)


def choose(gpus: Iterable[GpuState], need: Need) -> tuple[GpuState, int] | None:
    """A GPU with room, else one where resting replicas can make it; and what is missing there.

    Of several the one where the replica is at home, else that with the weights, else that with most room. None where
    there is no GPU.
    """

    def hope(gpu: GpuState) -> int:
        missing = gpu.missing_bytes(need, 0)
        return 0 if missing <= 0 else 1 if gpu.lower(missing, need, "") else 2

    ranked = sorted(
        gpus,
        key=lambda gpu: (
            hope(gpu),
            need.own_bytes(gpu.uuid) > 0,
            need.weights not in gpu.weights,
            need.weights not in gpu.pinned,
            -gpu.free_bytes,
            gpu.uuid,
        ),
    )
    return (ranked[0], ranked[0].missing_bytes(need, 0)) if ranked else None
