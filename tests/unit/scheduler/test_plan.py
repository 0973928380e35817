"""The choice of rungs: never beyond what there is, and as good as can be."""

import itertools
import random
import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from woodfrog.model.rung import Rung
from woodfrog.scheduler.plan import (
    INERTIA,
    Item,
    Limits,
    Option,
    Prices,
    Resource,
    Solution,
    value_of,
)
from woodfrog.scheduler.planner import Planner

GB = 1e9
FREE = Prices()
HOT_S, PARKED_S, FROZEN_S, AWAY_S = 0.03, 0.32, 0.5, 10.0


def ladder(
    model: str, wakes_s: float, size: float = 15 * GB, group: str = "h100", **more: object
) -> Item:
    """An 8B model's on a GPU."""
    options = (
        Option(group, Rung.HOT, HOT_S, {Resource.GPU: size + GB, Resource.MEMORY: 2 * GB}),
        Option(
            group, Rung.PARKED, PARKED_S,
            {Resource.GPU: GB, Resource.PINNED: size, Resource.MEMORY: 2 * GB},
        ),
        Option(group, Rung.FROZEN, FROZEN_S, {Resource.DISK: size + 2 * GB}),
    )  # fmt: skip
    return Item(model, wakes_s, AWAY_S, options, **more)  # type: ignore[arg-type]


def of(gpu: float = 80, pinned: float = 100, disk: float = 500, memory: float = 500) -> Limits:
    return {
        "h100": {
            Resource.GPU: gpu * GB, Resource.PINNED: pinned * GB, Resource.DISK: disk * GB,
            Resource.MEMORY: memory * GB,
        }
    }  # fmt: skip


def rungs(solution: Solution) -> dict[str, Rung]:
    return {model: choice.option.rung for model, choice in solution.choices.items()}


def fits(solution: Solution, limits: Limits) -> bool:
    used: dict[tuple[str, Resource], float] = {}
    for choice in solution.choices.values():
        for resource, amount in choice.option.uses.items():
            key = (choice.option.group, resource)
            used[key] = used.get(key, 0.0) + amount
    return all(
        used.get((g, r), 0.0) <= limit * (1 + 1e-9)
        for g, o in limits.items()
        for r, limit in o.items()
    )


def test_the_most_wanted_are_hot_the_next_parked_and_the_rest_frozen_or_away() -> None:
    items = [ladder(f"m{rank}", 1 / (rank + 1)) for rank in range(40)]
    solution = Planner().solve(items, of(), FREE)
    found = rungs(solution)
    assert solution.solver == "linear program"
    assert [found.get(f"m{rank}") for rank in range(4)] == [Rung.HOT] * 4
    ranks = {rung: [r for r in range(40) if found.get(f"m{r}") is rung] for rung in (*Rung, None)}
    assert max(ranks[Rung.HOT]) < statistics.mean(ranks[Rung.PARKED])
    assert max(ranks[Rung.PARKED]) < statistics.mean(ranks[Rung.FROZEN])
    assert statistics.median(ranks[Rung.FROZEN]) < statistics.median(ranks[None])
    assert solution.bound is not None
    assert solution.value > 0.97 * solution.bound
    assert fits(solution, of())


def test_a_price_takes_models_off_the_gpu_and_frees_memory_when_wakes_are_rare() -> None:
    items = [ladder("often", 0.1), ladder("rare", 1e-6)]
    found = rungs(Planner().solve(items, of(), Prices({Resource.GPU: 1e-15})))
    assert found == {"often": Rung.HOT, "rare": Rung.FROZEN}
    dear = Prices({Resource.GPU: 1.0, Resource.PINNED: 1.0, Resource.DISK: 1.0})
    assert Planner().solve(items, of(), dear).choices == {}


def test_priority_counts() -> None:
    items = [ladder("plain", 0.1), ladder("paid", 0.05, priority=3.0)]
    assert rungs(Planner().solve(items, of(gpu=17, disk=0), FREE))["paid"] is Rung.HOT


def test_noise_moves_nothing() -> None:
    both = [ladder("a", 1.0, now=0), ladder("b", 1.0 + INERTIA / 2, now=1)]
    one_hot = of(gpu=17.5, pinned=15)
    assert rungs(Planner().solve(both, one_hot, FREE))["a"] is Rung.HOT
    both[1] = ladder("b", 1.0 + 3 * INERTIA, now=1)
    assert rungs(Planner().solve(both, one_hot, FREE))["b"] is Rung.HOT


def test_a_program_that_takes_too_long_is_replaced_by_a_greedy_choice() -> None:
    chance = random.Random(3)
    items = [
        ladder(f"m{n}", chance.paretovariate(1.2), chance.uniform(1, 40) * GB) for n in range(400)
    ]
    planner = Planner()
    exact = planner.solve(items, of(gpu=800, pinned=900, disk=2000), FREE, within_s=60)
    quick = Planner().solve(items, of(gpu=800, pinned=900, disk=2000), FREE, within_s=0.0)
    assert (exact.solver, quick.solver) == ("linear program", "greedy")
    assert exact.bound is not None
    assert 0.97 * exact.bound <= exact.value <= exact.bound * (1 + 1e-9)
    assert quick.value >= 0.85 * exact.bound
    assert fits(quick, of(gpu=800, pinned=900, disk=2000))


def cell(chance: random.Random, nodes: int = 50, models: int = 1000) -> tuple[list[Item], Limits]:
    """Some ten models to a node, of which few fit, and some that two nodes may take."""
    items = []
    for n in range(models):
        size, wakes_s = chance.uniform(1, 40) * GB, chance.lognormvariate(-6, 1.5)
        homes = [f"n{chance.randrange(nodes)}" for _ in range(1 + (n % 10 == 0))]
        options = [ladder("", wakes_s, size, home).options for home in dict.fromkeys(homes)]
        items.append(Item(f"m{n}", wakes_s, AWAY_S, tuple(itertools.chain(*options))))
    return items, {f"n{n}": of(disk=80)["h100"] for n in range(nodes)}


def changed(items: list[Item], chance: random.Random) -> list[Item]:
    """One in a hundred goes and one comes; all are wanted a little more, or less."""
    kept = [replace(i, wakes_s=i.wakes_s * chance.uniform(0.99, 1.01)) for i in items]
    for at in chance.sample(range(len(items)), len(items) // 100):
        kept[at] = replace(kept[at], model=f"new{at}", wakes_s=chance.lognormvariate(-6, 1.5))
    return kept


def test_the_next_plan_begins_where_the_last_one_ended_though_models_come_and_go() -> None:
    chance = random.Random(7)
    items, limits = cell(chance)
    planner = Planner()
    assert planner.solve(items, limits, FREE, 60.0).iterations > 500
    for _ in range(3):
        items = changed(items, chance)
        again, afresh = (each.solve(items, limits, FREE, 60.0) for each in (planner, Planner()))
        assert again.bound == pytest.approx(afresh.bound, rel=1e-6)
        assert again.iterations < 0.1 * afresh.iterations


def test_nodes_come_and_go_too() -> None:
    items, limits = cell(random.Random(8), nodes=20, models=200)
    planner = Planner()
    for group in ("", "n3", "n4"):
        left = {name: found for name, found in limits.items() if name != group}
        again, afresh = (each.solve(items, left, FREE, 60.0) for each in (planner, Planner()))
        assert again.bound == pytest.approx(afresh.bound, rel=1e-6)


def test_what_is_only_asked_is_nowhere_to_begin() -> None:
    items, limits = cell(random.Random(9), nodes=20, models=200)
    planner = Planner()
    planner.solve(items, limits, FREE, 60.0)
    dear = Prices({Resource.GPU: 1e-11, Resource.PINNED: 1e-12})
    assert planner.solve(items, limits, dear, 60.0, asked=True).iterations > 0
    assert planner.solve(items, limits, FREE, 60.0).iterations == 0


def test_what_the_program_takes_in_part_is_put_well_where_few_models_fit_a_node() -> None:
    items, limits = cell(random.Random(10))
    exact = Planner().solve(items, limits, FREE, 60.0)
    quick = Planner().solve(items, limits, FREE, 0.0)
    assert exact.bound is not None
    assert exact.value > 0.97 * exact.bound
    assert exact.value > quick.value
    assert fits(exact, limits)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Item], Limits]:
    sizes = st.integers(1, 6)
    items = [
        ladder(
            f"m{n}",
            draw(st.integers(0, 5)) / 7,
            draw(sizes) * GB,
            draw(st.sampled_from(["x", "y"])),
        )
        for n in range(draw(st.integers(0, 5)))
    ]
    limits = {
        group: {
            Resource.GPU: draw(st.integers(0, 12)) * GB,
            Resource.PINNED: draw(st.integers(0, 8)) * GB,
            Resource.DISK: draw(st.integers(0, 20)) * GB,
        }
        for group in draw(st.sets(st.sampled_from(["x", "y"])))
    }
    return items, limits


def test_a_large_one_of_much_value_is_not_kept_out_by_a_small_one_that_takes_less() -> None:
    items = [ladder("m1", 5 / 7, 6 * GB, "x"), ladder("m2", 2 / 7, 1 * GB, "x")]
    disk = {"x": {Resource.GPU: 0.0, Resource.PINNED: 0.0, Resource.DISK: 8.0 * GB}}
    assert [*Planner().solve(items, disk, FREE, 0.0).choices] == ["m1"]


@given(problems(), st.sampled_from([1.0, 0.0]))
@settings(max_examples=60, deadline=None)
def test_no_choice_exceeds_what_there_is_and_none_is_far_from_the_best(
    problem: tuple[list[Item], Limits], within_s: float
) -> None:
    items, limits = problem
    solution = Planner().solve(items, limits, FREE, within_s)
    assert fits(solution, limits)
    best = 0.0
    for picks in itertools.product(*[(None, *item.options) for item in items]):
        pairs = [(i, o) for i, o in zip(items, picks, strict=True) if o is not None]
        used: dict[tuple[str, Resource], float] = {}
        for _, option in pairs:
            for resource, amount in option.uses.items():
                used[option.group, resource] = used.get((option.group, resource), 0.0) + amount
        if all(used.get((g, r), 0.0) <= limit for g, o in limits.items() for r, limit in o.items()):
            best = max(best, sum(value_of(i, o, FREE) for i, o in pairs))
    assert solution.value <= best + 1e-9
    if solution.bound is not None:
        assert solution.bound >= best - 1e-6
    assert solution.value >= 0.5 * best - 1e-9
