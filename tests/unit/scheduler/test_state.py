"""The scheduler's decisions, one story a test."""

from dataclasses import replace

import pytest
from tests.unit.scheduler.cell import (
    GIB,
    Cell,
    every,
    facts,
    only,
    pointer,
    replica,
    resident,
    spec,
)

from woodfrog.model import digest
from woodfrog.model.node import Climbed, NodeUpdate, ReplicaState
from woodfrog.model.placement import ReplicaUsage
from woodfrog.model.rung import Rung
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler import events as on
from woodfrog.scheduler.board import Limits
from woodfrog.scheduler.events import Refusal
from woodfrog.scheduler.state import SchedulerState

FROG = spec()
TOAD = spec("toad")


# --- acquire ---


def test_a_serving_replica_with_a_slot_is_granted_at_once() -> None:
    cell = Cell(FROG)
    cell.report("a", replica("f1", FROG, "a"))
    grant = only(on.Grant, cell.acquire())
    assert grant.acquired.replica.replica_id == "f1"
    assert (grant.acquired.rung, grant.acquired.climb_ms, grant.climb) == (Rung.SERVING, 0, None)


def test_twenty_requests_to_a_sleeping_model_cause_one_climb() -> None:
    cell = Cell(spec(slots=16))
    starts = [start for _ in range(20) for start in every(on.StartClimb, cell.acquire())]
    cell.now += 0.5
    commands = cell.finish(only(on.StartClimb, list(starts)))
    grants = every(on.Grant, commands)
    assert [grant.ticket for grant in grants] == list(range(1, 17))
    assert {grant.acquired.climb_ms for grant in grants} == {500.0}
    assert {grant.acquired.rung for grant in grants} == {Rung.FROZEN}
    for grant in grants[:4]:
        later = cell.do(on.Released(grant.acquired.placement_id))
        assert only(on.Grant, later).acquired.rung is Rung.SERVING


def test_a_second_replica_climbs_when_the_first_has_no_room_left() -> None:
    cell = Cell(spec(slots=2, replicas_max=2), nodes=("a", "b"))
    first, none, second, full, waits = (
        every(on.StartClimb, cell.acquire()),
        every(on.StartClimb, cell.acquire()),
        every(on.StartClimb, cell.acquire()),
        every(on.StartClimb, cell.acquire()),
        every(on.StartClimb, cell.acquire()),
    )
    assert (len(first), none, len(second), full, waits) == (1, [], 1, [], [])
    assert {first[0].node, second[0].node} == {"a", "b"}


def test_a_parked_replica_is_thawed_rather_than_a_new_one_started() -> None:
    cell = Cell(replace(FROG, replicas_max=4), nodes=("a", "b"))
    cell.report("b", replica("f1", FROG, "b", ReplicaState.PARKED))
    start = only(on.StartClimb, cell.acquire())
    assert (start.node, start.replica_id, start.rung) == ("b", "f1", Rung.PARKED)
    assert cell.acquire() == []  # joins it, though a new one could start
    grants = every(on.Grant, cell.finish(start, "f1", Rung.PARKED))
    assert len(grants) == 2


def test_of_several_serving_replicas_the_least_used_is_granted() -> None:
    model = replace(FROG, replicas_max=2)
    cell = Cell(model)
    cell.report("a", replica("f1", model, "a"), replica("f2", model, "a"))
    granted = [only(on.Grant, cell.acquire()).acquired.replica.replica_id for _ in range(4)]
    assert granted == ["f1", "f2", "f1", "f2"]
    assert cell.acquire() == []


def test_an_unknown_model_is_not_found() -> None:
    refuse = only(on.Refuse, Cell(FROG).acquire("newt"))
    assert (refuse.refusal, refuse.reason) == (Refusal.NOT_FOUND, "MODEL_NOT_FOUND")


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (replace(FROG, memory_bytes=17 * GIB), "2 nodes are too small"),
        (replace(FROG, gpu_bytes=GIB), "2 nodes are without a GPU"),
    ],
)
def test_what_no_node_could_take_is_refused_for_good(model: ModelSpec, why: str) -> None:
    cell = Cell(model, nodes=("a", "b"))
    refuse = only(on.Refuse, cell.acquire())
    assert (refuse.refusal, refuse.reason) == (Refusal.FAILED_PRECONDITION, "NO_NODE_FITS")
    assert why in refuse.message
    assert refuse.retry_after_s is None
    cell.do(on.NodeListed("c"))
    assert cell.acquire() == []  # that one may be larger


def test_a_node_that_drains_gives_hope_only_to_what_it_could_take() -> None:
    huge = replace(FROG, name="huge", memory_bytes=17 * GIB)
    cell = Cell(FROG, huge, nodes=("a",))
    cell.report("a", facts=facts("a", draining=True))
    cell.report("b", facts=facts("b", memory_bytes=GIB))
    assert only(on.Refuse, cell.acquire("huge")).reason == "NO_NODE_FITS"
    refuse = only(on.Refuse, cell.acquire())
    assert refuse.reason == "NO_CAPACITY"
    assert "1 node is draining, 1 node is too small" in refuse.message
    assert "undrain" in refuse.message


def test_the_queue_is_bounded() -> None:
    cell = Cell(replace(FROG, slots=1), limits=Limits(waiting_max=2))
    cell.acquire()
    assert [cell.acquire(), cell.acquire()] == [[], []]
    refuse = only(on.Refuse, cell.acquire())
    assert (refuse.refusal, refuse.reason) == (Refusal.RESOURCE_EXHAUSTED, "NO_CAPACITY")
    assert refuse.retry_after_s


def test_a_deadline_ends_the_wait_and_not_the_climb() -> None:
    cell = Cell(FROG)
    start = only(on.StartClimb, cell.acquire())
    refuse = only(on.Refuse, cell.wait(60.0))
    assert (refuse.refusal, refuse.reason) == (Refusal.DEADLINE_EXCEEDED, "ACQUIRE_DEADLINE")
    assert only(on.Announce, cell.finish(start)).ready[0].replica_id == "f1"
    assert only(on.Grant, cell.acquire()).acquired.rung is Rung.SERVING


def test_a_cancelled_acquire_leaves_its_climb_for_the_next() -> None:
    cell = Cell(FROG)
    start = only(on.StartClimb, cell.acquire())
    assert cell.do(on.AcquireCancelled(1)) == []
    assert cell.acquire() == []
    assert only(on.Grant, cell.finish(start)).ticket == 2


def test_nobody_is_granted_when_all_have_given_up() -> None:
    cell = Cell(FROG)
    start = only(on.StartClimb, cell.acquire())
    cell.do(on.AcquireCancelled(1))
    assert every(on.Grant, cell.finish(start)) == []
    assert cell.state.active("f1") == 0


def test_who_excludes_a_replica_does_not_hold_up_the_next() -> None:
    model = replace(FROG, slots=1)
    cell = Cell(model)
    cell.report("a", replica("f1", model, "a"), replica("f2", model, "a"))
    assert only(on.Grant, cell.acquire("frog", "f1")).acquired.replica.replica_id == "f2"
    assert [cell.acquire("frog", "f1"), cell.acquire()] == [[], []]
    commands = cell.report("a", replica("f1", model, "a"), full=False)
    assert only(on.Grant, commands).ticket == 3


def test_a_parked_replica_is_not_left_for_a_cold_start_under_way() -> None:
    model = replace(FROG, replicas_max=2)
    cell = Cell(model)
    assert only(on.StartClimb, cell.acquire()).rung is Rung.ABSENT
    cell.report("a", replica("f0", model, "a", ReplicaState.PARKED), full=False)
    assert only(on.StartClimb, cell.acquire()).replica_id == "f0"


def test_who_excludes_a_replica_does_not_wait_for_its_thaw() -> None:
    model = replace(FROG, replicas_max=2)
    cell = Cell(model)
    cell.report("a", replica("f1", model, "a", ReplicaState.PARKED))
    cell.acquire()
    assert only(on.StartClimb, cell.acquire("frog", "f1")).replica_id is None


# --- climbs that go wrong ---


def test_a_refusal_leads_to_the_second_choice() -> None:
    cell = Cell(FROG, nodes=("a", "b"))
    start = only(on.StartClimb, cell.acquire())
    assert start.node == "a"
    again = only(
        on.StartClimb,
        cell.do(on.ClimbRefused(start.attempt, facts("a", 16 * GIB), "the node is full")),
    )
    assert (again.node, again.climb) == ("b", start.climb)
    assert again.attempt != start.attempt


def test_a_node_that_refuses_with_room_is_left_alone_until_its_facts_change() -> None:
    cell = Cell(FROG)
    start = only(on.StartClimb, cell.acquire())
    refused = cell.do(on.ClimbRefused(start.attempt, facts("a"), "no"))
    assert only(on.Refuse, refused).reason == "NO_CAPACITY"
    assert only(on.Refuse, cell.acquire()).retry_after_s
    cell.report("a", full=False, facts=facts("a", GIB))
    assert every(on.StartClimb, cell.acquire())


def test_a_refusing_node_is_asked_again_after_a_while() -> None:
    cell = Cell(FROG)
    start = only(on.StartClimb, cell.acquire())
    cell.do(on.ClimbRefused(start.attempt, facts("a"), "no"))
    cell.wait(2.0)
    assert every(on.StartClimb, cell.acquire())


def test_after_a_failure_the_next_best_node_then_a_cold_start_then_no() -> None:
    cell = Cell(FROG, nodes=("a", "b", "c"))
    cell.do(on.SnapshotListed(pointer(FROG)))
    first = only(on.StartClimb, cell.acquire())
    second = only(on.StartClimb, cell.fail(first))
    third = only(on.StartClimb, cell.fail(second))
    assert [first.node, second.node, third.node] == ["a", "b", "a"]
    assert [bool(each.snapshot) for each in (first, second, third)] == [True, True, False]
    assert third.rung is Rung.ABSENT
    refuse = only(on.Refuse, cell.fail(third))
    assert (refuse.refusal, refuse.reason) == (Refusal.UNAVAILABLE, "CLIMB_FAILED")
    assert "it broke" in refuse.message


def test_on_the_only_node_a_failed_restore_becomes_a_cold_start() -> None:
    cell = Cell(FROG)
    cell.do(on.SnapshotListed(pointer(FROG)))
    first = only(on.StartClimb, cell.acquire())
    second = only(on.StartClimb, cell.fail(first))
    assert (second.node, second.snapshot) == ("a", None)
    assert every(on.Refuse, cell.fail(second))


def test_two_nodes_that_cannot_start_it_cold_are_enough() -> None:
    cell = Cell(FROG, nodes=("a", "b", "c"))
    second = only(on.StartClimb, cell.fail(only(on.StartClimb, cell.acquire())))
    assert every(on.Refuse, cell.fail(second))


def test_a_failed_climb_that_nobody_waits_for_is_not_tried_again() -> None:
    cell = Cell(FROG, nodes=("a", "b"))
    start = only(on.StartClimb, cell.acquire())
    cell.do(on.AcquireCancelled(1))
    assert cell.fail(start) == []


def test_a_failed_thaw_becomes_a_restore() -> None:
    cell = Cell(FROG)
    cell.do(on.SnapshotListed(pointer(FROG)))
    cell.report("a", replica("f1", FROG, "a", ReplicaState.PARKED))
    thaw = only(on.StartClimb, cell.acquire())
    again = only(on.StartClimb, cell.fail(thaw, "REPLICA_GONE"))
    assert again.replica_id is None
    assert again.snapshot is not None
    assert "f1" not in cell.state.view.replicas


def test_a_climb_that_its_node_called_finished_counts_though_the_answer_was_lost() -> None:
    cell = Cell(FROG)
    start = only(on.StartClimb, cell.acquire())
    cell.report("a", replica("f1", FROG, "a"), full=False)
    assert only(on.Grant, cell.fail(start)).acquired.replica.replica_id == "f1"


def test_a_replica_is_offered_to_nobody_else_before_its_climb_ends() -> None:
    cell = Cell(replace(FROG, slots=1))
    start = only(on.StartClimb, cell.acquire())
    assert cell.report("a", replica("f1", FROG, "a"), full=False) == []
    assert cell.acquire() == []
    assert [grant.ticket for grant in every(on.Grant, cell.finish(start))] == [1]


def test_two_climbs_on_one_node_may_be_named_in_any_order() -> None:
    model = replace(FROG, slots=1, replicas_max=2)
    for names in (["f1", "f2"], ["f2"], ["f1"], []):
        cell = Cell(model)
        first, second = only(on.StartClimb, cell.acquire()), only(on.StartClimb, cell.acquire())
        climbing = [replica(name, model, "a", ReplicaState.CLIMBING) for name in names]
        cell.report("a", *climbing, full=False)
        assert only(on.Grant, cell.finish(second, "f1")).ticket == 2
        reserved_bytes = 0 if "f2" in names else model.memory_bytes
        assert cell.state.view.nodes["a"].reserved_bytes == reserved_bytes
        assert only(on.Grant, cell.finish(first, "f2")).ticket == 1


def test_what_a_climb_took_counts_before_the_node_says_so() -> None:
    cell = Cell(FROG, spec("big", memory_bytes=13 * GIB), limits=Limits(room_s=0))
    start = only(on.StartClimb, cell.acquire())
    cell.finish(start)
    assert only(on.Refuse, cell.acquire("big")).reason == "NO_CAPACITY"


def test_a_request_waits_for_the_room_of_a_replica_that_is_being_frozen() -> None:
    sleepy = spec("sleepy", memory_bytes=13 * GIB, park_after_s=5.0, freeze_after_s=5.0)
    cell = Cell(sleepy, spec("big", memory_bytes=13 * GIB))
    cell.finish(only(on.StartClimb, cell.acquire("sleepy")))
    cell.do(on.UsageReported("r", (ReplicaUsage("f1", 0, started=1),)))
    assert only(on.Descend, cell.wait(6.0)).rung is Rung.FROZEN
    assert cell.acquire("big") == []
    assert only(on.StartClimb, cell.do(on.DescendFinished("f1", Rung.FROZEN))).spec.name == "big"


def test_a_request_does_not_wait_for_a_replica_that_stays() -> None:
    sleepy = spec("sleepy", memory_bytes=13 * GIB, park_after_s=5.0, freeze_after_s=5.0)
    cell = Cell(sleepy, spec("big", memory_bytes=13 * GIB), limits=Limits(room_s=0))
    cell.finish(only(on.StartClimb, cell.acquire("sleepy")))
    cell.do(on.UsageReported("r", (ReplicaUsage("f1", 0, started=1),)))
    cell.wait(6.0)
    assert cell.acquire("big") == []
    stays = cell.do(on.DescendFailed("f1", "REPLICA_BUSY", "it serves on"))
    assert only(on.Refuse, stays).reason == "NO_CAPACITY"


def test_requests_that_ended_before_the_report_keep_a_replica_up() -> None:
    model = replace(FROG, park_after_s=5.0)
    cell = Cell(model)
    cell.report("a", replica("f1", model, "a"))
    for _ in range(10):
        assert every(on.Descend, cell.wait(3.0)) == []
        cell.do(on.UsageReported("r", (ReplicaUsage("f1", 0, started=1),)))
    assert every(on.Descend, cell.wait(6.0))


# --- nodes that go and come ---


def test_a_lost_node_loses_its_replicas_and_its_climbs_go_elsewhere() -> None:
    cell = Cell(FROG, TOAD, nodes=("a", "b"))
    cell.report("a", replica("t1", TOAD, "a"))
    start = only(on.StartClimb, cell.acquire())
    assert start.node == "b"
    cell.do(on.NodeSilent("b"))
    commands = cell.do(on.NodeLost("b"))
    assert only(on.CancelClimb, commands).attempt == start.attempt
    assert only(on.StartClimb, commands).node == "a"
    told = only(on.Announce, cell.do(on.NodeLost("a")))
    assert (told.gone, told.ended) == (("t1",), ("t1",))


def test_a_silent_node_gets_nothing_new_and_keeps_what_it_serves() -> None:
    cell = Cell(FROG, TOAD, nodes=("a", "b"))
    cell.report("a", replica("t1", TOAD, "a"))
    cell.do(on.NodeSilent("b"))
    assert only(on.StartClimb, cell.acquire()).node == "a"
    cell.do(on.NodeSilent("a"))
    assert only(on.Grant, cell.acquire("toad")).acquired.replica.node == "a"


def test_requests_wait_for_the_only_node_to_come_back() -> None:
    cell = Cell(FROG)
    start = only(on.StartClimb, cell.acquire())
    cell.do(on.NodeSilent("a"))
    assert every(on.Refuse, cell.fail(start, "RPC_UNAVAILABLE")) == []
    cell.do(on.NodeLost("a"))
    cell.wait(1.0)
    assert only(on.StartClimb, cell.report("a")).node == "a"


def test_requests_do_not_wait_for_ever_for_a_lost_node() -> None:
    cell = Cell(FROG)
    cell.do(on.NodeSilent("a"))
    cell.do(on.NodeLost("a"))
    assert cell.acquire() == []
    assert cell.wait(9.0) == []
    refuse = only(on.Refuse, cell.wait(1.0))
    assert "no node is connected" in refuse.message


def test_a_resync_drops_what_it_does_not_name() -> None:
    cell = Cell(FROG)
    cell.report("a", replica("f1", FROG, "a"), replica("f2", FROG, "a"))
    told = only(on.Announce, cell.report("a", replica("f2", FROG, "a")))
    assert (told.gone, told.ended) == (("f1",), ("f1",))


def test_a_delta_from_before_the_node_was_lost_is_passed_over() -> None:
    cell = Cell(FROG)
    cell.do(on.NodeLost("a"))
    assert cell.report("a", replica("f1", FROG, "a"), full=False) == []
    assert "a" not in cell.state.view.nodes


# --- start ---


def test_requests_wait_for_the_catalog_and_for_the_nodes_it_names() -> None:
    state = SchedulerState("e")
    assert state.handle(on.AcquireRequested(1, "frog", 60.0), 0.0) == []
    assert state.handle(on.CatalogListed((FROG,), (), ("a", "b")), 0.5) == []
    assert state.handle(on.NodeReported("a", NodeUpdate(True, facts("a"))), 1.0) == []
    serving = NodeUpdate(True, facts("b"), (replica("f1", FROG, "b"),))
    commands = state.handle(on.NodeReported("b", serving), 1.5)
    assert only(on.Grant, commands).acquired.replica.node == "b"


def test_a_dead_node_holds_up_the_start_for_its_patience_only() -> None:
    state = SchedulerState("e")
    state.handle(on.CatalogListed((FROG,), (), ("a", "dead")), 0.0)
    state.handle(on.NodeReported("a", NodeUpdate(True, facts("a"))), 0.1)
    assert state.handle(on.AcquireRequested(1, "frog", 60.0), 0.2) == []
    assert state.next_time() == 3.0
    assert only(on.StartClimb, state.handle(on.Ticked(), 3.0)).node == "a"


def test_an_unknown_model_is_refused_once_the_catalog_came() -> None:
    state = SchedulerState("e")
    assert state.handle(on.AcquireRequested(1, "newt", 60.0), 0.0) == []
    assert every(on.Refuse, state.handle(on.CatalogListed(), 0.1))


def test_a_climb_of_a_former_scheduler_is_waited_for() -> None:
    cell = Cell(FROG)
    cell.report("a", replica("f1", FROG, "a", ReplicaState.CLIMBING))
    assert cell.acquire() == []
    commands = cell.report("a", replica("f1", FROG, "a"), full=False)
    assert only(on.Grant, commands).acquired.replica.replica_id == "f1"


# --- descents ---


def test_an_idle_replica_parks_and_then_freezes() -> None:
    model = replace(FROG, park_after_s=5.0, freeze_after_s=20.0)
    cell = Cell(model)
    cell.report("a", replica("f1", model, "a"))
    grant = only(on.Grant, cell.acquire())
    cell.do(on.UsageReported("r", (ReplicaUsage("f1", 1, 1),)))
    assert every(on.Descend, cell.wait(50.0)) == []
    cell.do(on.UsageReported("r", (ReplicaUsage("f1", 0),)))
    cell.do(on.Released(grant.acquired.placement_id))
    assert every(on.Descend, cell.wait(4.9)) == []
    commands = cell.wait(0.2)
    assert only(on.Descend, commands) == on.Descend("f1", "a", Rung.PARKED)
    assert only(on.Announce, commands).gone == ("f1",)
    cell.do(on.DescendFinished("f1", Rung.PARKED))
    assert every(on.Descend, cell.wait(14.0)) == []
    assert only(on.Descend, cell.wait(1.0)) == on.Descend("f1", "a", Rung.FROZEN)
    cell.do(on.DescendFinished("f1", Rung.FROZEN))
    assert not cell.state.view.replicas


def test_a_busy_replica_is_left_alone_and_offered_again() -> None:
    model = replace(FROG, park_after_s=5.0, freeze_after_s=5.0)
    cell = Cell(model)
    cell.report("a", replica("f1", model, "a"))
    assert only(on.Descend, cell.wait(5.0)).rung is Rung.FROZEN
    commands = cell.do(on.DescendFailed("f1", "REPLICA_BUSY", "it answers"))
    assert only(on.Announce, commands).ready[0].replica_id == "f1"
    assert every(on.Descend, cell.wait(4.0)) == []
    assert only(on.Descend, cell.wait(1.1))


def test_a_replica_that_must_go_is_asked_again_after_a_while() -> None:
    cell = Cell(FROG)
    cell.report("a", replica("f1", FROG, "a"))
    cell.do(on.ModelRemoved("frog"))
    assert cell.do(on.DescendFailed("f1", "REPLICA_BUSY", "it answers")) == []
    assert cell.wait(0.9) == []
    assert only(on.Descend, cell.wait(0.1)).replica_id == "f1"


def test_the_idle_clock_starts_when_the_climb_ends() -> None:
    model = replace(FROG, park_after_s=5.0)
    cell = Cell(model)
    start = only(on.StartClimb, cell.acquire())
    cell.report("a", replica("f1", model, "a", ReplicaState.CLIMBING), full=False)
    cell.do(on.AcquireCancelled(1))
    cell.wait(10.0)
    cell.finish(start)
    assert cell.wait(4.9) == []
    assert only(on.Descend, cell.wait(0.1)).rung is Rung.PARKED


def test_a_replica_that_is_lowered_at_once_is_never_announced() -> None:
    model = replace(FROG, park_after_s=0.0)
    cell = Cell(model)
    start = only(on.StartClimb, cell.acquire())
    cell.do(on.AcquireCancelled(1))
    commands = cell.finish(start)
    assert only(on.Descend, commands).rung is Rung.PARKED
    assert all(each.ready == () for each in every(on.Announce, commands))


def test_a_request_while_a_replica_descends_waits_and_thaws_it() -> None:
    model = replace(FROG, park_after_s=5.0)
    cell = Cell(model)
    cell.report("a", replica("f1", model, "a"))
    cell.wait(5.0)
    assert cell.acquire() == []
    assert only(on.StartClimb, cell.do(on.DescendFinished("f1", Rung.PARKED))).replica_id == "f1"


def test_found_replicas_get_a_fresh_clock_after_a_restart() -> None:
    model = replace(FROG, park_after_s=5.0)
    cell = Cell(model)
    cell.report("a", replica("f1", model, "a"))
    assert every(on.Descend, cell.wait(4.9)) == []


def test_a_fast_path_request_keeps_a_replica_awake() -> None:
    model = replace(FROG, park_after_s=5.0)
    cell = Cell(model)
    cell.report("a", replica("f1", model, "a"))
    for _ in range(5):
        cell.wait(4.0)
        cell.do(on.UsageReported("r", (ReplicaUsage("f1", 0, 1),)))
        cell.do(on.UsageReported("r", (ReplicaUsage("f1", 1, 1),)))
        cell.do(on.UsageReported("r", (ReplicaUsage("f1", 0),)))
    assert every(on.Descend, cell.wait(4.9)) == []


def test_a_lost_router_takes_its_requests_along() -> None:
    model = replace(FROG, park_after_s=5.0, slots=4)
    cell = Cell(model)
    cell.report("a", replica("f1", model, "a"))
    cell.acquire(router="r1")
    cell.do(on.UsageReported("r1", (ReplicaUsage("f1", 1, 0),)))
    cell.acquire(router="r2")
    assert cell.state.active("f1") == 3
    cell.do(on.RouterLost("r1"))
    assert cell.state.active("f1") == 1
    cell.do(on.RouterLost("r2"))
    assert only(on.Descend, cell.wait(5.0))


def test_a_grant_that_no_router_ever_reports_ends_by_itself() -> None:
    cell = Cell(FROG)
    cell.report("a", replica("f1", FROG, "a"))
    cell.acquire()
    cell.wait(9.0)
    assert cell.state.active("f1") == 1
    cell.wait(1.0)
    assert cell.state.active("f1") == 0


def test_replicas_of_a_removed_model_are_frozen_and_its_requests_refused() -> None:
    cell = Cell(FROG, TOAD)
    cell.report("a", replica("f1", FROG, "a"))
    start = only(on.StartClimb, cell.acquire("toad"))
    commands = cell.do(on.ModelRemoved("frog"))
    assert only(on.Descend, commands).rung is Rung.FROZEN
    commands = cell.do(on.ModelRemoved("toad"))
    assert only(on.CancelClimb, commands).attempt == start.attempt
    assert only(on.Refuse, commands).reason == "MODEL_NOT_FOUND"


def test_new_weights_replace_the_old_replicas() -> None:
    cell = Cell(FROG)
    cell.report("a", replica("f1", FROG, "a"))
    changed = replace(FROG, weights=digest.of_bytes(b"better"))
    commands = cell.do(on.ModelListed(changed))
    assert only(on.Descend, commands).replica_id == "f1"
    assert only(on.StartClimb, cell.acquire()).spec == changed


def test_who_waits_for_old_weights_gets_the_new_ones() -> None:
    cell = Cell(FROG)
    old = only(on.StartClimb, cell.acquire())
    changed = replace(FROG, weights=digest.of_bytes(b"better"))
    commands = cell.do(on.ModelListed(changed))
    assert only(on.CancelClimb, commands).attempt == old.attempt
    new = only(on.StartClimb, commands)
    assert only(on.Grant, cell.finish(new, "f2")).ticket == 1


# --- replicas that fail their router ---


def test_a_failed_replica_is_replaced_and_ended() -> None:
    cell = Cell(FROG)
    cell.report("a", replica("f1", FROG, "a"))
    placement = only(on.Grant, cell.acquire()).acquired.placement_id
    commands = cell.do(on.Released(placement, replica_failed=True))
    assert only(on.Announce, commands).gone == ("f1",)
    assert only(on.StartClimb, cell.acquire("frog", "f1")).replica_id is None
    assert only(on.Descend, cell.wait(2.0)) == on.Descend("f1", "a", Rung.FROZEN)


def test_a_failed_replica_that_its_node_names_again_is_offered_again() -> None:
    cell = Cell(FROG)
    cell.report("a", replica("f1", FROG, "a"))
    cell.do(on.Released("e-9@f1", replica_failed=True))
    commands = cell.report("a", replica("f1", FROG, "a"), full=False)
    assert only(on.Announce, commands).ready[0].replica_id == "f1"
    assert every(on.Descend, cell.wait(3.0)) == []


def test_a_release_of_what_is_not_known_changes_nothing() -> None:
    cell = Cell(FROG)
    cell.report("a", replica("f1", FROG, "a"))
    placement = only(on.Grant, cell.acquire()).acquired.placement_id
    cell.do(on.Released(placement))
    assert cell.do(on.Released(placement)) == []
    assert cell.do(on.Released("nonsense", replica_failed=True)) == []


# --- rungs ---


def test_the_rung_says_what_the_node_has() -> None:
    cell = Cell(FROG, nodes=("a", "b"))
    assert only(on.StartClimb, cell.acquire()).rung is Rung.ABSENT
    cell = Cell(FROG, nodes=("a", "b"))
    snapshot = pointer(FROG)
    cell.do(on.SnapshotListed(snapshot))
    assert only(on.StartClimb, cell.acquire()).rung is Rung.STORED
    cell = Cell(FROG, nodes=("a", "b"))
    cell.do(on.SnapshotListed(snapshot))
    cell.report("b", residents=(resident(snapshot.manifest, snapshot.size_bytes),))
    start = only(on.StartClimb, cell.acquire())
    assert (start.node, start.rung, start.snapshot) == ("b", Rung.FROZEN, snapshot)
    served = replica("f1", FROG, "b")
    climbed = Climbed(served, Rung.STORED, fallback_reason="pages were gone")
    acquired = only(on.Grant, cell.do(on.ClimbFinished(start.attempt, climbed))).acquired
    assert (acquired.rung, acquired.fallback_reason) == (Rung.STORED, "pages were gone")


def test_a_removed_snapshot_is_not_used() -> None:
    cell = Cell(FROG)
    cell.do(on.SnapshotListed(pointer(FROG)))
    cell.do(on.SnapshotRemoved(pointer(FROG)))
    assert only(on.StartClimb, cell.acquire()).snapshot is None


def test_who_waited_for_a_thaw_is_told_so_though_an_older_word_of_its_node_comes_after_it() -> None:
    parked, served = (
        replica("f1", FROG, "a", state) for state in (ReplicaState.PARKED, ReplicaState.SERVING)
    )
    cell = Cell(FROG)
    cell.report("a", parked)
    start = only(on.StartClimb, cell.acquire())
    cell.report("a", parked, full=False)
    again = only(
        on.StartClimb, cell.do(on.ClimbFinished(start.attempt, Climbed(served, Rung.PARKED)))
    )
    told = cell.do(on.ClimbFinished(again.attempt, Climbed(served, Rung.SERVING)))
    assert only(on.Grant, told).acquired.rung is Rung.PARKED


def test_a_node_that_is_for_others_is_not_left_alone_by_those_that_it_takes() -> None:
    own = replace(FROG, name="own", tenant="acme")
    cell = Cell(FROG, own)
    start = only(on.StartClimb, cell.acquire())
    others = replace(facts("a"), tenants=("acme",))
    refused = cell.do(on.ClimbRefused(start.attempt, others, "it takes only models of: acme"))
    assert only(on.Refuse, refused).reason == "NO_NODE_FITS"
    assert only(on.StartClimb, cell.acquire("own")).node == "a"
