"""What a scheduler leaves to the one that leads, and to one that climbs already."""

from dataclasses import replace

from tests.unit.scheduler.cell import Cell, every, facts, only, replica, spec

from woodfrog.model.node import NodeUpdate, ReplicaState
from woodfrog.model.placement import ReplicaUsage
from woodfrog.model.rung import Rung
from woodfrog.scheduler import events as on
from woodfrog.scheduler.events import Command

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
    assert only(on.Descend, cell.do(on.Led(True))).rung is Rung.FROZEN


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
