"""How soon a model will be wanted again: from how long it was idle before each wake. Pure.

A wake is a request that comes while nothing of the model runs; the idle time before it goes into a histogram with bins a
tenth apart, so that a model that wakes each hour is known to. Counts are halved after `HALF_LIFE`
wakes, so that what a model did long ago is forgotten. A model with few wakes is taken for an ordinary one: the histogram of
all models counts as `ORDINARY_WAKES` of its own.
"""

import math
from dataclasses import dataclass, field

STEP = 1.1  # from one bin's start to the next's
SHORTEST_S = 1.0  # an idle time of less is none: the model never came to rest
LONGEST_S = 30 * 86400.0
BINS = math.ceil(math.log(LONGEST_S / SHORTEST_S) / math.log(STEP)) + 1
HALF_LIFE = 64.0  # wakes
ORDINARY_WAKES = 2.0
_ALL_HALF_LIFE = 4096.0
_AT_LEAST_S = 60.0


@dataclass(slots=True)
class Histogram:
    """Decayed counts of idle times, by bin."""

    half_life: float
    counts: dict[int, float] = field(default_factory=dict)
    total: float = 0.0

    def add(self, idle_s: float) -> None:
        kept = 0.5 ** (1 / self.half_life)
        self.counts = {bin: count * kept for bin, count in self.counts.items() if count > 1e-3}
        found = bin_of(idle_s)
        self.counts[found] = self.counts.get(found, 0.0) + 1.0
        self.total = sum(self.counts.values())

    def after(self, idle_s: float) -> tuple[float, float]:
        """Wakes that came later, and the sum of how much later."""
        count = seconds = 0.0
        for bin, wakes in self.counts.items():
            start_s = SHORTEST_S * STEP**bin
            end_s = start_s * STEP
            if end_s <= idle_s:
                continue
            part = min(1.0, (end_s - idle_s) / (end_s - start_s))
            count += wakes * part
            seconds += wakes * part * ((max(start_s, idle_s) + end_s) / 2 - idle_s)
        return count, seconds


class Demand:
    """Of all models."""

    def __init__(self) -> None:
        self._all = Histogram(_ALL_HALF_LIFE)
        self._of: dict[str, Histogram] = {}

    def woke(self, model: str, idle_s: float) -> None:
        """A request came after so long without any."""
        if idle_s < SHORTEST_S:
            return
        self._of.setdefault(model, Histogram(HALF_LIFE)).add(idle_s)
        self._all.add(idle_s)

    def forget(self, model: str) -> None:
        self._of.pop(model, None)

    def wait_s(self, model: str, idle_s: float) -> float:
        """Until its next request, on average, after so long without one; where none ever came so late, as long again."""
        own = self._of.get(model)
        count = seconds = 0.0
        if own is not None:
            count, seconds = own.after(idle_s)
        if self._all.total:
            share = ORDINARY_WAKES / self._all.total
            of_all = self._all.after(idle_s)
            count += share * of_all[0]
            seconds += share * of_all[1]
        return seconds / count if count > 1e-9 else max(_AT_LEAST_S, idle_s)


def bin_of(idle_s: float) -> int:
    bounded = min(max(idle_s, SHORTEST_S), LONGEST_S)
    return int(math.log(bounded / SHORTEST_S) / math.log(STEP))
