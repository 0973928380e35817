"""Climbs of one model share what is fetched to their node."""

from tests.unit.scheduler.cell import GIB, Cell, facts, only, pointer, spec

from woodfrog.scheduler import events as on

FROG = spec("frog", slots=1, replicas_max=8, weights_bytes=2 * GIB)
TOAD = spec("toad", slots=1, replicas_max=8, weights_bytes=2 * GIB)


def cell() -> Cell:
    """Three nodes, to which nothing was fetched yet."""
    found = Cell(FROG, TOAD, nodes=("a", "b", "c"))
    for model in (FROG, TOAD):
        found.do(on.SnapshotListed(pointer(model)))
    return found


def start(found: Cell, model: str) -> on.StartClimb:
    return only(on.StartClimb, found.acquire(model))


def test_a_burst_goes_where_its_bytes_are_on_their_way_as_long_as_there_is_room() -> None:
    found = cell()
    assert [start(found, "frog").node for _ in range(5)] == ["a", "a", "a", "a", "b"]
    assert found.state.estimates.fetching == 2


def test_other_models_go_elsewhere() -> None:
    found = cell()
    assert [start(found, model).node for model in ("frog", "toad", "frog")] == ["a", "b", "a"]


def test_what_came_or_failed_is_not_on_its_way_any_more() -> None:
    found = cell()
    first, second = start(found, "frog"), start(found, "frog")
    found.finish(first)
    assert found.state.view.nodes["a"].coming
    found.fail(second)
    assert not found.state.view.nodes["a"].coming
    third = start(found, "toad")
    found.do(on.NodeSilent(third.node))
    found.do(on.NodeLost(third.node))
    found.report(third.node)
    assert not found.state.view.nodes[third.node].coming


def test_what_drains_move_counts_as_on_its_way() -> None:
    found = cell()
    climb = start(found, "frog")
    found.finish(climb)
    found.report("a", facts=facts("a", 4 * GIB, draining=True), full=False)
    order = only(on.Prefetch, found.wait(0.1))
    assert found.state.estimates.fetching == 1
    assert {*found.state.view.nodes[order.node].coming} == {
        FROG.weights,
        pointer(FROG).manifest,
    }
    found.do(on.PrefetchFinished(order.attempt))
    assert found.state.estimates.fetching == 0
