"""What a policy can have: the least wait for what is paid, over its knob; and how two policies compare. Pure."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a policy with one value of its knob."""

    policy: str
    knob: float
    p50_s: float
    p99_s: float
    gpu_s: float
    unanswered: int = 0
    decision_p99_ms: float = 0.0  # of the scheduler, on the machine that simulates; 0: not known


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both, the cheapest first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.gpu_s, p.p99_s)):
        if not found or point.p99_s < found[-1].p99_s:
            found.append(point)
    return found


def p99_at(points: Sequence[Point], gpu_s: float) -> float | None:
    """Of who pays no more, between runs by the powers that both follow; None when all cost more."""
    found = at(points, gpu_s)
    return found.p99_s if found is not None else None


def at(points: Sequence[Point], gpu_s: float) -> Point | None:
    """The best by p99 of one policy that pays no more, as above; `knob` is that of the run that is no dearer."""
    line = front(points)
    if not line or gpu_s < line[0].gpu_s:
        return None
    for a, b in itertools.pairwise(line):
        if gpu_s < b.gpu_s:
            paid = a.gpu_s, b.gpu_s
            p50_s = _between(gpu_s, paid, (a.p50_s, b.p50_s))
            p99_s = _between(gpu_s, paid, (a.p99_s, b.p99_s))
            return Point(a.policy, a.knob, p50_s, p99_s, gpu_s, a.unanswered)
    return line[-1]


def gpu_s_at(points: Sequence[Point], p99_s: float) -> float | None:
    """The least that is paid for no longer a wait; None when it is longer at any price."""
    line = front(points)
    if not line or p99_s < line[-1].p99_s:
        return None
    for a, b in itertools.pairwise(line):
        if p99_s >= a.p99_s:
            return a.gpu_s
        if p99_s > b.p99_s:
            return _between(p99_s, (a.p99_s, b.p99_s), (a.gpu_s, b.gpu_s))
    return line[-1].gpu_s


def _between(x: float, xs: tuple[float, float], ys: tuple[float, float]) -> float:
    share = math.log(x / xs[0]) / math.log(xs[1] / xs[0])
    return ys[0] * math.exp(share * math.log(ys[1] / ys[0]))
