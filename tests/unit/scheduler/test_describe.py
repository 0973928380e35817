"""The view for people."""

from dataclasses import replace

from tests.unit.scheduler.cell import GIB, Cell, facts, gpu, pointer, replica, resident, spec

from woodfrog.model.node import ReplicaState
from woodfrog.model.placement import ClusterView, NodeView, ReplicaUsage
from woodfrog.model.rung import Rung
from woodfrog.scheduler import events as on
from woodfrog.scheduler.describe import describe
from woodfrog.scheduler.troubles import Trouble, Troubles

FROG = spec()


def described(cell: Cell, later_s: float = 0.0, troubles: Troubles | None = None) -> ClusterView:
    return describe(cell.state, cell.now + later_s, troubles or Troubles())


def test_the_best_rung_anywhere_and_what_a_request_would_wait() -> None:
    cell = Cell(FROG, nodes=("a", "b"))
    snapshot = pointer(FROG)
    seen = []
    for event in (
        lambda: None,
        lambda: cell.do(on.SnapshotListed(snapshot)),
        lambda: cell.report("b", residents=(resident(snapshot.manifest, snapshot.size_bytes),)),
        lambda: cell.report("a", replica("f1", FROG, "a", ReplicaState.PARKED)),
        lambda: cell.report("a", replica("f1", FROG, "a")),
    ):
        event()
        (model,) = described(cell).models
        assert model.predicted_ms is not None
        seen.append((model.rung, model.predicted_ms))
    assert [rung for rung, _ in seen] == [
        Rung.ABSENT,
        Rung.STORED,
        Rung.FROZEN,
        Rung.PARKED,
        Rung.SERVING,
    ]
    waits = [predicted for _, predicted in seen]
    assert waits == sorted(waits, reverse=True)
    assert (waits[0], waits[-1]) == (5000, 0)


def test_hot_is_above_parked_and_sooner() -> None:
    model = spec(gpu_bytes=GIB)
    cell = Cell(model)
    seen = []
    for state in (ReplicaState.PARKED, ReplicaState.HOT):
        cell.report("a", replica("f1", model, "a", state), facts=facts("a", gpus=(gpu(),)))
        (told,) = described(cell).models
        assert told.predicted_ms is not None
        seen.append((told.rung, told.predicted_ms))
    assert [rung for rung, _ in seen] == [Rung.PARKED, Rung.HOT]
    assert seen[0][1] > seen[1][1]


def test_replicas_nodes_and_idle_time() -> None:
    cell = Cell(FROG, replace(FROG, name="never"), nodes=("a",))
    cell.report("a", replica("f1", FROG, "a"))
    cell.do(on.UsageReported("r", (ReplicaUsage("f1", 1, 1),)))
    view = described(cell, 3)
    frog, never = view.models
    assert [(each.replica_id, each.active) for each in frog.replicas] == [("f1", 1)]
    assert (frog.idle_s, never.idle_s, never.replicas) == (0, None, ())
    assert view.nodes == (NodeView("a", 16 * GIB, 4 * GIB),)
    told = facts("a", 4 * GIB, gpus=(gpu(GIB),))
    cell.report("a", facts=told, full=False)
    assert described(cell).nodes == (NodeView("a", 16 * GIB, 4 * GIB, (gpu(GIB),)),)
    cell.do(on.UsageReported("r", (ReplicaUsage("f1", 0),)))
    assert described(cell, 3).models[0].idle_s == 3


def test_without_room_nothing_is_predicted() -> None:
    cell = Cell(FROG)
    cell.report("a", facts=facts("a", draining=True))
    assert described(cell).models[0].predicted_ms is None


def test_where_room_must_be_made_first_that_is_in_the_prediction() -> None:
    cell = Cell(FROG, replace(FROG, name="toad"), nodes=())
    toad = replica("t1", replace(FROG, name="toad"), "a")
    cell.report("a", toad, facts=facts("a", 4 * GIB))
    (roomy, _) = described(cell).models
    cell.report("a", toad, facts=facts("a", 4 * GIB, memory_bytes=4 * GIB))
    (full, _) = described(cell).models
    assert full.predicted_ms is not None
    assert roomy.predicted_ms is not None
    assert full.predicted_ms > roomy.predicted_ms
    assert full.trouble == ""


def test_what_no_node_can_take_says_so() -> None:
    cell = Cell(replace(FROG, memory_bytes=17 * GIB), nodes=("a", "b"))
    (told,) = described(cell, troubles=_failed(cell)).models
    assert told.trouble == (
        "model 'frog' needs 17.0 GiB and no node has room (2 nodes are too small); "
        "add the model with less memory, or a larger node"
    )
    assert told.trouble_age_s is None


def test_the_last_failure_is_told_until_it_serves() -> None:
    cell = Cell(FROG, replace(FROG, name="newt"))
    troubles = _failed(cell)
    frog, newt = described(cell, 3.0, troubles).models
    assert (frog.trouble, frog.trouble_age_s) == ("it broke", 3.0)
    assert (newt.trouble, newt.trouble_age_s) == ("", None)
    cell.report("a", facts=facts("a", promised=14 * GIB))  # full, which others may mend
    assert described(cell, 3.0, troubles).models[0].trouble == "it broke"
    cell.report("a", facts=facts("a", draining=True))
    assert "undrain" in described(cell, 3.0, troubles).models[0].trouble
    cell.report("a", replica("f1", FROG, "a"))
    assert described(cell, 3.0, troubles).models[0].trouble == ""


def test_the_last_trouble_of_a_model_counts() -> None:
    troubles = Troubles()
    troubles.note("frog", "first", 1.0)
    troubles.note("frog", "second", 2.0)
    assert troubles.last("frog") == Trouble("second", 2.0)
    troubles.forget("frog")
    troubles.forget("frog")
    assert troubles.last("frog") is None


def _failed(cell: Cell) -> Troubles:
    troubles = Troubles()
    troubles.note("frog", "it broke", cell.now)
    return troubles
