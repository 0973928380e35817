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
_NO_WAKES = 1e-9
_LIKELY = 0.25  # below, a rate says more of chance than of the model


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

    def later(self, idle_s: float, found: dict[int, float], share: float = 1.0) -> None:
        """Adds to `found`, by bin, the wakes that came after more than `idle_s`; `share` of each."""
        for bin, wakes in self.counts.items():
            end_s = SHORTEST_S * STEP ** (bin + 1)
            if end_s > idle_s:
                part = min(1.0, (end_s - idle_s) / (end_s - end_s / STEP))
                found[bin] = found.get(bin, 0.0) + wakes * part * share


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
        """Seconds for which it is to be kept, for one wake, after so long without a request: for as long as pays best.

        Keeping it for a time t costs the smaller of t and the wait, and serves a wake if one comes within t; the
        best such rate counts, so that a wake which is likely soon is not outweighed by one that may come next week.
        Where none ever came so late, as long again.
        """
        found: dict[int, float] = {}
        if (own := self._of.get(model)) is not None:
            own.later(idle_s, found)
        if self._all.total:
            self._all.later(idle_s, found, ORDINARY_WAKES / self._all.total)
        left = sum(found.values())
        if left <= _NO_WAKES:
            return max(_AT_LEAST_S, idle_s)
        best = came = held_s = 0.0
        enough = _LIKELY * left
        for bin in sorted(found):
            count = found[bin]
            end_s = SHORTEST_S * STEP ** (bin + 1)
            came, left = came + count, left - count
            held_s += count * ((max(end_s / STEP, idle_s) + end_s) / 2 - idle_s)
            if came >= enough:
                best = max(best, came / (held_s + max(0.0, left) * (end_s - idle_s)))
        return 1 / best


def bin_of(idle_s: float) -> int:
    bounded = min(max(idle_s, SHORTEST_S), LONGEST_S)
    return int(math.log(bounded / SHORTEST_S) / math.log(STEP))
