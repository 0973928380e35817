"""A node is drained: what goes where, in which order, and what requests find meanwhile."""

from dataclasses import replace

import pytest
from tests.unit.scheduler.cell import (
    GIB,
    OTHER_PRINT,
    Cell,
    every,
    facts,
    gpu,
    only,
    pointer,
    replica,
    resident,
    spec,
)

from woodfrog.model.node import GpuFacts, NodeFacts, NodeUpdate, Replica, ReplicaState, Resident
from woodfrog.model.placement import ReplicaUsage
from woodfrog.model.rung import Rung
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler import events as on
from woodfrog.scheduler.drains import AT_ONCE_MAX
from woodfrog.scheduler.state import SchedulerState

FROG = spec(park_after_s=600.0)


def trees(*models: ModelSpec) -> tuple[Resident, ...]:
    """Weights and snapshots, whole."""
    weights = [resident(each.weights, each.weights_bytes) for each in models]
    return (*weights, *(resident(pointer(each).manifest, 280 << 20) for each in models))


def cell(*models: ModelSpec, nodes: str = "ab", snapshots: bool = True) -> Cell:
    found = Cell(*models, nodes=tuple(nodes))
    for model in models if snapshots else ():
        found.do(on.SnapshotListed(pointer(model)))
    return found


def told(
    cell: Cell, *replicas: Replica, draining: bool = True, gpus: tuple[GpuFacts, ...] = ()
) -> NodeUpdate:
    promised = sum(each.memory_bytes for each in replicas)
    return NodeUpdate(
        True,
        facts("a", promised, draining=draining, gpus=gpus),
        replicas,
        residents=trees(*_models(cell)),
    )


def _models(cell: Cell) -> list[ModelSpec]:
    return [record.spec for record in cell.state.view.models.values()]


def drain(cell: Cell, *replicas: Replica, gpus: tuple[GpuFacts, ...] = ()) -> list[on.Command]:
    """What follows at once of node a's word that it drains, with all models whole on it."""
    commands = cell.do(on.NodeReported("a", told(cell, *replicas, gpus=gpus)))
    return commands + cell.wait(0.0)


def done(cell: Cell, order: on.Prefetch) -> list[on.Command]:
    return cell.do(on.PrefetchFinished(order.attempt)) + cell.wait(0.0)


def broke(cell: Cell, order: on.Prefetch) -> list[on.Command]:
    return cell.do(on.PrefetchFailed(order.attempt, "CACHE_FULL", "no room")) + cell.wait(0.0)


def test_the_bytes_go_first_then_what_idles_is_lowered() -> None:
    c = cell(FROG)
    first = drain(c, replica("f1", FROG, "a"))
    order = only(on.Prefetch, first)
    assert (order.node, order.spec, order.snapshot) == ("b", FROG, pointer(FROG))
    assert not every(on.Descend, first)
    assert not c.wait(30.0), "it waits for the bytes"
    assert c.state.moving("a") == 1
    lowered = only(on.Descend, done(c, order))
    assert lowered == on.Descend("f1", "a", Rung.FROZEN)
    assert c.state.moving("a") == 0
    c.do(on.DescendFinished("f1", Rung.FROZEN))
    assert not c.wait(30.0)
    start = only(on.StartClimb, c.acquire())
    assert (start.node, start.snapshot) == ("b", pointer(FROG))


def test_a_frozen_model_whose_only_copy_lies_there_moves_too() -> None:
    toad = spec("toad", snapshot="never")
    c = cell(FROG, toad)
    c.do(on.SnapshotRemoved(pointer(toad)))
    order = only(on.Prefetch, drain(c))
    assert order.spec == FROG  # of the toad there is nothing but weights
    assert c.state.moving("a") == 1
    assert not done(c, order)
    assert c.state.moving("a") == 0


def test_what_another_node_has_is_lowered_at_once() -> None:
    c = cell(FROG)
    c.report("b", residents=trees(FROG))
    commands = drain(c, replica("f1", FROG, "a"))
    assert not every(on.Prefetch, commands)
    assert only(on.Descend, commands).rung is Rung.FROZEN


@pytest.mark.parametrize(
    "elsewhere",
    [
        facts("b", draining=True),
        facts("b", memory_bytes=GIB),
    ],
)
def test_a_copy_on_a_node_that_could_not_use_it_does_not_count(elsewhere: NodeFacts) -> None:
    c = cell(FROG, nodes="abc")
    c.report("b", facts=elsewhere, residents=trees(FROG))
    orders = every(on.Prefetch, drain(c, replica("f1", FROG, "a")))
    assert {order.node for order in orders} == {"c"}


def test_a_copy_on_a_silent_node_does_not_count() -> None:
    c = cell(FROG, nodes="abc")
    c.report("b", residents=trees(FROG))
    c.do(on.NodeSilent("b"))
    assert only(on.Prefetch, drain(c, replica("f1", FROG, "a"))).node == "c"


def test_weights_without_their_snapshot_are_no_copy_where_there_is_one() -> None:
    c = cell(FROG, nodes="abc")
    c.report("b", residents=trees(FROG)[:1])
    assert only(on.Prefetch, drain(c, replica("f1", FROG, "a"))).node == "b", "it has the weights"


def test_weights_are_all_of_a_model_without_a_snapshot() -> None:
    c = cell(FROG, nodes="abc", snapshots=False)
    c.report("b", residents=trees(FROG)[:1])
    commands = drain(c, replica("f1", FROG, "a"))
    assert not every(on.Prefetch, commands)
    assert only(on.Descend, commands).replica_id == "f1"


def test_a_snapshot_goes_to_a_node_of_its_kind() -> None:
    c = cell(FROG, nodes="abc")
    c.report("b", facts=facts("b", fingerprint=OTHER_PRINT))
    assert only(on.Prefetch, drain(c)).node == "c"


def test_a_node_of_another_kind_gets_the_weights_if_there_is_no_better() -> None:
    c = cell(FROG)
    c.report("b", facts=facts("b", fingerprint=OTHER_PRINT))
    order = only(on.Prefetch, drain(c, replica("f1", FROG, "a")))
    assert (order.node, order.snapshot) == ("b", None)
    assert only(on.Descend, done(c, order)).replica_id == "f1"


def test_a_snapshot_that_is_made_meanwhile_follows_the_weights() -> None:
    c = cell(FROG, snapshots=False)
    c.report("a", replica("f1", FROG, "a"))
    c.acquire()
    order = only(on.Prefetch, drain(c, replica("f1", FROG, "a")))
    assert order.snapshot is None
    done(c, order)
    c.do(on.SnapshotListed(pointer(FROG)))
    after = only(on.Prefetch, c.wait(1.0))
    assert (after.node, after.snapshot) == ("b", pointer(FROG))
    assert not every(on.Prefetch, done(c, after))


def test_a_model_for_a_gpu_goes_to_a_gpu_with_room() -> None:
    frog = replace(FROG, gpu_bytes=8 * GIB)
    c = cell(frog, nodes="abcd")
    c.report("b")
    c.report("c", facts=facts("c", gpus=(gpu(memory=4 * GIB),)))
    c.report("d", facts=facts("d", gpus=(gpu(),)))
    assert only(on.Prefetch, drain(c, gpus=(gpu(),))).node == "d"


def test_a_node_without_room_is_the_second_choice() -> None:
    c = cell(FROG, spec("toad"), nodes="abc")
    c.do(on.SnapshotRemoved(pointer(spec("toad"))))
    c.report("b", replica("t1", spec("toad", memory_bytes=16 * GIB), "b"))
    order = only(on.Prefetch, drain(c))
    assert order.node == "c"
    assert only(on.Prefetch, broke(c, order)).node == "b"


def test_models_are_spread_and_two_at_once_go_to_a_node() -> None:
    models = [spec(f"m{n}") for n in range(7)]
    c = cell(*models, nodes="abc")
    orders = every(on.Prefetch, drain(c))
    assert sorted(order.node for order in orders) == ["b", "b", "c", "c"]
    assert c.state.moving("a") == 7
    assert not c.wait(5.0)
    (more,) = every(on.Prefetch, done(c, orders[0]))
    assert more.node == orders[0].node
    assert more.spec not in [order.spec for order in orders]
    assert c.state.moving("a") == 6


def test_equals_get_one_each() -> None:
    c = cell(spec("m0"), spec("m1"), nodes="abc")
    assert sorted(order.node for order in every(on.Prefetch, drain(c))) == ["b", "c"]


def test_so_many_are_under_way_in_all() -> None:
    models = [spec(f"m{n}") for n in range(AT_ONCE_MAX + 4)]
    c = cell(*models, nodes="abcdefghijklmnopqrstuvwxyz")
    orders = every(on.Prefetch, drain(c))
    assert len(orders) == AT_ONCE_MAX
    assert len(every(on.Prefetch, done(c, orders[0]))) == 1
    assert c.state.moving("a") == len(models) - 1


def test_after_two_failures_it_is_lowered_all_the_same() -> None:
    c = cell(FROG, nodes="abcd")
    order = only(on.Prefetch, drain(c, replica("f1", FROG, "a")))
    again = broke(c, order)
    assert not every(on.Descend, again)
    second = only(on.Prefetch, again)
    assert second.node != order.node
    last = broke(c, second)
    assert not every(on.Prefetch, last)
    assert only(on.Descend, last).replica_id == "f1"


def test_a_target_that_is_lost_is_a_failure_whose_answer_comes_too_late() -> None:
    c = cell(FROG, nodes="abc")
    order = only(on.Prefetch, drain(c))
    again = c.do(on.NodeLost(order.node)) + c.wait(0.0)
    second = only(on.Prefetch, again)
    assert second.node != order.node
    assert not broke(c, order)
    assert not done(c, second)
    assert c.state.moving("a") == 0


def test_a_target_that_drains_too_hands_it_on() -> None:
    c = cell(FROG, nodes="abc")
    order = only(on.Prefetch, drain(c))
    c.do(on.PrefetchFinished(order.attempt))
    target = order.node
    more = c.report(target, facts=facts(target, draining=True), residents=trees(FROG))
    handed_on = only(on.Prefetch, more + c.wait(0.0))
    assert handed_on.node not in ("a", target)


def test_where_no_other_node_is_it_is_lowered_when_it_idles() -> None:
    c = cell(FROG, nodes="a")
    c.report("a", replica("f1", FROG, "a"))
    c.acquire()
    commands = drain(c, replica("f1", FROG, "a"))
    assert not every(on.Prefetch, commands)
    assert not every(on.Descend, commands)
    assert only(on.Grant, c.acquire()).acquired.replica.replica_id == "f1", "there is no other"
    c.do(on.RouterLost("r"))
    assert only(on.Descend, c.wait(2.0)).rung is Rung.FROZEN
    c.do(on.DescendFinished("f1", Rung.FROZEN))
    refused = only(on.Refuse, c.acquire())
    assert "1 node is draining" in refused.message


def test_a_busy_replica_ends_its_requests_and_new_ones_climb_elsewhere() -> None:
    c = cell(FROG)
    c.report("a", replica("f1", FROG, "a"))
    only(on.Grant, c.acquire())
    c.do(on.UsageReported("r", (ReplicaUsage("f1", 1, 1),)))
    order = only(on.Prefetch, drain(c, replica("f1", FROG, "a")))
    assert only(on.Grant, c.acquire()).acquired.replica.replica_id == "f1", (
        "the bytes are not there"
    )
    c.do(on.UsageReported("r", (ReplicaUsage("f1", 2, 1),)))
    commands = done(c, order)
    told = only(on.Announce, commands)
    assert (told.gone, told.ended) == (("f1",), ())  # what it runs may end
    assert not every(on.Descend, commands)
    start = only(on.StartClimb, c.acquire())  # though the model may have one replica only
    assert start.node == "b"
    only(on.Grant, c.finish(start, "f2"))
    c.do(on.UsageReported("r", (ReplicaUsage("f1", 0),)))
    assert only(on.Descend, c.wait(2.0)).replica_id == "f1"


def test_what_rests_there_is_not_thawed_but_climbs_elsewhere() -> None:
    c = cell(FROG)
    drain(c, replica("f1", FROG, "a", ReplicaState.PARKED))
    start = only(on.StartClimb, c.acquire())
    assert (start.node, start.replica_id) == ("b", None)
    only(on.Grant, c.finish(start, "f2"))
    assert only(on.Descend, c.wait(2.0)).replica_id == "f1"


def test_what_is_kept_hot_leaves_too() -> None:
    frog = replace(FROG, keep_hot_s=500.0)
    c = cell(frog)
    order = only(on.Prefetch, drain(c, replica("f1", frog, "a")))
    assert only(on.Descend, done(c, order)).replica_id == "f1"


def test_a_replica_that_was_not_lowered_is_asked_again() -> None:
    c = cell(FROG)
    order = only(on.Prefetch, drain(c, replica("f1", FROG, "a")))
    only(on.Descend, done(c, order))
    c.do(on.DescendFailed("f1", "REPLICA_BUSY", "it answers"))
    assert only(on.Descend, c.wait(3.0)).replica_id == "f1"


def test_undraining_ends_it_and_all_is_as_before() -> None:
    c = cell(FROG)
    c.report("a", replica("f1", FROG, "a"))
    only(on.Grant, c.acquire())
    order = only(on.Prefetch, drain(c, replica("f1", FROG, "a")))
    assert only(on.Announce, done(c, order)).gone == ("f1",)
    back = c.do(on.NodeReported("a", told(c, replica("f1", FROG, "a"), draining=False)))
    assert [each.replica_id for each in only(on.Announce, back).ready] == ["f1"]
    c.do(on.RouterLost("r"))
    assert not every(on.Descend, c.wait(30.0))
    assert not every(on.Prefetch, c.wait(30.0))
    c.do(on.NodeReported("a", told(c, replica("f1", FROG, "a"))))
    assert only(on.Prefetch, c.wait(0.0)).spec == FROG, "a new drain knows nothing of the old one"


def test_undraining_in_the_middle_orders_nothing_more() -> None:
    models = [spec(f"m{n}") for n in range(4)]
    c = cell(*models)
    first, second = every(on.Prefetch, drain(c))
    c.do(on.NodeReported("a", told(c, draining=False)))
    assert not done(c, first)
    assert not broke(c, second)
    assert c.state.moving("a") == 0


def test_a_drain_goes_on_when_its_node_was_away() -> None:
    c = cell(FROG)
    order = only(on.Prefetch, drain(c, replica("f1", FROG, "a")))
    c.do(on.NodeSilent("a"))
    assert not done(c, order)
    assert not every(on.Descend, c.wait(2.0)), "it would not hear of it"
    c.do(on.NodeReported("a", told(c, replica("f1", FROG, "a"))))
    assert only(on.Descend, c.wait(2.0)).replica_id == "f1"
    c.do(on.NodeLost("a"))
    assert not c.wait(30.0)


@pytest.mark.parametrize("why", ["silent", "starting"])
def test_where_the_other_node_is_only_not_heard_it_is_waited_for(why: str) -> None:
    found = cell(FROG)
    if why == "silent":
        found.do(on.NodeSilent("b"))
        commands = drain(found, replica("f1", FROG, "a", ReplicaState.PARKED))
    else:
        fresh = Cell.__new__(Cell)
        fresh.state, fresh.now, fresh.tickets = SchedulerState("e"), 100.0, 0
        fresh.do(on.CatalogListed((FROG,), (pointer(FROG),), ("a", "b")))
        found = fresh
        commands = drain(found, replica("f1", FROG, "a", ReplicaState.PARKED))
    assert not every(on.Descend, [*commands, *found.wait(0.5)])
