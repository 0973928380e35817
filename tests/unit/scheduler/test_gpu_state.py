"""Climbs to a GPU and descents from it: what is reserved, who makes room, and who waits for it."""

from dataclasses import replace

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

from woodfrog.model.node import Climbed, ReplicaState
from woodfrog.model.placement import ReplicaUsage
from woodfrog.model.rung import Rung
from woodfrog.scheduler import events as on
from woodfrog.scheduler.board import Limits

FROG = spec(gpu_bytes=30 * GIB, weights_bytes=20 * GIB, park_after_s=60.0)
TOAD = spec("toad", gpu_bytes=30 * GIB, weights_bytes=20 * GIB)
SMALL = spec("small", gpu_bytes=10 * GIB, weights_bytes=GIB)
FROG_LIES = gpu(50 * GIB, weights=(FROG.weights,))
TOAD_LIES = gpu(50 * GIB, weights=(TOAD.weights,))


def cell_of(*models: object) -> Cell:
    cell = Cell(*models)  # type: ignore[arg-type]
    cell.report("a", facts=facts("a", gpus=(gpu(),)))
    return cell


def crowded(state: ReplicaState = ReplicaState.SERVING) -> Cell:
    """`f1` is parked off the GPU that `t1` fills."""
    cell = cell_of(FROG, TOAD)
    parked = replica("f1", FROG, "a", ReplicaState.PARKED)
    filling = on_gpu(replica("t1", TOAD, "a", state), 30 * GIB)
    cell.report("a", parked, filling, facts=facts("a", 8 * GIB, gpus=(TOAD_LIES,)))
    return cell


def reserved(cell: Cell) -> dict[str, int]:
    return cell.state.view.nodes["a"].reserved_gpu_bytes


def test_a_climb_reserves_its_gpu_memory_until_its_node_names_it() -> None:
    cell = cell_of(FROG, TOAD, SMALL)
    start = only(on.StartClimb, cell.acquire())
    assert reserved(cell) == {"GPU-0": 50 * GIB}
    assert every(on.StartClimb, cell.acquire("toad")) == []  # 30 GiB are left
    assert only(on.StartClimb, cell.acquire("small")).spec == SMALL
    climbing = on_gpu(replica("f1", FROG, "a", ReplicaState.CLIMBING), 30 * GIB)
    cell.report("a", climbing, full=False, facts=facts("a", 4 * GIB, gpus=(FROG_LIES,)))
    assert reserved(cell) == {"GPU-0": 11 * GIB}
    cell.do(
        on.ClimbFinished(
            start.attempt, Climbed(replace(climbing, state=ReplicaState.SERVING), Rung.ABSENT)
        )
    )
    assert cell.state.view.nodes["a"].free_gpu_bytes("GPU-0") == (80 - 50 - 11) * GIB


def test_an_answer_before_its_stream_is_counted_and_so_is_an_end() -> None:
    cell = cell_of(FROG, TOAD)
    start = only(on.StartClimb, cell.acquire())
    served = on_gpu(replica("f1", FROG, "a"), 30 * GIB)
    granted = only(on.Grant, cell.do(on.ClimbFinished(start.attempt, Climbed(served, Rung.ABSENT))))
    node = cell.state.view.nodes["a"]
    assert node.facts.gpus == (FROG_LIES,)
    assert reserved(cell) == {}
    cell.do(on.Released(granted.acquired.placement_id, False))
    descend = only(on.Descend, cell.acquire("toad"))
    assert (descend.replica_id, descend.rung) == ("f1", Rung.PARKED)
    assert only(on.StartClimb, cell.do(on.DescendFinished("f1", Rung.PARKED))).spec == TOAD
    assert node.facts.gpus[0].weights == ()
    assert reserved(cell) == {"GPU-0": 50 * GIB}


def test_what_idles_on_a_gpu_stays_hot_and_is_thawed_as_such() -> None:
    cell = cell_of(FROG)
    cell.report(
        "a",
        on_gpu(replica("f1", FROG, "a"), 30 * GIB),
        facts=facts("a", 4 * GIB, gpus=(FROG_LIES,)),
    )
    assert only(on.Descend, cell.wait(60.0)).rung is Rung.HOT
    cell.do(on.DescendFinished("f1", Rung.HOT))
    assert cell.state.view.replicas["f1"].replica.state is ReplicaState.HOT
    start = only(on.StartClimb, cell.acquire())
    assert (start.replica_id, start.rung) == ("f1", Rung.HOT)
    assert reserved(cell) == {}


def test_what_parks_leaves_its_gpu() -> None:
    cell = cell_of(FROG)
    serving = on_gpu(replica("f1", FROG, "a"), 30 * GIB)
    cell.report("a", serving, facts=facts("a", 4 * GIB, gpus=(FROG_LIES,)))
    cell.wait(60.0)
    cell.do(on.DescendFinished("f1", Rung.PARKED))  # where its node could not keep the weights
    node = cell.state.view.nodes["a"]
    parked = on_gpu(replica("f1", FROG, "a", ReplicaState.PARKED), 0)
    assert node.replicas["f1"].replica == parked
    assert (node.facts.memory_promised_bytes, node.facts.gpus[0].weights) == (4 * GIB, ())
    assert node.free_gpu_bytes("GPU-0") == 60 * GIB
    start = only(on.StartClimb, cell.acquire())
    assert (start.replica_id, start.rung) == ("f1", Rung.PARKED)
    assert reserved(cell) == {"GPU-0": 50 * GIB}


def test_hot_is_frozen_in_its_time() -> None:
    cell = cell_of(FROG)
    hot = on_gpu(replica("f1", FROG, "a", ReplicaState.HOT), 30 * GIB)
    cell.report("a", hot, facts=facts("a", 4 * GIB, gpus=(FROG_LIES,)))
    assert only(on.Descend, cell.wait(Limits().freeze_s)).rung is Rung.FROZEN


def test_who_fills_the_gpu_is_parked_for_what_parked_off_it() -> None:
    cell = crowded()
    commands = cell.acquire()
    assert only(on.Descend, commands) == on.Descend("t1", "a", Rung.PARKED)
    assert every(on.StartClimb, commands) == []
    assert reserved(cell) == {"GPU-0": 50 * GIB}
    assert every(on.StartClimb, cell.acquire()) == []  # joins it
    start = only(on.StartClimb, cell.do(on.DescendFinished("t1", Rung.PARKED)))
    assert (start.replica_id, start.rung) == ("f1", Rung.PARKED)
    node = cell.state.view.nodes["a"]
    assert (node.reserved_bytes, node.reserved_count) == (0, 0)
    climbing = on_gpu(replica("f1", FROG, "a", ReplicaState.CLIMBING), 30 * GIB)
    cell.report("a", climbing, full=False, facts=facts("a", 8 * GIB, gpus=(FROG_LIES,)))
    assert reserved(cell) == {}
    served = replace(climbing, state=ReplicaState.SERVING)
    done = cell.do(on.ClimbFinished(start.attempt, Climbed(served, Rung.PARKED)))
    assert len(every(on.Grant, done)) == 2


def test_what_parked_off_the_gpu_waits_until_nobody_uses_what_fills_it() -> None:
    cell = crowded()
    cell.do(on.UsageReported("r", (ReplicaUsage("t1", 1, 1),)))
    assert cell.acquire() == []
    commands = cell.do(on.UsageReported("r", (ReplicaUsage("t1", 0),)))
    assert only(on.Descend, commands).replica_id == "t1"


def test_who_is_hot_there_yields_to_it_without_being_asked() -> None:
    cell = crowded(ReplicaState.HOT)
    cell.state.view.put_residents("a", [resident(TOAD.weights, 20 * GIB)])
    start = only(on.StartClimb, cell.acquire())
    assert (start.replica_id, start.rung) == ("f1", Rung.PARKED)
    assert every(on.StartClimb, cell.acquire("toad")) == []  # its memory is spoken for


def test_a_victim_that_stays_is_asked_again_once_it_is_quiet() -> None:
    cell = crowded()
    cell.acquire()
    commands = cell.do(on.DescendFailed("t1", "REPLICA_BUSY", "it answers"))
    assert every(on.Refuse, commands) == []
    assert every(on.StartClimb, commands) == []
    assert reserved(cell) == {}
    retried = cell.wait(1.0)
    assert only(on.Descend, retried) == on.Descend("t1", "a", Rung.PARKED)


def test_room_for_what_ended_meanwhile_serves_a_new_replica() -> None:
    cell = crowded()
    cell.acquire()
    cell.report("a", full=False, facts=facts("a", 4 * GIB, gpus=(TOAD_LIES,)), gone=("f1",))
    assert reserved(cell) == {"GPU-0": 50 * GIB}
    start = only(on.StartClimb, cell.do(on.DescendFinished("t1", Rung.PARKED)))
    assert (start.replica_id, start.rung) == (None, Rung.ABSENT)
    assert reserved(cell) == {"GPU-0": 50 * GIB}


def test_a_refused_thaw_is_not_replaced_beyond_replicas_max_and_tried_again() -> None:
    cell = cell_of(FROG)
    free = facts("a", 4 * GIB, gpus=(gpu(),))
    cell.report("a", replica("f1", FROG, "a", ReplicaState.PARKED), facts=free)
    start = only(on.StartClimb, cell.acquire())
    assert cell.do(on.ClimbRefused(start.attempt, free, "its GPU is full")) == []
    assert reserved(cell) == {}
    assert only(on.StartClimb, cell.wait(2.0)).replica_id == "f1"


def test_without_capacity_the_gpu_is_named() -> None:
    for model, gpus, mend in (
        (FROG, (), "node with a larger GPU"),
        (FROG, (gpu(80 * GIB),), "try again"),
    ):
        cell = Cell(model)
        cell.report("a", facts=facts("a", gpus=gpus))
        refuse = only(on.Refuse, cell.acquire())
        assert "4.0 GiB and 50.0 GiB of one GPU" in refuse.message
        assert mend in refuse.message
        assert (refuse.retry_after_s is None) == (gpus == ())


def test_a_thaw_that_waits_for_the_disk_is_passed_over_where_a_restore_is_sooner() -> None:
    for page_cache, node in ((0.0, "b"), (1.0, "a")):
        frog = replace(FROG, replicas_max=2)
        cell = Cell(frog, nodes=("a", "b"))
        cell.do(on.SnapshotListed(pointer(frog)))
        pages = resident(pointer(frog).manifest, pointer(frog).size_bytes)
        weights = resident(frog.weights, frog.weights_bytes, page_cache=page_cache)
        parked = on_gpu(replica("f1", frog, "a", ReplicaState.PARKED), GIB)
        there = facts("a", parked.memory_bytes, gpus=(gpu(GIB),))
        cell.report("a", parked, facts=there, residents=(weights, pages))
        near = replace(gpu(), at_hand=(frog.weights,))
        weights = resident(frog.weights, frog.weights_bytes)
        cell.report("b", facts=facts("b", gpus=(near,)), residents=(weights, pages))
        start = only(on.StartClimb, cell.acquire())
        assert start.node == node
        assert start.replica_id == ("f1" if node == "a" else None)
        assert every(on.StartClimb, cell.acquire()) == [], "a second request joins it"


def test_what_the_stream_said_first_is_not_taken_off_the_gpu_twice() -> None:
    cell = cell_of(FROG)
    serves = on_gpu(replica("f1", FROG, "a"), 30 * GIB)
    cell.report("a", serves, facts=facts("a", 4 * GIB, gpus=(FROG_LIES,)))
    order = only(on.Descend, cell.wait(61.0))
    parked = on_gpu(replica("f1", FROG, "a", ReplicaState.PARKED), GIB)  # it keeps its context
    left = facts("a", 4 * GIB, gpus=(gpu(GIB),))
    cell.report("a", parked, full=False, facts=left)
    cell.do(on.DescendFinished(order.replica_id, Rung.PARKED))
    assert cell.state.view.replicas["f1"].replica == parked
    assert cell.state.view.nodes["a"].facts == left
