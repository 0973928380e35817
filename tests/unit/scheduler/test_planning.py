"""What idle replicas are kept on, and for how long."""

from dataclasses import replace

import pytest
from tests.unit.scheduler.cell import GIB, Cell, every, facts, gpu, on_gpu, only, replica, spec

from woodfrog.model.node import Replica, ReplicaState
from woodfrog.model.placement import ReplicaUsage
from woodfrog.model.rung import Rung
from woodfrog.scheduler import events as on
from woodfrog.scheduler import planning
from woodfrog.scheduler.board import Limits
from woodfrog.scheduler.plan import Resource, Solution
from woodfrog.scheduler.planner import Planner

FROG = spec("frog", park_after_s=5.0)
TOAD = replace(FROG, name="toad", weights=spec("toad").weights)
OLM = replace(spec("olm"), gpu_bytes=2 * GIB, weights_bytes=6 * GIB, park_after_s=5.0)
EFT = replace(spec("eft"), gpu_bytes=2 * GIB, weights_bytes=6 * GIB, park_after_s=5.0)
FREEZE_S = Limits().freeze_s


def planned(cell: Cell, price: float = 0.0) -> Solution:
    view = cell.state.view
    found = planning.items(view, cell.state.demand, cell.state.estimates, cell.now)
    items = [item for item in found if item is not None]
    by_model = {item.model: item for item in items}
    limits = planning.limits(view, by_model)
    solution = Planner().solve(
        items, limits, planning.prices(view, {Resource.GPU: price, Resource.MEMORY: price / 100})
    )
    cell.do(planning.rests(view, by_model, solution))
    return solution


def wakes(cell: Cell, model: str, gap_s: float, count: int = 12) -> None:
    """Its past: it was asked for so often."""
    for _ in range(count):
        cell.state.demand.woke(model, gap_s)


def served(cell: Cell, *replicas: Replica) -> None:
    cell.report("a", *replicas)
    for each in replicas:
        cell.acquire(each.model)
        cell.do(on.UsageReported("r", (ReplicaUsage(each.replica_id, 0, started=1),)))


def test_one_that_is_wanted_often_is_kept_beyond_the_clock_and_frozen_once_it_is_not() -> None:
    cell = Cell(FROG)
    served(cell, replica("f1", FROG, "a"))
    wakes(cell, "frog", 400.0)
    parked = only(on.Descend, cell.wait(6.0))
    assert parked.rung is Rung.PARKED
    cell.do(on.DescendFinished("f1", Rung.PARKED))
    planned(cell, 1e-4)
    assert not every(on.Descend, cell.wait(FREEZE_S + 60.0))
    cell.wait(100_000.0)  # long after it should have come
    assert planned(cell, 1e-4).choices == {}
    assert cell.state.view.replicas["f1"].descending is Rung.FROZEN


@pytest.mark.parametrize("by_plan", [True, False])
def test_what_is_to_be_kept_hot_goes_no_lower_before_its_time(by_plan: bool) -> None:
    freeze_after_s = None if by_plan else 3000.0
    kept = replace(FROG, keep_hot_s=3000.0, freeze_after_s=freeze_after_s)
    cell = Cell(kept)
    served(cell, replica("f1", kept, "a"))
    assert only(on.Descend, cell.wait(6.0)).rung is Rung.PARKED
    cell.do(on.DescendFinished("f1", Rung.PARKED))
    if by_plan:
        assert planned(cell, 1000.0).choices == {}
    assert not every(on.Descend, cell.wait(2990.0))
    found = cell.wait(10.0)
    if by_plan:
        assert not every(on.Descend, found)
        planned(cell, 1000.0)
    assert cell.state.view.replicas["f1"].descending is Rung.FROZEN


def test_after_the_time_that_it_was_kept_for_the_plan_says_what_becomes_of_it() -> None:
    kept = replace(FROG, keep_hot_s=3000.0)
    cell = Cell(kept)
    served(cell, replica("f1", kept, "a"))
    wakes(cell, "frog", 4000.0)
    only(on.Descend, cell.wait(6.0))
    cell.do(on.DescendFinished("f1", Rung.PARKED))
    assert not every(on.Descend, cell.wait(3000.0))  # no plan has seen it yet
    assert planned(cell).choices["frog"].option.rung is Rung.PARKED
    assert not every(on.Descend, cell.wait(2 * FREEZE_S))


def test_a_hot_one_that_is_to_be_kept_is_not_parked_by_the_plan() -> None:
    kept = replace(OLM, keep_hot_s=3000.0)
    cell = Cell(kept)
    told = replace(facts("a", 4 * GIB), gpus=(gpu(7 * GIB, weights=(OLM.weights,)),))
    cell.report("a", on_gpu(replica("o1", kept, "a"), 2 * GIB), facts=told)
    cell.acquire("olm")
    cell.do(on.UsageReported("r", (ReplicaUsage("o1", 0, started=1),)))
    cell.do(on.Planned({"o1": Rung.FROZEN}))
    assert only(on.Descend, cell.wait(6.0)).rung is Rung.HOT
    cell.do(on.DescendFinished("o1", Rung.HOT))
    assert not every(on.Descend, cell.wait(2900.0))
    assert only(on.Descend, cell.wait(100.0)).rung is Rung.FROZEN


@pytest.mark.parametrize("first", ["olm", "eft"])
def test_of_two_that_are_wanted_alike_the_one_with_priority_stays_hot(first: str) -> None:
    models = [replace(m, priority=10.0 if m.name == first else 1.0) for m in (OLM, EFT)]
    cell = Cell(*models)
    hot = [on_gpu(replica(m.name, m, "a", ReplicaState.HOT), GIB) for m in models]
    full = gpu(14 * GIB, memory=15 * GIB, weights=(OLM.weights, EFT.weights))
    cell.report("a", *hot, facts=replace(facts("a", 8 * GIB), gpus=(full,)))
    for model in ("olm", "eft"):
        cell.state.view.models[model].active = cell.now
        wakes(cell, model, 100.0)
    cell.wait(60.0)
    choices = planned(cell).choices
    assert [m for m, choice in choices.items() if choice.option.rung is Rung.HOT] == [first]


def test_a_time_that_the_user_gave_is_kept() -> None:
    model = replace(FROG, freeze_after_s=20.0)
    cell = Cell(model)
    served(cell, replica("f1", model, "a"))
    wakes(cell, "frog", 400.0)
    cell.wait(6.0)
    cell.do(on.DescendFinished("f1", Rung.PARKED))
    assert planned(cell).choices == {}
    assert only(on.Descend, cell.wait(20.0)).rung is Rung.FROZEN


def test_the_more_wanted_one_stays_hot_and_the_other_goes_down_a_rung() -> None:
    cell = Cell(OLM, EFT)
    hot = [
        on_gpu(replica(name, model, "a", ReplicaState.HOT), GIB)
        for name, model in (("o1", OLM), ("e1", EFT))
    ]
    weights = (OLM.weights, EFT.weights)
    full = gpu(14 * GIB, memory=15 * GIB, weights=weights)  # one of them hot, and one context
    cell.report("a", *hot, facts=replace(facts("a", 8 * GIB), gpus=(full,)))
    for model in ("olm", "eft"):
        cell.state.view.models[model].active = cell.now
    wakes(cell, "olm", 100.0)
    wakes(cell, "eft", 1000.0)
    cell.wait(60.0)
    choices = planned(cell).choices
    assert {model: choice.option.rung for model, choice in choices.items()} == {
        "olm": Rung.HOT,
        "eft": Rung.PARKED,
    }
    assert cell.state.view.replicas["e1"].descending is Rung.PARKED
    assert cell.state.view.replicas["o1"].descending is None


def test_what_the_plan_values_least_makes_room_first_and_who_was_used_since_last() -> None:
    asks = [
        replace(spec(f"ask{n}", memory_bytes=GIB), gpu_bytes=GIB, weights_bytes=1) for n in range(3)
    ]
    cell = Cell(OLM, EFT, *asks)
    hot = [
        on_gpu(replica(name, model, "a", ReplicaState.HOT), GIB)
        for name, model in (("e1", EFT), ("o1", OLM), ("o2", OLM))
    ]
    weights = (OLM.weights, EFT.weights)
    told = replace(facts("a", 8 * GIB), gpus=(gpu(15 * GIB, memory=20 * GIB, weights=weights),))
    cell.report("a", *hot, facts=told)
    for model in ("olm", "eft"):
        cell.state.view.models[model].active = cell.now
    wakes(cell, "olm", 1000.0)
    wakes(cell, "eft", 100.0)
    assert only(on.StartClimb, cell.acquire("ask0")).yields == ("e1", "o1", "o2")  # no plan yet
    cell.wait(60.0)
    planned(cell)
    assert only(on.StartClimb, cell.acquire("ask1")).yields == ("o2", "o1", "e1")
    cell.do(on.UsageReported("r", (ReplicaUsage("o2", 0, started=1),)))
    assert only(on.StartClimb, cell.acquire("ask2")).yields == ("o1", "e1", "o2")


@pytest.mark.parametrize(("price", "rung"), [(0.0, Rung.HOT), (0.01, Rung.PARKED)])
def test_a_gpu_that_costs_is_left_by_who_is_rarely_wanted(price: float, rung: Rung) -> None:
    cell = Cell(OLM)
    hot = on_gpu(replica("o1", OLM, "a", ReplicaState.HOT), GIB // 64)
    told = replace(facts("a", 4 * GIB), gpus=(gpu(7 * GIB, weights=(OLM.weights,)),))
    cell.report("a", hot, facts=told)
    cell.state.view.models["olm"].active = cell.now
    wakes(cell, "olm", 500.0)
    cell.wait(100.0)
    assert planned(cell, price).choices["olm"].option.rung is rung


def test_pinned_memory_is_for_who_is_wanted_more() -> None:
    cell = Cell(OLM, EFT)
    parked = [on_gpu(replica(m.name, m, "a", ReplicaState.PARKED), GIB // 64) for m in (OLM, EFT)]
    told = replace(facts("a", 8 * GIB), gpus=(gpu(GIB // 32, memory=4 * GIB, pinned=8 * GIB),))
    cell.report("a", *parked, facts=told)
    for model, gap_s in (("olm", 4000.0), ("eft", 400.0)):
        cell.state.view.models[model].active = cell.now
        wakes(cell, model, gap_s)
    cell.wait(60.0)
    choices = planned(cell).choices  # the GPU is too small for either to be hot
    pinned = {name for name, c in choices.items() if Resource.PINNED in c.option.uses}
    assert {c.option.rung for c in choices.values()} == {Rung.PARKED}
    assert ({*choices}, pinned) == ({"olm", "eft"}, {"eft"})


def test_idle_time_before_each_wake_is_noted_and_not_what_runs_on() -> None:
    cell = Cell(FROG)
    served(cell, replica("f1", FROG, "a"))
    cell.wait(4.0)
    cell.acquire("frog")
    assert cell.state.demand.wait_s("frog", 3.0) == pytest.approx(1.0, abs=0.5)
    cell.do(on.UsageReported("r", (ReplicaUsage("f1", 1, started=1),)))
    cell.wait(1000.0)
    cell.acquire("frog")  # the other still runs
    assert cell.state.demand.wait_s("frog", 900.0) == 900.0  # nothing came so late


def test_with_more_memory_there_is_more_of_all_bytes_and_as_many_replicas() -> None:
    cell = Cell(FROG)
    told = replace(facts("a"), gpus=(gpu(memory=4 * GIB, pinned=8 * GIB),), disk_bytes=10 * GIB)
    cell.report("a", facts=told)
    once, twice = (planning.limits(cell.state.view, {}, memory)["a"] for memory in (1.0, 2.0))
    assert twice == {
        resource: pytest.approx(limit * (1 if resource is Resource.REPLICAS else 2))
        for resource, limit in once.items()
    }
    assert all(once.values())


def test_a_price_is_of_all_that_the_largest_has() -> None:
    cell = Cell(FROG, nodes=("a", "b"))
    for node, times in (("a", 1), ("b", 2)):
        has = gpu(memory=4 * GIB * times, pinned=8 * GIB * times)
        cell.report(node, facts=replace(facts(node), gpus=(has, has), disk_bytes=GIB * times))
    of = dict.fromkeys((Resource.GPU, Resource.PINNED, Resource.MEMORY, Resource.DISK), 1.0)
    paid = planning.prices(cell.state.view, of).of
    sizes = {Resource.GPU: 8, Resource.PINNED: 32, Resource.MEMORY: 16, Resource.DISK: 2}
    assert paid == {resource: pytest.approx(1 / size / GIB) for resource, size in sizes.items()}


def test_what_is_busy_is_counted_and_not_planned() -> None:
    cell = Cell(FROG, TOAD)
    cell.report("a", replica("f1", FROG, "a"), replica("t1", TOAD, "a"))
    cell.acquire("toad")
    view = cell.state.view
    limits = planning.limits(view, {})
    assert limits["a"][Resource.REPLICAS] == 8 - 2
    found = [*planning.items(view, cell.state.demand, cell.state.estimates, cell.now)]
    assert len(found) == 2
    assert not any(item is not None and item.model == "toad" for item in found)


@pytest.mark.parametrize("shared", [True, False])
def test_weights_are_counted_once_whoever_has_them(shared: bool) -> None:
    cell = Cell(OLM)
    held = GIB + (0 if shared else OLM.weights_bytes)
    hot = on_gpu(replica("o1", OLM, "a", ReplicaState.HOT), held)
    hot = replace(hot, own_weights=not shared)
    lies = gpu(7 * GIB, memory=8 * GIB, weights=(OLM.weights,) if shared else ())
    cell.report("a", hot, facts=replace(facts("a", 4 * GIB), gpus=(lies,)))
    cell.state.view.models["olm"].active = cell.now
    wakes(cell, "olm", 100.0)
    cell.wait(50.0)
    assert planned(cell).choices["olm"].option.uses[Resource.GPU] == GIB + OLM.weights_bytes
