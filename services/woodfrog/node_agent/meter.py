"""What replicas hold of this node, times the time that they held it. Pure.

A replica holds the memory that it was promised, from the start of its climb to its end, at rest too; of a GPU what it has
there by itself, and its part of the weights that it shares. Weights that nobody uses, pinned memory, the pool and proofs
are the node's own.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from woodfrog.metering.usage import HOUR_S, Row, Usage
from woodfrog.node_agent.gpu_state import GpuState
from woodfrog.node_agent.state import NodeState


@dataclass(frozen=True, slots=True)
class Holding:
    model: str
    host_bytes: int
    gpu_share: float = 0.0  # of the memory of one GPU


def holdings(state: NodeState) -> dict[str, Holding]:
    """By replica."""
    shares = {uuid: _shares(gpu) for uuid, gpu in state.gpus.items()}
    return {
        replica_id: Holding(
            promise.model,
            promise.memory_bytes,
            shares[promise.gpu][replica_id] if promise.gpu else 0.0,
        )
        for replica_id, promise in state.promises.items()
    }


def _shares(gpu: GpuState) -> dict[str, float]:
    users = Counter(occupant.need.weights for occupant in gpu.occupants.values() if occupant.uses)
    held = {}
    for replica_id, occupant in gpu.occupants.items():
        digest = occupant.need.weights
        weights = gpu.weights[digest] / users[digest] if occupant.uses else 0.0
        held[replica_id] = (occupant.held_bytes + weights) / gpu.memory_bytes
    return held


class Meter:
    def __init__(self, now: float) -> None:
        """`now` is of a clock that never goes back, in seconds."""
        self._since = now
        self._held: Mapping[str, Holding] = {}
        self._used: dict[tuple[int, str, str], Usage] = {}

    def hold(
        self, held: Mapping[str, Holding], tenants: Mapping[str, str], now: float, wall: float
    ) -> None:
        """Charges what was held until now, by the hours of `wall` (seconds since the epoch); from now on it is `held`.

        `tenants`, by replica, are of those that were held.
        """
        for hour, seconds in _hours(wall, now - self._since):
            for replica_id, holding in self._held.items():
                key = hour, tenants.get(replica_id, ""), holding.model
                usage = Usage(
                    gpu_s=holding.gpu_share * seconds, host_byte_s=holding.host_bytes * seconds
                )
                self._used[key] = self._used.get(key, Usage()) + usage
        self._since = now
        self._held = held

    def take(self) -> list[Row]:
        """What was charged since the last time."""
        rows = [Row(*key, usage) for key, usage in self._used.items()]
        self._used = {}
        return rows


def _hours(wall: float, seconds: float) -> Iterator[tuple[int, float]]:
    """The last `seconds` before `wall`, cut at full hours."""
    hour = int(wall // HOUR_S)
    while seconds > 0:
        part = min(seconds, wall - hour * HOUR_S)
        if part > 0:
            yield hour, part
        wall, seconds, hour = hour * HOUR_S, seconds - part, hour - 1
