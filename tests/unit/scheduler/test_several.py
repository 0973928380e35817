"""What a scheduler leaves to the one that leads, and to one that climbs already."""

from dataclasses import replace

import pytest
from tests.unit.scheduler.cell import GIB, Cell, every, facts, only, replica, spec

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


def test_a_plan_is_done_in_its_order() -> None:
    """So that a story can be told again from its seed."""
    model = spec(replicas_max=8, memory_bytes=GIB)
    cell = Cell(model)
    names = [f"f{n}" for n in range(8)]
    cell.report("a", *(replica(name, model, "a", ReplicaState.PARKED) for name in names))
    commands = cell.do(on.Planned(dict.fromkeys(reversed(names), Rung.FROZEN)))
    assert [order.replica_id for order in every(on.Descend, commands)] == [*reversed(names)]


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


@pytest.mark.parametrize("heard_first", [True, False])
def test_of_two_that_thaw_one_replica_the_slower_joins(heard_first: bool) -> None:
    cell = Cell(FROG)
    cell.report("a", PARKED)
    start = only(on.StartClimb, cell.acquire())
    assert start.replica_id == "f1"
    if heard_first:
        cell.report("a", CLIMBS)
    assert cell.fail(start, "REPLICA_BUSY") == []
    assert cell.state.view.replicas["f1"].replica.state is ReplicaState.CLIMBING
    if not heard_first:
        assert cell.report("a", CLIMBS) == []
    assert only(on.Grant, cell.report("a", SERVES)).ticket == 1


def test_a_refusal_that_comes_late_does_not_undo_what_the_stream_told() -> None:
    cell = Cell(FROG)
    cell.report("a", PARKED)
    start = only(on.StartClimb, cell.acquire())
    for told in (CLIMBS, SERVES, PARKED):
        cell.report("a", told)
    assert only(on.StartClimb, cell.fail(start, "REPLICA_BUSY")).replica_id == "f1"


def test_what_another_parked_is_still_there_though_a_late_answer_says_that_it_went() -> None:
    cell = Cell(FROG)
    cell.report("a", PARKED)
    start = only(on.StartClimb, cell.acquire())
    for state in (ReplicaState.DESCENDING, ReplicaState.PARKED):
        cell.report("a", replace(PARKED, state=state))
    assert only(on.StartClimb, cell.fail(start, "REPLICA_GONE")).replica_id == "f1"


def test_what_another_froze_before_it_was_thawed_has_not_failed() -> None:
    cell = Cell(FROG)
    cell.report("a", PARKED)
    start = only(on.StartClimb, cell.acquire())
    again = only(on.StartClimb, cell.fail(start, "REPLICA_GONE"))
    full = on.ClimbRefused(again.attempt, facts("a", 16 * GIB), "it is full")
    assert only(on.Refuse, cell.do(full)).reason == "NO_CAPACITY"


def test_who_was_sent_to_what_another_parks_gets_it_again() -> None:
    """It is the only replica that the model may have."""
    model = replace(FROG, replicas_max=1)
    cell = Cell(model)
    cell.report("a", replace(SERVES, state=ReplicaState.DESCENDING))
    assert cell.acquire("frog", "f1") == []
    start = only(on.StartClimb, cell.report("a", PARKED))
    assert start.replica_id == "f1"
    other = Cell(model)
    other.report("a", CLIMBS)
    assert other.acquire("frog", "f1") == []
    assert only(on.Grant, other.report("a", SERVES)).ticket == 1


def test_what_another_lifted_makes_no_room_before_its_request_is_there() -> None:
    frog, toad = (spec(name, memory_bytes=16 * GIB) for name in ("frog", "toad"))
    cell = Cell(frog, toad)
    for state in (ReplicaState.PARKED, ReplicaState.CLIMBING, ReplicaState.SERVING):
        cell.report("a", replica("f1", frog, "a", state))
    assert not every(on.Descend, cell.acquire("toad"))
    cell.do(on.UsageReported("r", (ReplicaUsage("f1", 1, 1),)))
    assert not every(on.Descend, cell.wait(2.0))
    idle = cell.do(on.UsageReported("r", (ReplicaUsage("f1", 0),)))
    assert only(on.Descend, idle).replica_id == "f1"


def test_what_another_lifted_is_not_parked_by_a_late_answer() -> None:
    cell = Cell(FROG)
    cell.report("a", SERVES)
    assert only(on.Descend, cell.wait(20.0)).rung is Rung.PARKED
    for told in (replace(SERVES, state=ReplicaState.DESCENDING), PARKED, CLIMBS, SERVES):
        cell.report("a", told)
    cell.do(on.DescendFinished("f1", Rung.PARKED))
    assert cell.state.view.replicas["f1"].replica == SERVES
    assert only(on.Grant, cell.acquire()).acquired.replica.replica_id == "f1"


def test_what_another_parked_does_not_serve_by_a_late_answer() -> None:
    cell = Cell(FROG)
    start = only(on.StartClimb, cell.acquire())
    for told in (CLIMBS, PARKED):
        cell.report("a", told)
    assert only(on.StartClimb, cell.finish(start)).replica_id == "f1"


def test_what_ended_is_not_brought_back_by_a_late_answer() -> None:
    cell = Cell(FROG)
    start = only(on.StartClimb, cell.acquire())
    cell.report("a", CLIMBS)
    cell.report("a")
    assert only(on.StartClimb, cell.finish(start)).climb == start.climb
    assert not cell.state.view.replicas


def test_what_runs_on_a_node_that_was_lost_is_known_when_it_is_back() -> None:
    cell = Cell(FROG)
    cell.report("a", SERVES)
    cell.do(on.UsageReported("r", (ReplicaUsage("f1", 1, 1),)))
    cell.do(on.NodeSilent("a"))
    cell.do(on.NodeLost("a"))
    cell.report("a", SERVES)
    assert cell.state.active("f1") == 1
    assert not every(on.Descend, cell.wait(600.0))
    cell.do(on.UsageReported("r", (ReplicaUsage("f1", 0),)))
    assert every(on.Descend, cell.wait(600.0))


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
