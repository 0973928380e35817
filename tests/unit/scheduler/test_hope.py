"""Room for a request: whom it lowers, whom it waits for, and when it is told to come back."""

from dataclasses import replace

import pytest
from tests.unit.scheduler.cell import GIB, Cell, every, facts, only, replica, spec

from woodfrog.model.node import NodeUpdate, ReplicaState
from woodfrog.model.placement import ReplicaUsage
from woodfrog.model.rung import Rung
from woodfrog.scheduler import events as on
from woodfrog.scheduler.board import Limits
from woodfrog.scheduler.events import Refusal
from woodfrog.scheduler.state import SchedulerState

FROG = spec()
TOAD = spec("toad")


def test_the_longest_idle_replica_makes_room_and_parked_ones_go_first() -> None:
    big = spec("big", memory_bytes=6 * GIB)
    cell = Cell(FROG, TOAD, big, spec("newt"))
    newt = spec("newt")
    cell.report("a", replica("t1", TOAD, "a"))
    cell.wait(1.0)
    cell.report("a", replica("f1", FROG, "a"), full=False, facts=facts("a", 8 * GIB))
    cell.wait(1.0)
    parked = replica("n1", newt, "a", ReplicaState.PARKED)
    cell.report("a", parked, full=False, facts=facts("a", 12 * GIB))
    commands = cell.acquire("big")
    assert only(on.Descend, commands) == on.Descend("n1", "a", Rung.FROZEN)
    assert every(on.StartClimb, commands) == []
    start = only(on.StartClimb, cell.do(on.DescendFinished("n1", Rung.FROZEN)))
    assert start.spec == big
    assert cell.report("a", gone=("n1",), full=False, facts=facts("a", 8 * GIB)) == []


def test_a_busy_victim_leads_to_another_one() -> None:
    small = {"a": facts("a", 8 * GIB, memory_bytes=8 * GIB)}
    cell = Cell(FROG, TOAD, spec("newt"))
    cell.report("a", replica("t1", TOAD, "a"), facts=small["a"])
    cell.wait(1.0)
    cell.report("a", replica("f1", FROG, "a"), full=False, facts=small["a"])
    assert only(on.Descend, cell.acquire("newt")).replica_id == "t1"
    commands = cell.do(on.DescendFailed("t1", "REPLICA_BUSY", "it answers"))
    assert only(on.Descend, commands).replica_id == "f1"
    assert every(on.StartClimb, cell.do(on.DescendFinished("f1", Rung.FROZEN)))


def crowded(*, limits: Limits | None = None, **toad: object) -> Cell:
    """A node whose memory is taken by a replica that serves a request."""
    other = replace(TOAD, **toad)  # type: ignore[arg-type]
    cell = Cell(FROG, other, limits=limits, nodes=())
    cell.report("a", replica("t1", other, "a"), facts=facts("a", 4 * GIB, memory_bytes=4 * GIB))
    cell.acquire("toad")
    cell.do(on.UsageReported("r", (ReplicaUsage("t1", 1, started=1),)))
    return cell


def test_a_request_waits_for_the_room_of_who_will_idle() -> None:
    cell = crowded()
    assert cell.acquire("frog") == []
    assert cell.wait(5.0) == []
    idle = cell.do(on.UsageReported("r", (ReplicaUsage("t1", 0, started=0),)))
    assert only(on.Descend, idle).replica_id == "t1"
    start = only(on.StartClimb, cell.do(on.DescendFinished("t1", Rung.FROZEN)))
    assert only(on.Grant, cell.finish(start)).ticket == 2


def test_it_waits_as_long_as_its_patience_each_from_its_own_coming() -> None:
    cell = crowded()
    assert cell.acquire("frog") == []
    assert cell.wait(4.0) == []
    assert cell.acquire("frog") == []
    assert only(on.Refuse, cell.wait(6.0)).reason == "NO_CAPACITY"
    assert cell.wait(3.5) == []
    assert only(on.Refuse, cell.wait(0.5)).ticket == 3


def test_a_hope_that_changes_its_kind_ends_all_the_same() -> None:
    """It waited for who was to be lowered, and then for who stayed because it is used again."""
    whole = [spec(name, memory_bytes=16 * GIB) for name in ("olm", "eft", "newt")]
    cell = Cell(*whole)
    cell.report("a", replica("o1", whole[0], "a"))
    only(on.Descend, cell.acquire("eft"))
    assert cell.acquire("newt") == []
    cell.do(on.UsageReported("r2", (ReplicaUsage("o1", 1, started=1),)))
    cell.do(on.DescendFailed("o1", "REPLICA_BUSY", "it answers"))
    refused = every(on.Refuse, cell.wait(Limits().room_s))
    assert {(each.ticket, each.reason) for each in refused} == {
        (1, "NO_CAPACITY"),
        (2, "NO_CAPACITY"),
    }


def test_who_rose_only_now_is_waited_for() -> None:
    cell = Cell(FROG, TOAD, nodes=())
    full = facts("a", 4 * GIB, memory_bytes=4 * GIB)
    cell.report("a", replica("t1", TOAD, "a", ReplicaState.CLIMBING), facts=full)
    cell.report("a", replica("t1", TOAD, "a"), facts=full)  # another scheduler lifted it
    assert cell.acquire("frog") == []
    assert only(on.Descend, cell.wait(1.5)).replica_id == "t1"


@pytest.mark.parametrize("why", ["kept up", "too small", "drains"])
def test_what_will_not_come_free_is_not_waited_for(why: str) -> None:
    cell = crowded(replicas_min=1 if why == "kept up" else 0)
    if why == "too small":
        cell.do(on.ModelListed(replace(FROG, memory_bytes=5 * GIB)))
    if why == "drains":
        full = facts("a", 4 * GIB, memory_bytes=4 * GIB, draining=True)
        cell.report("a", replica("t1", TOAD, "a"), facts=full)
    reason = "NO_NODE_FITS" if why == "too small" else "NO_CAPACITY"
    assert only(on.Refuse, cell.acquire("frog")).reason == reason


def test_a_drain_ends_the_hope_of_who_waits() -> None:
    cell = crowded()
    assert cell.acquire("frog") == []
    drains = facts("a", 4 * GIB, memory_bytes=4 * GIB, draining=True)
    assert only(on.Refuse, cell.report("a", replica("t1", TOAD, "a"), facts=drains)).ticket == 2


def test_who_counted_on_the_slots_of_a_climb_that_failed_is_lifted_by_another() -> None:
    cell = Cell(replace(FROG, slots=1, replicas_max=1))
    start = only(on.StartClimb, cell.acquire())
    assert cell.acquire() == []
    cell.report("a", replica("f1", FROG, "a", ReplicaState.CLIMBING))
    again = only(on.StartClimb, cell.fail(start))  # cold
    cell.report("a", replica("f2", FROG, "a", ReplicaState.CLIMBING))
    cell.report("a")  # its stream is faster than its answer
    over = cell.fail(again)
    assert only(on.Refuse, over).ticket == 1
    assert only(on.StartClimb, over).ticket == 2


def test_a_fact_that_gives_nobody_room_is_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = crowded()
    assert cell.acquire("frog") == []
    asked = []
    monkeypatch.setattr("woodfrog.scheduler.climbs.find", lambda *a: asked.append(a))
    cell.state.handle(
        on.NodeReported("a", NodeUpdate(facts=facts("a", 5 * GIB, memory_bytes=4 * GIB))), cell.now
    )
    assert not asked


def test_when_nothing_can_be_freed_the_caller_is_told_when_to_come_back() -> None:
    cell = crowded(limits=Limits(room_s=0))
    refuse = only(on.Refuse, cell.acquire("frog"))
    assert (refuse.refusal, refuse.reason) == (Refusal.RESOURCE_EXHAUSTED, "NO_CAPACITY")
    assert refuse.retry_after_s == 1.0
    assert "1 node is full" in refuse.message


def test_room_that_somebody_else_took_is_looked_for_again() -> None:
    cell = Cell(FROG, TOAD, nodes=("a",))
    full = facts("a", 4 * GIB, memory_bytes=4 * GIB)
    cell.report("a", replica("t1", TOAD, "a"), facts=full)
    cell.acquire("frog")
    other = replica("t2", TOAD, "a", ReplicaState.CLIMBING)
    commands = cell.report("a", other, full=False, facts=full, gone=("t1",))
    assert only(on.Refuse, commands).reason == "NO_CAPACITY"


def test_a_replica_granted_in_the_same_breath_makes_no_room() -> None:
    state = SchedulerState("e")
    full = facts("a", 4 * GIB, memory_bytes=4 * GIB)
    update = NodeUpdate(True, full, (replica("f1", FROG, "a"),))
    state.handle(on.NodeReported("a", update), 0.0)
    state.handle(on.AcquireRequested(1, "frog", 60.0), 0.0)
    state.handle(on.AcquireRequested(2, "toad", 60.0), 0.0)
    commands = state.handle(on.CatalogListed((FROG, TOAD), (), ("a",)), 1.0)
    assert only(on.Grant, commands).ticket == 1
    assert every(on.Descend, commands) == []
