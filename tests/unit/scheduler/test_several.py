"""What a scheduler leaves to the one that leads, and to one that climbs already."""

from dataclasses import replace

from tests.unit.scheduler.cell import Cell, every, facts, only, replica, spec

from woodfrog.model.node import NodeUpdate, ReplicaState
from woodfrog.model.placement import ReplicaUsage
from woodfrog.model.rung import Rung
from woodfrog.scheduler import events as on
from woodfrog.scheduler.board import Limits
from woodfrog.scheduler.events import Command
from woodfrog.scheduler.state import SchedulerState

FREEZE_S = Limits().freeze_s
FROG = spec(park_after_s=10.0, replicas_max=3)
CLIMBS = replica("f1", FROG, "a", ReplicaState.CLIMBING)
SERVES = replica("f1", FROG, "a")
PARKED = replica("f1", FROG, "a", ReplicaState.PARKED)


def lowered(cell: Cell) -> list[Command]:
    """What has happened to an idle replica after ten minutes, and its node took it so."""
    commands = cell.wait(20.0)
    for order in every(on.Descend, commands):
        cell.do(on.DescendFinished(order.replica_id, order.rung))
    return commands + cell.wait(600.0)


def test_who_does_not_lead_parks_by_the_clock_and_leaves_the_rest_to_the_leader() -> None:
    cell = Cell(FROG)
    cell.do(on.Led(False))
    cell.report("a", SERVES)
    assert [order.rung for order in every(on.Descend, lowered(cell))] == [Rung.PARKED]
    assert not every(on.Descend, cell.do(on.Led(True)))  # it has not planned yet
    assert only(on.Descend, cell.wait(FREEZE_S + 1.0)).rung is Rung.FROZEN


def test_a_plan_ends_with_its_term() -> None:
    cell = Cell(FROG)
    cell.report("a", PARKED)
    cell.do(on.Planned({"f1": Rung.PARKED}, {"f1": 1.0}))
    assert not every(on.Descend, cell.wait(600.0))
    cell.do(on.Led(False))
    assert not cell.state.planned
    assert cell.state.view.replicas["f1"].value == float("inf")
    assert not every(on.Descend, cell.wait(600.0))


def test_times_of_a_models_own_go_on_without_a_leader() -> None:
    cell = Cell(replace(FROG, freeze_after_s=60.0))
    cell.do(on.Led(False))
    cell.report("a", SERVES)
    rungs = [order.rung for order in every(on.Descend, lowered(cell))]
    assert rungs == [Rung.PARKED, Rung.FROZEN]


def test_a_replica_that_only_another_granted_is_not_parked() -> None:
    cell = Cell(FROG)
    cell.do(on.Led(False))
    cell.report("a", SERVES)
    cell.do(on.UsageReported("r", (ReplicaUsage("f1", 1, 1),)))
    assert not every(on.Descend, cell.wait(600.0))


def test_a_ticket_waits_for_what_another_scheduler_lifts() -> None:
    cell = Cell(FROG)
    cell.report("a", CLIMBS)
    for _ in range(FROG.slots):
        assert cell.acquire() == []
    start = only(on.StartClimb, cell.acquire())
    assert start.ticket == cell.tickets, "it needs one slot more"
    grants = every(on.Grant, cell.report("a", SERVES))
    assert [grant.ticket for grant in grants] == [1, 2]


def test_a_climb_of_another_that_fails_is_begun_anew() -> None:
    cell = Cell(FROG)
    cell.report("a", CLIMBS)
    assert cell.acquire() == []
    commands = cell.do(on.NodeReported("a", NodeUpdate(False, facts("a"), (), ("f1",))))
    assert only(on.StartClimb, commands).ticket == 1


def test_a_parked_replica_is_thawed_beside_the_climb_of_another() -> None:
    cell = Cell(FROG)
    cell.report("a", CLIMBS, replace(PARKED, replica_id="f2"))
    assert only(on.StartClimb, cell.acquire()).replica_id == "f2"


def test_of_two_that_thaw_one_replica_the_slower_joins() -> None:
    cell = Cell(FROG)
    cell.report("a", PARKED)
    start = only(on.StartClimb, cell.acquire())
    assert start.replica_id == "f1"
    cell.report("a", CLIMBS)
    held = facts("a", FROG.memory_bytes)
    assert cell.do(on.ClimbRefused(start.attempt, held, "it is climbing already")) == []
    assert only(on.Grant, cell.report("a", SERVES)).ticket == 1


def test_what_another_scheduler_lifted_is_not_lowered_in_the_same_moment() -> None:
    cell = Cell(FROG)
    cell.report("a", PARKED)
    cell.wait(100.0)
    assert not every(on.Descend, cell.report("a", SERVES))
    assert not every(on.Descend, cell.wait(9.0))
    fresh = Cell(FROG)
    fresh.report("a", CLIMBS)
    fresh.wait(100.0)  # a cold start takes its time
    assert not every(on.Descend, fresh.report("a", SERVES))


def test_a_follower_keeps_what_must_serve_until_the_leaders_replacement_is_up() -> None:
    model = replace(FROG, replicas_min=1)
    cell = Cell(FROG, nodes=("a", "b"))
    cell.do(on.Led(False))
    cell.report("a", SERVES)
    cell.do(on.ModelListed(model))
    coming = replica("f2", model, "b", ReplicaState.CLIMBING)
    cell.report("b", coming)
    told = facts("a", SERVES.memory_bytes, draining=True)
    cell.report("a", SERVES, facts=told)
    assert not every(on.Descend, cell.wait(30.0))
    assert only(on.Descend, cell.report("b", replica("f2", model, "b"))).replica_id == "f1"


def test_a_follower_counts_a_models_replicas_once_and_lifts_none() -> None:
    cell = Cell(FROG)
    cell.do(on.Led(False))
    cell.do(on.ModelListed(replace(FROG, replicas_min=1)))
    assert not cell.state._board.lacking
    assert only(on.StartClimb, cell.do(on.Led(True))).ticket == 0


def test_a_plan_that_comes_after_its_term_moves_nothing() -> None:
    cell = Cell(FROG)
    cell.report("a", PARKED)
    cell.do(on.Led(False))
    assert not every(on.Descend, cell.do(on.Planned({"f1": Rung.FROZEN})))


def test_nothing_is_lowered_before_routers_could_say_what_runs() -> None:
    model = replace(FROG, park_after_s=0.4)
    state = SchedulerState("e")
    state.handle(on.CatalogListed((model,), (), ("a",)), 100.0)
    served = NodeUpdate(True, facts("a"), (replica("f1", model, "a"),))
    state.handle(on.NodeReported("a", served), 100.1)
    for now in (100.6, 101.5, 102.9):
        assert not every(on.Descend, state.handle(on.Ticked(), now))
    busy = on.UsageReported("r", (ReplicaUsage("f1", 1),))
    assert not every(on.Descend, state.handle(busy, 102.95))
    assert not every(on.Descend, state.handle(on.Ticked(), 110.0))
