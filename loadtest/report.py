"""What every bench does with its figures: collect them, print them beside floor and rivals, write the result file.

    bench = Bench("coldstart")
    bench.add("frozen", "first_token_s", seconds, floor=0.04, floor_note="one forward pass",
              rivals={"cold start, same engine": 4.2})
    bench.finish()  # the table, and loadtest/results/coldstart.json

A case that was not run is not added. Floors and rivals are measured in the same run as the samples beside them.
"""

import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from woodfrog.cli.cluster import Tools
from woodfrog.cli.show import table
from woodfrog.clock import SystemClock

RESULTS = Path(__file__).parent / "results"
_P99_SAMPLES_MIN = 100
_DIGITS = 5  # significant, of each figure
_PACKAGES = (
    "torch", "transformers", "grpcio", "opentelemetry-sdk", "uvicorn", "uvloop", "httptools", "pyfuse3",
    "xllamacpp",
)  # fmt: skip
_HEADER = ("CASE", "METRIC", "N", "MIN", "MEDIAN", "P99", "MAX", "FLOOR", "RIVALS")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure, as the result file has it."""

    case: str
    metric: str  # with its unit last
    n: int
    min: float
    median: float
    p99: float | None  # of fewer than a hundred samples there is none
    max: float
    floor: float | None = None  # what cannot be beaten on this machine, in the metric's unit
    floor_note: str = ""  # how the floor was found
    rivals: Mapping[str, float] = field(default_factory=dict)  # medians, in the metric's unit

    @staticmethod
    def of(
        case: str,
        metric: str,
        samples: Sequence[float],
        *,
        floor: float | None = None,
        floor_note: str = "",
        rivals: Mapping[str, float] | None = None,
    ) -> "Row":
        """Raises ValueError when there is no sample, one is not finite, or a floor is not explained."""
        if not samples or not all(map(math.isfinite, samples)):
            raise ValueError(f"{case} {metric}: samples must be finite numbers, one or more")
        if (floor is None) != (not floor_note):
            raise ValueError(f"{case} {metric}: a floor and its note come together")
        ordered = sorted(samples)
        return Row(
            case,
            metric,
            len(ordered),
            _rounded(ordered[0]),
            _rounded(statistics.median(ordered)),
            _rounded(quantile(ordered, 0.99)) if len(ordered) >= _P99_SAMPLES_MIN else None,
            _rounded(ordered[-1]),
            None if floor is None else _rounded(floor),
            floor_note,
            {name: _rounded(value) for name, value in (rivals or {}).items()},
        )


class Bench:
    """The figures of one run."""

    def __init__(self, name: str, *, may_use_gpu: bool = True) -> None:
        """The result file of a bench that may use a GPU, on a machine that has one, is another than elsewhere."""
        self.name = name
        self._may_use_gpu = may_use_gpu
        self.rows: list[Row] = []
        self._facts = machine()

    def add(
        self,
        case: str,
        metric: str,
        samples: Sequence[float],
        *,
        floor: float | None = None,
        floor_note: str = "",
        rivals: Mapping[str, float] | None = None,
    ) -> Row:
        """Raises ValueError for what `Row.of` refuses, and for a case and metric that is there already."""
        row = Row.of(case, metric, samples, floor=floor, floor_note=floor_note, rivals=rivals)
        if any((row.case, row.metric) == (case, metric) for row in self.rows):
            raise ValueError(f"{case} {metric} comes twice")
        self.rows.append(row)
        return row

    def show(self) -> str:
        """The table, and below it what its floors mean."""
        lines = [table(_HEADER, [_cells(row) for row in self.rows])]
        notes = {(row.metric, row.floor_note): None for row in self.rows if row.floor_note}
        lines += [f"floor of {metric}: {note}" for metric, note in notes]
        return "\n".join(lines)

    def value(self) -> dict[str, Any]:
        now = datetime.fromtimestamp(SystemClock().wall(), UTC)
        return {
            "bench": self.name,
            "date": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "commit": commit(),
            "machine": self._facts,
            "versions": versions(),
            "rows": [asdict(row) for row in self.rows],
        }

    def write(self, folder: Path = RESULTS) -> Path:
        """Replaces the last result of this kind of machine."""
        folder.mkdir(parents=True, exist_ok=True)
        on_gpu = self._may_use_gpu and self._facts["gpu"]
        path = folder / f"{self.name}{'.gpu' if on_gpu else ''}.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps(self.value(), indent=1, ensure_ascii=False) + "\n")
        new.rename(path)
        return path

    def finish(self, folder: Path = RESULTS) -> None:
        print(self.show())
        print(f"written: {os.path.relpath(self.write(folder))}")


def quantile(ordered: Sequence[float], share: float) -> float:
    """The sample that at least `share` of all do not exceed, by nearest rank. `ordered` is sorted and not empty."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def machine() -> dict[str, Any]:
    gpu, driver = _gpu()
    return {
        "cpu": _after("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(_after("/proc/meminfo", "MemTotal").split()[0]) / 2**20),
        "gpu": gpu,
        "driver": driver,
        "kernel": platform.release(),
    }


def versions() -> dict[str, str]:
    """What is not installed is absent."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    tools = Tools.find()
    for name, program, before in (
        ("criu", tools.criu, "Version: "),
        ("etcd", tools.etcd, "etcd Version: "),
    ):
        said = _output(str(program), "--version")
        if before in said:
            found[name] = said.split(before, 1)[1].split()[0]
    return found


def commit() -> str:
    """The short hash; with `-dirty` when what was measured is not what was committed.

    WOODFROG_COMMIT says it where the files came without their history (deploy/offline.sh).
    """
    if told := os.environ.get("WOODFROG_COMMIT"):
        return told
    here = ("git", "-C", str(Path(__file__).parent.parent))
    head = _output(*here, "rev-parse", "--short", "HEAD").strip()
    changed = _output(
        *here, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!loadtest/results"
    )
    return f"{head}-dirty" if changed.strip() else head


def _gpu() -> tuple[str | None, str | None]:
    """Name, with the count when there are several, and driver."""
    said = _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    lines = [line.split(", ") for line in said.splitlines() if ", " in line]
    if not lines:
        return None, None
    name, driver = lines[0][:2]
    return (name if len(lines) == 1 else f"{len(lines)} × {name}"), driver


def _output(*command: str) -> str:
    """What a program prints; empty when it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _after(path: str, name: str) -> str:
    """The value of the first `name: value` line of a file of /proc."""
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return platform.machine()


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _cells(row: Row) -> tuple[object, ...]:
    rivals = ", ".join(f"{name} {_text(value)}" for name, value in row.rivals.items())
    figures = (row.min, row.median, row.p99, row.max, row.floor)
    return (row.case, row.metric, row.n, *map(_text, figures), rivals)


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
