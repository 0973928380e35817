"""How long users wait and what GPUs cost under policies of today and under ours, on a trace of requests, simulated.

    python -m loadtest.simulate [--trace FILE.csv ...] [--nodes 16] [--models 100] [--hours 1] [--policies woodfrog,...]

The scheduler and the agents decide as they do in a cell (`simulated_cell`); what climbs take is made up from the figures of
docs/figures.md. A trace is a CSV file with TIMESTAMP, ContextTokens and GeneratedTokens, such as the public
AzureLLMInferenceTrace (Azure/AzurePublicDataset on GitHub); its requests are dealt to models by Zipf's law. Without one,
arrivals are made: bursts of Gamma-distributed gaps. Each policy is run with several idle times, which trade waits for GPUs.
"""

import argparse
import csv
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from loadtest.report import Bench
from loadtest.simulated_cell import SimulatedCell
from loadtest.simulated_setup import Arrival, Setup, Timing
from woodfrog.cli.show import table
from woodfrog.model import digest
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler.estimates import NO_WEIGHTS, Branch, Estimates, Forecast, Way
from woodfrog.scheduler.rates import Rates
from woodfrog.scheduler.state import SchedulerState

GIB = 1 << 30
TOKEN_S, PREFILL_S = 0.012, 0.05  # of an answer: each token, and what is read before the first
ZIPF = 1.1
IDLE_S = (0.0, 10.0, 60.0, 300.0, 1800.0)
LOADED_S = 5.0  # a start that reads weights quickly, but builds its process anew (ServerlessLLM's figures: 1.3 to 3.2 s)
FOREVER_S = 1e9
PLAN_S = 5.0
PRICES = (0.0, 0.0003, 0.001, 0.003, 0.01)


@dataclass(frozen=True, slots=True)
class Policy:
    """How models rest, and how they come back."""

    name: str
    note: str
    spec: Callable[[ModelSpec, float], ModelSpec]  # with an idle time
    timing: Timing = field(default_factory=Timing)
    idle_s: Sequence[float] = IDLE_S
    prices: Sequence[float] = ()  # of a GPU, instead of idle times: it has a plan
    make_state: Callable[[str], SchedulerState] = SchedulerState


def _rests(spec: ModelSpec, idle_s: float) -> ModelSpec:
    return replace(spec, park_after_s=min(10.0, idle_s), freeze_after_s=idle_s)


def _planned(spec: ModelSpec, _: float) -> ModelSpec:
    return replace(spec, park_after_s=10.0, freeze_after_s=None)


def _ends(spec: ModelSpec, idle_s: float) -> ModelSpec:
    return replace(spec, snapshot="never", park_after_s=idle_s, freeze_after_s=idle_s)


class RandomEstimates(Estimates):
    """Every node is as good as any."""

    def __init__(self, priors: Rates) -> None:
        super().__init__(priors)
        self._chance = random.Random(1)

    def forecast(
        self, way: Way, process: Branch, weights: Branch = NO_WEIGHTS, beside: int = 0
    ) -> Forecast:
        return Forecast(way, process, weights, beside, self._chance.random())


def _random_state(epoch: str) -> SchedulerState:
    return SchedulerState(epoch, estimates=RandomEstimates(Rates()))


POLICIES = (
    Policy("woodfrog", "hot, parked, frozen; least predicted time; rests by plan, at a price", _planned, prices=PRICES),
    Policy("woodfrog by the clock", "the same without a plan", _rests),
    Policy("random", "snapshots, on any node with room", _rests, make_state=_random_state),
    Policy(
        "locality", "no snapshots, weights loaded fast from the nearest tier (ServerlessLLM's rule)", _ends,
        replace(Timing(), cold_s=LOADED_S),
    ),
    Policy("keep-alive", "no snapshots, the longest idle goes first", _ends),
    Policy("always on", "a replica of each model, always", _ends, idle_s=(FOREVER_S,)),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trace", type=Path, nargs="*", default=[])
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--requests-s", type=float, default=3.0, help="of made arrivals")
    parser.add_argument("--policies", default=",".join(policy.name for policy in POLICIES))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    gaps = traced(args.trace) if args.trace else made(chance, args.requests_s)
    arrivals = dealt(gaps, args.models, args.hours * 3600, chance)
    print(f"{len(arrivals)} requests to {args.models} models on {args.nodes} nodes")
    bench = Bench("simulate")
    rows = []
    for policy in POLICIES:
        if policy.name not in args.policies.split(","):
            continue
        for knob in policy.prices or policy.idle_s:
            rows.append(run(bench, policy, knob, arrivals, args.models, args.nodes, args.seed))
    print(
        table(
            ("policy", "idle s or price", "p50 s", "p99 s", "GPU-hours", "not answered", "took s"),
            rows,
        )
    )
    bench.finish()


def run(
    bench: Bench,
    policy: Policy,
    knob: float,
    arrivals: Sequence[Arrival],
    model_count: int,
    node_count: int,
    seed: int,
) -> tuple[str, ...]:
    began = time.perf_counter()
    specs = [policy.spec(spec, knob) for spec in shapes(model_count)]
    setup = Setup(
        timing=policy.timing, checked=False, snapshots=True, make_state=policy.make_state,
        plan_every_s=PLAN_S if policy.prices else 0.0, gpu_price=knob if policy.prices else 0.0,
    )  # fmt: skip
    cell = SimulatedCell(seed, specs, node_count, setup)
    requests = cell.run(arrivals, patience_s=4000.0)
    waits = sorted(r.began - r.arrival.at for r in requests if r.began is not None)
    gpu_s = sum(node.paid() for node in cell.nodes.values())
    case = f"{policy.name}, {'price' if policy.prices else 'idle s'} {knob:g}"
    bench.add(case, "first_token_s", waits)
    bench.add(case, "gpu_s", [gpu_s])
    failed = sum(r.began is None for r in requests)
    bench.add(case, "not_answered", [float(failed)])
    return (
        policy.name, f"{knob:g}", f"{waits[len(waits) // 2]:.3f}", f"{waits[int(len(waits) * 0.99)]:.3f}",
        f"{gpu_s / 3600:.2f}", str(failed), f"{time.perf_counter() - began:.0f}",
    )  # fmt: skip


def shapes(count: int) -> list[ModelSpec]:
    """Sizes of one to 40 GB, the popular ones of all sizes."""
    sizes = (2, 15, 15, 7, 27, 15, 40, 3)
    return [
        ModelSpec(
            f"m{n}", digest.of_bytes(f"m{n}".encode()), sizes[n % len(sizes)] * 10**9,
            memory_bytes=4 * GIB, gpu_bytes=4 * GIB, slots=8, replicas_max=4,
        )
        for n in range(count)
    ]  # fmt: skip


def traced(paths: Sequence[Path]) -> Iterator[tuple[float, float]]:
    """(seconds since the first request, seconds of its answer) of all files, by time."""
    found = []
    for path in paths:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                at = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
                found.append((at, PREFILL_S + TOKEN_S * int(row["GeneratedTokens"])))
    found.sort()
    return ((at - found[0][0], answer_s) for at, answer_s in found)


def made(chance: random.Random, requests_s: float) -> Iterator[tuple[float, float]]:
    at = 0.0
    while True:
        at += chance.gammavariate(0.25, 4 / requests_s)  # four times as bursty as Poisson's
        yield at, PREFILL_S + TOKEN_S * chance.lognormvariate(4.5, 1.0)


def dealt(
    gaps: Iterator[tuple[float, float]], model_count: int, seconds: float, chance: random.Random
) -> list[Arrival]:
    weights = [1 / (rank + 1) ** ZIPF for rank in range(model_count)]
    within = list(itertools.takewhile(lambda each: each[0] < seconds, gaps))
    ranks = chance.choices(range(model_count), weights, k=len(within))
    return [
        Arrival(at, f"m{rank}", answer_s)
        for (at, answer_s), rank in zip(within, ranks, strict=True)
    ]


if __name__ == "__main__":
    main()
