"""The ladder's rungs, lowest first."""

from enum import Enum


class Rung(Enum):
    ABSENT = "absent"  # weights only: a request needs a cold start
    STORED = "stored"  # snapshot and weights in the store, nothing on the node
    FROZEN = "frozen"  # no process; snapshot and weights in the node's cache
    PARKED = "parked"  # process kept, KV released
    HOT = "hot"  # GPU only: parked, weights still on the GPU
    SERVING = "serving"

    @property
    def height(self) -> int:
        return _HEIGHTS[self]

    def __lt__(self, other: "Rung") -> bool:
        return self.height < other.height


_HEIGHTS = {rung: height for height, rung in enumerate(Rung)}
