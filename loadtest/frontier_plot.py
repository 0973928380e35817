"""Draws what users wait against what GPUs cost, a line for each policy."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtest.frontier import Point

_COLOURS = ("#1b6e3c", "#7fb069", "#8d6a9f", "#c8553d", "#e0a030", "#4a4a4a")
_TEXT_SHARE = 0.062  # of an axis's height, that a label takes


def draw(points: Sequence[Point], title: str, path: Path) -> None:
    """A PNG."""
    figure(points, title).savefig(path, dpi=80, format="png")


def figure(points: Sequence[Point], title: str) -> Figure:
    """Each policy's runs in the order of its knob; its name stands beside the dearest."""
    drawn = Figure(figsize=(11, 4.6), layout="constrained")
    drawn.suptitle(title, fontsize=11)
    left, right = drawn.subplots(1, 2)
    _panel(left, "p50", points, [point.p50_s for point in points])
    _panel(right, "p99", points, [point.p99_s for point in points])
    return drawn


def _panel(axes: Axes, quantile: str, points: Sequence[Point], waits: Sequence[float]) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(f"{quantile} of the time to the first token, seconds", fontsize=10, loc="left")
    axes.set_xlabel("GPU-hours paid")
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    low, high = min(waits) / 1.5, max(waits) * 1.5
    axes.set_ylim(low, high)
    hours = [point.gpu_s / 3600 for point in points]
    axes.set_xlim(0, max(hours) * 1.5)
    ends: list[tuple[float, float, float, str, str]] = []
    for name, colour in zip(dict.fromkeys(p.policy for p in points), _COLOURS, strict=False):
        own = [at for at, point in enumerate(points) if point.policy == name]
        xs, ys = [hours[at] for at in own], [waits[at] for at in own]
        axes.plot(xs, ys, color=colour, marker="o", markersize=3.5, linewidth=1.4)
        last = max(own, key=lambda at: hours[at])
        where = math.log(waits[last] / low) / math.log(high / low)
        ends.append((where, hours[last], waits[last], name, colour))
    taken = -1.0
    for where, x, y, name, colour in sorted(ends):
        taken = max(where, taken + _TEXT_SHARE)
        height = low * math.exp(min(taken, 1.0) * math.log(high / low))
        axes.annotate(
            name, (x, y), (max(hours) * 1.05, height), color=colour, fontsize=9, va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6},
        )  # fmt: skip
