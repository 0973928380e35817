"""How long a plan takes in a large cell, and how good it is, on one core.

    python -m loadtest.planning [--nodes 1000] [--models 10000] [--plans 10]

The real planner on made-up models: six in ten rest on a node, one is to be lifted and may be on one of three, three lie on no
node and may be fetched to one of three. Between two plans one model in a hundred goes and another comes, and all are
wanted a little more or less. Each plan is made from where the last one ended, from nothing, and greedily. Its program alone
is in `program_s`.
"""

import random
import time
from dataclasses import replace

from loadtest.report import Bench
from woodfrog.cli import options
from woodfrog.model.rung import Rung
from woodfrog.scheduler.plan import Item, Limits, Option, Prices, Problem, Resource, Solution
from woodfrog.scheduler.planner import Planner
from woodfrog.scheduler.program import Program

GB = 1e9
CHANGED = 0.01  # of all models, between two plans
DRIFT = 0.01  # by which others are wanted more or less
WITHIN_S = 60.0  # each program may end
HOMES = 3
PCIE_BYTES_S, UNPINNED_BYTES_S, STORE_BYTES_S = 50e9, 20e9, 0.75e9
FROM_LAST, FROM_NOTHING, GREEDY = "from the last plan", "from nothing", "greedy"


def main() -> None:
    parser = options.Parser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--nodes", type=options.whole(1, 1_000_000), default=1000)
    parser.add_argument("--models", type=options.whole(1, 10_000_000), default=10_000)
    parser.add_argument("--plans", type=options.whole(1, 1_000_000), default=10)
    args = parser.parse_args()
    found, programs = measure(args.nodes, args.models, args.plans)
    bench = Bench("planning")
    greedy = found.pop(GREEDY)
    for case, plans in found.items():
        rivals = {GREEDY: _median([plan.seconds for plan in greedy])}
        bench.add(case, "plan_s", [plan.seconds for plan in plans], rivals=rivals)
        bench.add(case, "program_s", programs[case])
        bench.add(case, "iterations", [plan.iterations for plan in plans])
        bounds = [plan.bound or 0.0 for plan in found[FROM_NOTHING]]
        lost = _lost(plans, bounds)
        bench.add(
            case, "lost_percent", lost, floor=0.0,
            floor_note="of the linear program's value, which no plan exceeds",
            rivals={GREEDY: _median(_lost(greedy, bounds))},
        )  # fmt: skip
    bench.finish()


def measure(
    node_count: int, model_count: int, plans: int
) -> tuple[dict[str, list[Solution]], dict[str, list[float]]]:
    """By how it was made, each plan, and the seconds of its program. The first, which has no last one, is none of them."""
    chance = random.Random("planning")
    limits, prices = cell(node_count)
    items = [model(f"m{n}", node_count, chance) for n in range(model_count)]
    planner, program = Planner(), Program()
    planner.solve(items, limits, prices, WITHIN_S)
    program.solve(Problem(items, limits, prices), WITHIN_S)
    programs: dict[str, list[float]] = {FROM_LAST: [], FROM_NOTHING: []}
    found: dict[str, list[Solution]] = {FROM_LAST: [], FROM_NOTHING: [], GREEDY: []}
    for step in range(plans):
        items = changed(items, step, node_count, chance)
        found[FROM_LAST].append(planner.solve(items, limits, prices, WITHIN_S))
        found[FROM_NOTHING].append(Planner().solve(items, limits, prices, WITHIN_S))
        found[GREEDY].append(Planner().solve(items, limits, prices, 0.0))
        problem = Problem(items, limits, prices)
        for case, one in ((FROM_LAST, program), (FROM_NOTHING, Program())):
            began = time.perf_counter()
            one.solve(problem, WITHIN_S)
            programs[case].append(time.perf_counter() - began)
        print({case: round(of[-1].seconds, 2) for case, of in found.items()})
    return found, programs


def cell(node_count: int) -> tuple[Limits, Prices]:
    """A GPU of 80 GB in each node, less a tenth, and the default prices."""
    node = {
        Resource.GPU: 72 * GB, Resource.PINNED: 100 * GB, Resource.MEMORY: 450 * GB, Resource.DISK: 500 * GB,
        Resource.REPLICAS: 64.0,
    }  # fmt: skip
    prices = {
        Resource.GPU: 1e-3 / (80 * GB), Resource.MEMORY: 1e-4 / (500 * GB),
        Resource.PINNED: 1e-6 / (100 * GB), Resource.DISK: 1e-6 / (500 * GB),
    }  # fmt: skip
    return {f"n{n:04}": node for n in range(node_count)}, Prices(prices)


def model(name: str, node_count: int, chance: random.Random) -> Item:
    """Of 2 to 40 GB, wanted again within minutes or days."""
    size = chance.choice((2, 4, 8, 15, 15, 30, 40)) * GB
    wait_s = chance.lognormvariate(6.0, 1.5)
    frozen_s = 0.3 + size / PCIE_BYTES_S
    kind = chance.random()
    count = 1 if kind < 0.6 else HOMES
    nodes = [f"n{n:04}" for n in chance.sample(range(node_count), min(count, node_count))]
    if kind < 0.6:
        now = chance.choice((0, 1, 3))
        return Item(
            name, 1 / wait_s, frozen_s + 0.1, tuple(rungs(nodes[0], size, frozen_s)), 1.0, now
        )
    if kind < 0.7:
        lifted = [
            replace(option, late_s=rank * 0.01)
            for rank, node in enumerate(nodes)
            for option in rungs(node, size, frozen_s)
            if option.rung is not Rung.FROZEN or not rank
        ]
        return Item(name, 1 / (wait_s % 300 + 1), frozen_s + 0.1, tuple(lifted))
    fetched = [
        Option(node, Rung.FROZEN, frozen_s, {Resource.DISK: size + 2 * GB}, rank * 0.01)
        for rank, node in enumerate(nodes)
    ]
    return Item(name, 1 / wait_s, frozen_s + size / STORE_BYTES_S, tuple(fetched))


def rungs(node: str, size: float, frozen_s: float) -> list[Option]:
    """As `planning.py` gives them to a model on a GPU."""
    own = {Resource.MEMORY: 4 * GB, Resource.REPLICAS: 1.0}
    held = {**own, Resource.GPU: GB}
    return [
        Option(node, Rung.HOT, 0.01, {**own, Resource.GPU: size + GB}),
        Option(node, Rung.PARKED, 0.03 + size / PCIE_BYTES_S, {**held, Resource.PINNED: size}),
        Option(node, Rung.PARKED, 0.03 + size / UNPINNED_BYTES_S, held),
        Option(node, Rung.FROZEN, frozen_s, {Resource.PINNED: size}),
    ]


def changed(items: list[Item], step: int, node_count: int, chance: random.Random) -> list[Item]:
    kept = [replace(i, wakes_s=i.wakes_s * chance.uniform(1 - DRIFT, 1 + DRIFT)) for i in items]
    for at in chance.sample(range(len(kept)), int(len(kept) * CHANGED)):
        kept[at] = model(f"m{step}-{at}", node_count, chance)
    return kept


def _lost(plans: list[Solution], bounds: list[float]) -> list[float]:
    return [100 * (1 - plan.value / bound) for plan, bound in zip(plans, bounds, strict=True)]


def _median(samples: list[float]) -> float:
    return sorted(samples)[len(samples) // 2]


if __name__ == "__main__":
    main()
