"""Climbs that no request asked for."""

from dataclasses import replace

import pytest
from tests.unit.scheduler.cell import (
    GIB,
    Cell,
    every,
    facts,
    gpu,
    on_gpu,
    only,
    pointer,
    replica,
    resident,
    spec,
)
from tests.unit.scheduler.test_planning import planned, served, wakes

from woodfrog.model.node import Climbed, ReplicaState
from woodfrog.model.placement import ReplicaUsage
from woodfrog.model.rung import Rung
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler import events as on
from woodfrog.scheduler import planning
from woodfrog.scheduler.ahead import FETCH_RETRY_S
from woodfrog.scheduler.board import Limits
from woodfrog.scheduler.moves import Moves
from woodfrog.scheduler.planner import Planner

ONE = spec(replicas_min=1, replicas_max=3, park_after_s=5.0, freeze_after_s=20.0)
FROG = spec("frog", park_after_s=5.0)
TOAD = replace(FROG, name="toad", weights=spec("toad").weights)
OLM = replace(spec("olm"), gpu_bytes=2 * GIB, weights_bytes=6 * GIB, park_after_s=5.0)
RETRY_S = Limits().ahead_retry_s


# --- replicas_min ---


def minded(model: ModelSpec, *names: str) -> Cell:
    """With so many that serve already."""
    cell = Cell(replace(model, replicas_min=0))
    cell.report("a", *(replica(name, model, "a") for name in names))
    assert cell.do(on.ModelListed(model)) == []
    return cell


def test_a_model_with_a_minimum_is_lifted_when_it_is_listed_and_never_lowered() -> None:
    cell = Cell(FROG)
    start = only(on.StartClimb, cell.do(on.ModelListed(ONE)))
    assert (start.ticket, start.node) == (0, "a")
    cell.finish(start, "f1")
    assert not every(on.Descend, cell.wait(10_000.0))


def test_what_is_beyond_the_minimum_goes_by_the_clock() -> None:
    cell = minded(ONE, "f1", "f2")
    assert [d.replica_id for d in every(on.Descend, cell.wait(100.0))] == ["f2"]


def test_one_that_dies_is_replaced_and_the_next_is_kept() -> None:
    model = replace(ONE, replicas_min=2)
    cell = minded(model, "f1", "f2", "f3")
    assert not every(
        on.StartClimb, cell.report("a", *(replica(n, model, "a") for n in ("f2", "f3")))
    )
    assert not every(on.Descend, cell.wait(1000.0))
    start = only(on.StartClimb, cell.report("a", replica("f3", model, "a")))
    assert start.ticket == 0


def test_a_request_joins_the_climb_that_nobody_asked_for() -> None:
    cell = Cell(FROG)
    start = only(on.StartClimb, cell.do(on.ModelListed(ONE)))
    assert cell.acquire() == []
    assert only(on.Grant, cell.finish(start)).ticket == 1


def test_a_replica_at_rest_is_thawed_for_the_minimum() -> None:
    cell = Cell(FROG)
    cell.report("a", replica("f1", FROG, "a", ReplicaState.PARKED))
    start = only(on.StartClimb, cell.do(on.ModelListed(replace(FROG, replicas_min=1))))
    assert start.replica_id == "f1"


def test_where_there_is_no_room_it_is_tried_again_after_a_while() -> None:
    full = facts("a", 16 * GIB)
    cell = Cell(FROG)
    cell.report("a", facts=full)
    assert cell.do(on.ModelListed(ONE)) == []
    assert cell.wait(RETRY_S - 0.1) == []
    cell.report("a", facts=facts("a"))
    assert only(on.StartClimb, cell.wait(0.2)).node == "a"


def test_a_start_that_fails_for_ever_is_not_tried_at_once_again() -> None:
    cell = Cell(FROG, nodes=("a", "b"))
    pending = every(on.StartClimb, cell.do(on.ModelListed(ONE)))
    count = 0
    while pending:
        count += len(pending)
        pending = [again for start in pending for again in every(on.StartClimb, cell.fail(start))]
    assert count <= Limits().attempts_max
    assert every(on.StartClimb, cell.wait(RETRY_S + 0.1))


def test_an_idle_replica_of_another_makes_room_for_the_minimum_and_none_of_it_does() -> None:
    cell = Cell(TOAD)
    many = [replica(f"t{n}", TOAD, "a") for n in range(4)]
    cell.report("a", *many)
    cell.wait(1.0)
    assert only(on.Descend, cell.do(on.ModelListed(ONE))).replica_id == "t0"
    other = Cell(ONE, TOAD)
    mine = [replica(f"f{n}", replace(ONE, replicas_min=4), "a") for n in range(4)]
    other.do(on.ModelListed(replace(ONE, replicas_min=4, replicas_max=4)))
    other.report("a", *mine)
    refuse = only(on.Refuse, other.acquire("toad"))
    assert refuse.reason == "NO_CAPACITY"


def test_a_minimum_that_is_taken_away_lets_it_rest() -> None:
    cell = minded(ONE, "f1")
    cell.wait(50.0)
    assert (
        only(on.Descend, cell.do(on.ModelListed(replace(ONE, replicas_min=0)))).replica_id == "f1"
    )


# --- the plan ---


def rested(cell: Cell, model: str = "frog", idle_s: float = 3500.0) -> None:
    """It was used, went, and is expected soon: it wakes each hour."""
    cell.do(on.SnapshotListed(pointer(cell.state.view.models[model].spec)))
    served(cell, replica("f1", cell.state.view.models[model].spec, "a"))
    wakes(cell, model, 3600.0)
    cell.report("a")
    cell.wait(idle_s)


def test_a_model_that_wakes_each_hour_is_lifted_just_before_and_not_long_before() -> None:
    cell = Cell(FROG)
    rested(cell, idle_s=1000.0)
    planned(cell)
    assert not cell.state.view.nodes["a"].climbs
    cell.wait(2500.0)
    view = cell.state.view
    planned(cell)
    assert view.nodes["a"].climbs == 1


def lifted(cell: Cell) -> on.StartClimb:
    """By a plan that wants it."""
    return only(on.StartClimb, cell.do(on.Planned({}, {}, {"frog": "a"})))


def test_what_the_plan_lifted_goes_to_rest_at_once_and_wakes_from_there() -> None:
    cell = Cell(FROG)
    rested(cell)
    start = lifted(cell)
    assert (start.ticket, start.snapshot is not None) == (0, True)
    descend = only(on.Descend, cell.finish(start, "f2"))
    assert (descend.replica_id, descend.rung) == ("f2", Rung.PARKED)
    cell.do(on.DescendFinished("f2", Rung.PARKED))
    assert planned(cell).choices["frog"].option.rung is Rung.PARKED
    assert not every(on.Descend, cell.wait(90.0))
    assert only(on.StartClimb, cell.acquire()).replica_id == "f2"


def test_on_a_gpu_it_rests_hot() -> None:
    cell = Cell(OLM)
    cell.report("a", facts=facts("a", gpus=(gpu(),)))
    start = only(on.StartClimb, cell.do(on.Planned({}, {}, {"olm": "a"})))
    served_there = on_gpu(replica("o1", OLM, "a"), 2 * GIB)
    commands = cell.do(on.ClimbFinished(start.attempt, Climbed(served_there, Rung.FROZEN)))
    assert only(on.Descend, commands).rung is Rung.HOT


@pytest.mark.parametrize(
    ("others_gib", "at_hand", "comes"),
    [(0, (), True), (40, (), False), (40, (OLM.weights,), True)],
)
def test_nothing_that_others_pinned_is_dropped_for_what_nobody_asked_for(
    others_gib: int, at_hand: tuple[str, ...], comes: bool
) -> None:
    """OLM's weights take 6 of 40 GiB of pinned memory."""
    cell = Cell(OLM, nodes=())
    room = replace(gpu(pinned=40 * GIB), at_hand=("other", *at_hand))
    cell.do(on.SnapshotListed(pointer(OLM)))
    lie = (resident("other", others_gib * GIB),) if others_gib else ()
    cell.report("a", facts=facts("a", gpus=(room,)), residents=lie)
    cell.state.view.models["olm"].active = cell.now
    wakes(cell, "olm", 3600.0)
    cell.wait(3500.0)
    choice = planned(cell).choices.get("olm")
    assert (choice is not None and choice.option.rung in (Rung.HOT, Rung.PARKED)) == comes


def test_it_stays_serving_for_who_came_meanwhile() -> None:
    cell = Cell(FROG)
    rested(cell)
    start = lifted(cell)
    assert cell.acquire() == []
    commands = cell.finish(start, "f2")
    assert only(on.Grant, commands)
    assert not every(on.Descend, commands)


@pytest.mark.parametrize("reason", ["replica", "climb", "busy node", "no room", "too many moves"])
def test_the_plan_lifts_nothing_where(reason: str) -> None:
    cell = Cell(FROG, TOAD, limits=Limits(moves_per_minute=1))
    rested(cell)
    if reason == "replica":
        cell.report("a", replica("f2", FROG, "a", ReplicaState.PARKED))
    if reason == "climb":
        cell.acquire()
    if reason == "busy node":
        cell.acquire("toad")
    if reason == "no room":
        cell.report("a", facts=facts("a", 16 * GIB))
    if reason == "too many moves":
        start = only(on.StartClimb, cell.do(on.Planned({}, {}, {"toad": "a"})))
        cell.finish(start, "t1")
    assert not every(on.StartClimb, cell.do(on.Planned({}, {}, {"frog": "a"})))


def test_without_a_snapshot_it_is_not_started_cold() -> None:
    cell = Cell(FROG)
    served(cell, replica("f1", FROG, "a"))
    wakes(cell, "frog", 3600.0)
    cell.report("a")
    cell.wait(3500.0)
    assert planned(cell).choices == {}


def test_where_its_room_is_taken_by_one_that_is_wanted_less_that_one_goes_first() -> None:
    cell = Cell(FROG, TOAD)
    small = facts("a", memory_bytes=6 * GIB)
    lies = pointer(FROG)
    cell.do(on.SnapshotListed(lies))
    cell.report("a", replica("f1", FROG, "a"), facts=replace(small, memory_promised_bytes=4 * GIB))
    cell.do(on.UsageReported("r", (ReplicaUsage("f1", 0, started=1),)))
    wakes(cell, "frog", 3600.0)
    toad = replica("t1", TOAD, "a", ReplicaState.PARKED)
    full = replace(small, memory_promised_bytes=4 * GIB)
    cell.report("a", toad, facts=full, residents=(resident(lies.manifest, lies.size_bytes),))
    cell.do(on.UsageReported("r", (ReplicaUsage("t1", 0, started=1),)))
    wakes(cell, "toad", 86400.0)
    cell.wait(3550.0)
    planned(cell)
    view = cell.state.view
    assert view.replicas["t1"].descending is Rung.FROZEN
    cell.do(on.DescendFinished("t1", Rung.FROZEN))
    cell.report("a", facts=small)
    planned(cell)
    assert view.nodes["a"].climbs == 1


def test_descents_by_the_plan_are_bounded_in_number() -> None:
    models = [replace(FROG, name=f"m{n}", weights=spec(f"m{n}").weights) for n in range(4)]
    cell = Cell(*models, limits=Limits(moves_per_minute=2))
    rests = [replica(m.name, m, "a", ReplicaState.PARKED) for m in models]
    cell.report("a", *rests, facts=facts("a", 16 * GIB))
    down = {each.replica_id: Rung.FROZEN for each in rests}
    first = every(on.Descend, cell.do(on.Planned(down)))
    assert len(first) == 2
    later = cell.wait(59.0)
    assert not every(on.Descend, later)
    assert len(every(on.Descend, cell.wait(2.0))) == 2


def many(limits: Limits, state: ReplicaState, **changes: object) -> tuple[Cell, list[str]]:
    """Four models with an idle replica each, on a node."""
    models = [
        replace(FROG, name=f"m{n}", weights=spec(f"m{n}").weights, **changes)  # type: ignore[arg-type]
        for n in range(4)
    ]
    cell = Cell(*models, limits=limits)
    found = [replica(m.name, m, "a", state) for m in models]
    served(cell, *found)
    return cell, [each.replica_id for each in found]


def test_what_serves_is_frozen_by_the_plan_as_long_as_it_may_move_and_rests_by_the_clock() -> None:
    cell, names = many(Limits(moves_per_minute=3), ReplicaState.SERVING)
    cell.do(on.Planned(dict.fromkeys(names, Rung.FROZEN)))
    down = every(on.Descend, cell.wait(FROG.park_after_s + 1.0))
    assert [each.rung for each in down] == 3 * [Rung.FROZEN] + [Rung.PARKED]
    cell.do(on.DescendFinished(down[-1].replica_id, Rung.PARKED))
    assert not every(on.Descend, cell.wait(50.0))
    last = only(on.Descend, cell.wait(10.0))
    assert (last.replica_id, last.rung) == (down[-1].replica_id, Rung.FROZEN)


def test_what_goes_by_the_clock_leaves_the_plan_its_moves() -> None:
    cell, _ = many(Limits(moves_per_minute=1), ReplicaState.SERVING, freeze_after_s=20.0)
    parked = every(on.Descend, cell.wait(6.0))
    assert len(parked) == 4
    for each in parked:
        cell.do(on.DescendFinished(each.replica_id, Rung.PARKED))
    assert len(every(on.Descend, cell.wait(20.0))) == 4
    assert cell.state._board.moves.free_at("a", cell.now) == cell.now


def test_a_window_of_moves_ends_a_minute_after_its_first() -> None:
    moves = Moves(2)
    for now in (0.0, 30.0):
        assert moves.free_at("a", now) == now
        moves.note("a", now)
    assert moves.free_at("a", 40.0) == 60.0
    assert moves.free_at("a", 61.0) == 61.0
    assert moves.free_at("b", 40.0) == 40.0
    moves.forget("a")
    assert moves.free_at("a", 40.0) == 40.0


def soon(*nodes: str, memory_bytes: int = 16 * GIB) -> Cell:
    """Two models that lie on node a and are expected soon."""
    cell = Cell(FROG, TOAD, nodes=nodes)
    pointers = [pointer(FROG), pointer(TOAD)]
    sizes = {lies.manifest: lies.size_bytes for lies in pointers}
    sizes |= {model.weights: model.weights_bytes for model in (FROG, TOAD)}
    told = tuple(resident(manifest, size) for manifest, size in sizes.items())
    for name, model, lies in zip(("f1", "t1"), (FROG, TOAD), pointers, strict=True):
        cell.do(on.SnapshotListed(lies))
        served(cell, replica(name, model, "a"))
        wakes(cell, model.name, 3600.0)
    for node in nodes:
        here = told if node == "a" else ()
        cell.report(node, facts=facts(node, memory_bytes=memory_bytes), residents=here)
    cell.wait(3500.0)
    return cell


def test_models_are_lifted_where_their_bytes_lie() -> None:
    choices = planned(soon("a", "b")).choices
    assert {m: choice.option.group for m, choice in choices.items()} == {"frog": "a", "toad": "a"}


def test_models_that_do_not_fit_one_node_are_lifted_on_several() -> None:
    choices = planned(soon("a", "b", memory_bytes=6 * GIB)).choices  # one fits each
    assert {*choices} == {"frog", "toad"}
    assert {choice.option.group for choice in choices.values()} == {"a", "b"}


def test_a_model_has_a_few_nodes_to_choose_from_however_many_there_are() -> None:
    cell = soon(*"abcdefgh")
    found = planning.items(cell.state.view, cell.state.demand, cell.state.estimates, cell.now)
    frog = next(item for item in found if item is not None and item.model == "frog")
    assert {option.group for option in frog.options} == {"a", "b", "c"}


# --- deadlines ---


def test_a_models_own_deadline_ends_the_wait() -> None:
    model = replace(FROG, deadline_s=3.0)
    cell = Cell(model)
    cell.acquire()
    assert cell.wait(2.9) == []
    assert only(on.Refuse, cell.wait(0.2)).reason == "ACQUIRE_DEADLINE"


def test_room_that_comes_goes_to_the_model_that_counts_more_then_to_the_nearer_deadline() -> None:
    models = [
        replace(FROG, deadline_s=30.0),
        replace(TOAD, deadline_s=20.0),
        replace(FROG, name="newt", weights=spec("newt").weights, priority=5.0),
    ]
    cell = Cell(*models)
    busy = replica("x", replace(FROG, name="x"), "a")
    cell.report("a", busy, facts=facts("a", 16 * GIB, memory_bytes=16 * GIB))
    cell.state._board.awaited.add("b")  # so that requests wait for room
    for model in ("frog", "toad", "newt"):
        assert every(on.StartClimb, cell.acquire(model)) == []
    starts = every(on.StartClimb, cell.report("a", facts=facts("a", 8 * GIB)))
    assert [start.spec.name for start in starts] == ["newt", "toad"]


# --- bytes on a disk ---


def shelved(*nodes: str, disk_bytes: int = 100 * GIB) -> Cell:
    """The model has a snapshot that lies nowhere, and is expected tomorrow."""
    cell = Cell(FROG, nodes=nodes or ("a", "b"))
    cell.do(on.SnapshotListed(pointer(FROG)))
    served(cell, replica("f1", FROG, "a"))
    wakes(cell, "frog", 86400.0)
    for node in nodes or ("a", "b"):
        cell.report(node, facts=facts(node, disk_bytes=disk_bytes))
    cell.wait(600.0)
    return cell


def fetches(cell: Cell) -> list[tuple[str, str]]:
    view = cell.state.view
    found = planning.items(view, cell.state.demand, cell.state.estimates, cell.now)
    items = {item.model: item for item in found if item is not None}
    limits = planning.limits(view, items)
    solution = Planner().solve([*items.values()], limits, planning.prices(view, {}))
    commands = cell.do(planning.rests(view, items, solution))
    return [(order.node, order.attempt) for order in every(on.Prefetch, commands)]


def test_a_model_that_lies_nowhere_is_fetched_to_the_node_with_most_disk_free() -> None:
    cell = shelved()
    cell.report("a", facts=facts("a", disk_bytes=50 * GIB))
    ((node, attempt),) = fetches(cell)
    assert node == "b"
    assert fetches(cell) == []  # it is under way
    cell.do(on.PrefetchFinished(attempt))
    lies = pointer(FROG)
    told = (resident(lies.manifest, lies.size_bytes), resident(FROG.weights, FROG.weights_bytes))
    cell.report("b", facts=facts("b", disk_bytes=100 * GIB), residents=told)
    assert fetches(cell) == []


@pytest.mark.parametrize("disk_bytes", [0, GIB // 2])
def test_nothing_is_fetched_to_a_disk_that_is_full_or_unknown(disk_bytes: int) -> None:
    assert fetches(shelved(disk_bytes=disk_bytes)) == []


def test_a_fetch_that_failed_is_tried_again_a_minute_later() -> None:
    cell = shelved("a")
    ((_, attempt),) = fetches(cell)
    cell.do(on.PrefetchFailed(attempt, "CACHE_FULL", "it is full"))
    cell.wait(FETCH_RETRY_S - 1.0)
    assert fetches(cell) == []
    cell.wait(2.0)
    assert len(fetches(cell)) == 1


def test_a_node_that_drains_or_climbs_is_not_fetched_to() -> None:
    cell = shelved()
    cell.report("a", facts=facts("a", disk_bytes=200 * GIB, draining=True))
    cell.do(on.ModelListed(TOAD))
    only(on.StartClimb, cell.acquire("toad"))
    assert fetches(cell) == []


def test_a_node_that_is_lost_while_a_plan_is_put_together_is_passed_over() -> None:
    cell = shelved()
    view = cell.state.view
    more = [replace(FROG, name=f"m{n}", weights=spec(f"m{n}").weights) for n in range(2)]
    for model in more:
        cell.do(on.ModelListed(model))
        cell.do(on.SnapshotListed(pointer(model)))
        view.models[model.name].active = cell.now
        wakes(cell, model.name, 86400.0)
    steps = planning.items(view, cell.state.demand, cell.state.estimates, cell.now)
    assert next(steps) is not None
    cell.do(on.NodeLost("b"))
    assert {i.options[0].group for i in steps if i is not None} == {"a"}


def test_a_model_that_is_expected_soon_and_finds_no_room_is_fetched_at_least() -> None:
    cell = shelved("a")
    for node in ("a",):
        cell.report(node, facts=facts(node, 16 * GIB, disk_bytes=100 * GIB))
    wakes(cell, "frog", 700.0, count=50)
    assert len(fetches(cell)) == 1


def test_a_model_that_could_climb_but_has_no_room_to_rest_is_fetched_at_least() -> None:
    cell = shelved("a")
    other = replica("x1", spec("x", memory_bytes=11 * GIB), "a")
    cell.report("a", other, facts=facts("a", 11 * GIB, disk_bytes=100 * GIB))
    wakes(cell, "frog", 700.0, count=50)
    assert len(fetches(cell)) == 1


def test_models_are_fetched_to_where_the_disk_has_room_for_all_of_them() -> None:
    """The first is wanted little and was offered the larger disk, which the second needs."""
    large = replace(TOAD, weights_bytes=60 * GIB)
    cell = Cell(FROG, large, nodes=("a", "b"))
    for name, model in (("f1", FROG), ("t1", large)):
        cell.do(on.SnapshotListed(pointer(model)))
        served(cell, replica(name, model, "a"))
        wakes(cell, model.name, 86400.0)
    size_bytes = (large.weights_bytes + pointer(large).size_bytes) / 0.9 + GIB // 4
    cell.report("a", facts=facts("a", disk_bytes=int(size_bytes)))
    cell.report("b", facts=facts("b", disk_bytes=10 * GIB))
    cell.wait(600.0)
    choices = planned(cell).choices
    assert {m: choice.option.group for m, choice in choices.items()} == {"frog": "b", "toad": "a"}


def test_what_the_plan_lifted_in_vain_is_not_started_cold_nor_at_once_again() -> None:
    cell = Cell(FROG, nodes=("a", "b"))
    cell.do(on.SnapshotListed(pointer(FROG)))
    start = lifted(cell)
    assert not every(on.StartClimb, cell.fail(start))
    assert not every(on.StartClimb, cell.do(on.Planned({}, {}, {"frog": "a"})))
    cell.wait(RETRY_S + 0.1)
    lifted(cell)


def test_an_idle_second_replica_of_a_busy_model_is_not_kept_for_its_requests() -> None:
    model = replace(FROG, replicas_max=2)
    cell = Cell(model)
    both = (replica("f1", model, "a"), replica("f2", model, "a", ReplicaState.PARKED))
    cell.report("a", *both)
    wakes(cell, "frog", 60.0, count=50)
    for _ in range(12):
        cell.do(on.UsageReported("r", (ReplicaUsage("f1", 1, started=1),)))
        cell.wait(10.0)
    cell.wait(200.0)
    cell.do(on.UsageReported("r", (ReplicaUsage("f1", 1, started=1),)))
    assert planned(cell, 1.0).choices == {}


def test_requests_that_wait_for_a_climb_are_not_wakes() -> None:
    cell = Cell(FROG)
    cell.acquire()
    for _ in range(5):
        cell.wait(4.0)
        cell.acquire()
    assert cell.state.demand.wait_s("frog", 10.0) == 60.0  # nothing is known


def test_what_fails_for_ever_is_tried_ever_more_seldom_until_it_is_changed() -> None:
    cell = Cell(FROG)
    (start,) = every(on.StartClimb, cell.do(on.ModelListed(ONE)))
    times = []
    for _ in range(8):
        pending = [start]
        while pending:
            pending = [again for each in pending for again in every(on.StartClimb, cell.fail(each))]
        before = cell.now
        commands: list[on.Command] = []
        while not commands:
            commands = every(on.StartClimb, cell.wait(1.0))
        times.append(cell.now - before)
        (start,) = every(on.StartClimb, commands)
    assert times == sorted(times)
    assert times[0] == pytest.approx(RETRY_S, abs=1.1)
    assert times[-1] == pytest.approx(300, abs=1.1)
    pending = [start]
    while pending:
        pending = [again for each in pending for again in every(on.StartClimb, cell.fail(each))]
    assert every(on.StartClimb, cell.do(on.ModelListed(replace(ONE, memory_bytes=GIB))))


def test_while_a_request_lifts_another_replica_the_one_on_a_node_that_drains_is_kept() -> None:
    model = spec(slots=1, replicas_max=3, replicas_min=1)
    cell = Cell(model, nodes=())
    cell.report("a", replica("f1", model, "a"))
    cell.report("b", facts=facts("b", 16 * GIB))
    cell.acquire()
    cell.report("a", replica("f1", model, "a"), facts=facts("a", 4 * GIB, draining=True))
    cell.report("b", facts=facts("b"))
    assert not cell.state.view.replicas["f1"].needed
    assert only(on.StartClimb, cell.acquire()).node == "b"
    assert cell.state.view.replicas["f1"].needed


@pytest.mark.parametrize("count", [1, 2])
def test_what_idles_on_a_node_that_drains_is_kept_until_others_serve_in_its_place(
    count: int,
) -> None:
    model = replace(ONE, replicas_min=count)
    cell = Cell(model, nodes=())
    mine = [replica(f"f{n}", model, "a") for n in range(count)]
    cell.report("a", *mine)
    cell.report("b")
    cell.wait(100.0)  # each has idled for longer than it takes to park
    drains = cell.report("a", *mine, facts=facts("a", count * 4 * GIB, draining=True))
    assert not every(on.Descend, drains)
    starts = every(on.StartClimb, drains)
    assert starts
    lowered = []
    for come in range(1, count + 1):
        commands = cell.finish(starts.pop(), f"g{come}")
        starts += every(on.StartClimb, commands)
        lowered += every(on.Descend, commands)
        assert len(lowered) == come


def test_who_does_not_lead_lifts_and_fetches_nothing() -> None:
    cell = Cell(FROG)
    rested(cell)
    cell.do(on.Led(False))
    assert not cell.do(on.Planned({}, {}, {"frog": "a"}, {"frog": "a"}))


def test_an_order_of_a_term_that_is_over_leaves_the_replica_as_unused_as_it_was() -> None:
    cell = Cell(replace(FROG, freeze_after_s=6.0))
    served(cell, replica("f1", FROG, "a"))
    used = cell.state.view.replicas["f1"].used
    only(on.Descend, cell.wait(6.0))
    cell.do(on.DescendFailed("f1", "TERM_OVER", "another leads"))
    assert cell.state.view.replicas["f1"].used == used
    assert not every(on.Descend, cell.wait(0.5))
    assert every(on.Descend, cell.wait(1.0))


def test_fetches_to_a_node_that_is_lost_keep_no_place() -> None:
    models = [replace(spec(f"m{n}"), park_after_s=5.0) for n in range(2)]
    cell = Cell(*models, nodes=("a", "b"))
    for model in models:
        cell.do(on.SnapshotListed(pointer(model)))
    assert only(on.Prefetch, cell.do(on.Planned({}, {}, {}, {"m0": "a"}))).node == "a"
    cell.do(on.NodeSilent("a"))
    cell.do(on.NodeLost("a"))
    assert only(on.Prefetch, cell.do(on.Planned({}, {}, {}, {"m0": "b"}))).node == "b"
