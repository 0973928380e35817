"""How many replicas a burst starts, and who waits for what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.scheduler.cell import Cell, every, facts, only, pointer, replica, resident, spec

from woodfrog.model.placement import ReplicaUsage
from woodfrog.scheduler import events as on
from woodfrog.scheduler.service_times import ENOUGH, ServiceTimes

FROG = spec("frog", slots=2, replicas_max=8)
GIB = 1 << 30


def serving(mean_s: float, *, nodes: tuple[str, ...] = ("a",)) -> Cell:
    """One replica with two slots, whose requests take so long; a climb is predicted to take about half a second."""
    cell = Cell(FROG, nodes=nodes)
    cell.do(on.SnapshotListed(pointer(FROG)))
    lies = (resident(pointer(FROG).manifest, 280 << 20), resident(FROG.weights, FROG.weights_bytes))
    wide = {"memory_bytes": 64 * GIB}
    for node in nodes[1:]:
        cell.report(node, facts=facts(node, **wide), residents=lies)
    told = facts(nodes[0], 4 * GIB, **wide)
    cell.report(nodes[0], replica("f1", FROG, nodes[0]), facts=told, residents=lies)
    for _ in range(8):
        grant = only(on.Grant, cell.acquire())
        cell.do(on.UsageReported("r", (ReplicaUsage("f1", 1, started=1),)))
        cell.now += mean_s
        cell.do(on.UsageReported("r", (ReplicaUsage("f1", 0),)))
        cell.do(on.Released(grant.acquired.placement_id))
    return cell


def climbs(cell: Cell, count: int) -> int:
    """That so many requests at once start."""
    return sum(len(every(on.StartClimb, cell.acquire())) for _ in range(count))


def test_short_requests_wait_for_a_slot_and_long_ones_start_replicas() -> None:
    assert climbs(serving(0.01), 20) == 0
    assert climbs(serving(60.0), 20) == 7  # as many as the model may have


def test_as_many_are_started_as_pay_and_no_more() -> None:
    few, many = climbs(serving(0.3), 12), climbs(serving(1.0), 12)
    assert 1 <= few < many <= 5


def test_before_much_is_known_each_slot_that_lacks_is_started() -> None:
    cell = Cell(FROG)
    cell.report("a", replica("f1", FROG, "a"), facts=facts("a", 4 * GIB, memory_bytes=64 * GIB))
    assert climbs(cell, 6) == 2


def test_who_waited_as_long_as_a_climb_takes_starts_one() -> None:
    cell = serving(0.2)
    assert climbs(cell, 3) == 0
    assert len(every(on.StartClimb, cell.wait(5.0))) == 1


def test_the_last_to_come_waits_for_the_climb_and_the_first_for_a_slot() -> None:
    cell = serving(0.3)
    numbers = {}
    for _ in range(12):
        for start in every(on.StartClimb, cell.acquire()):
            numbers[cell.tickets] = start
    assert numbers
    first = min(cell.state._board.waiting["frog"])
    assert first < min(numbers)


def test_a_slot_that_comes_free_goes_to_who_waits_for_a_climb_and_the_climb_goes_on() -> None:
    cell = Cell(FROG)
    cell.report("a", replica("f1", FROG, "a"), facts=facts("a", 4 * GIB, memory_bytes=64 * GIB))
    grants = [only(on.Grant, cell.acquire()) for _ in range(2)]
    start = only(on.StartClimb, cell.acquire())
    later = cell.do(on.Released(grants[0].acquired.placement_id))
    assert only(on.Grant, later).ticket == 3
    assert only(on.Announce, cell.finish(start, "f2")).ready[0].replica_id == "f2"


def test_who_will_not_have_the_free_slot_does_not_keep_it_from_who_waits_for_a_climb() -> None:
    model = spec("frog", slots=1, replicas_max=2)
    cell = Cell(model)
    cell.report("a", replica("f1", model, "a"), facts=facts("a", 4 * GIB, memory_bytes=8 * GIB))
    grant = only(on.Grant, cell.acquire())
    only(on.StartClimb, cell.acquire())
    assert not every(on.Grant, cell.acquire("frog", "f1"))  # waits, for anything but f1
    cell.report("a", replica("f1", model, "a"), facts=facts("a", 4 * GIB, memory_bytes=8 * GIB))
    later = cell.do(on.Released(grant.acquired.placement_id))
    assert only(on.Grant, later).ticket == 2


def test_a_model_that_serves_waits_for_its_slots_where_no_node_has_room_for_more() -> None:
    cell = Cell(FROG)
    cell.report("a", replica("f1", FROG, "a"), facts=facts("a", 16 * GIB))
    grants = [only(on.Grant, cell.acquire()) for _ in range(2)]
    assert cell.acquire() == []
    assert only(on.Grant, cell.do(on.Released(grants[0].acquired.placement_id))).ticket == 3


def test_who_will_have_none_of_them_is_not_counted_in() -> None:
    cell = serving(0.01)
    assert climbs(cell, 2) == 0
    starts = every(on.StartClimb, cell.acquire("frog", "f1"))
    assert len(starts) == 1


def test_what_is_lifted_goes_to_who_came_first() -> None:
    cell = serving(0.3)
    starts = [
        (cell.tickets, each) for _ in range(12) for each in every(on.StartClimb, cell.acquire())
    ]
    first = min(cell.state._board.waiting["frog"])
    assert first < starts[0][0]
    granted = [grant.ticket for grant in every(on.Grant, cell.finish(starts[0][1], "f9"))]
    assert granted == [first, first + 1]


def test_a_thousand_that_will_not_have_a_replica_are_decided_as_one() -> None:
    cell = Cell(spec("frog", slots=1))
    cell.report("a", replica("f1", spec("frog", slots=1), "a"))
    looks = 0
    decide = cell.state._decide

    def counted(*args: object, **more: object) -> bool:
        nonlocal looks
        looks += 1
        return decide(*args, **more)  # type: ignore[arg-type]

    cell.state._decide = counted  # type: ignore[method-assign]
    for _ in range(100):
        cell.acquire("frog", "f1")
    assert looks < 1000


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 100)), min_size=8, max_size=60))
def test_a_mean_lies_within_what_was_seen(requests: list[tuple[int, float]]) -> None:
    times = ServiceTimes()
    for count, each_s in requests:
        times.began("frog", count)
        times.held("frog", count * each_s)
    lengths = [each_s for _, each_s in requests]
    assert min(lengths) * 0.99 - 1e-6 <= (times.mean_s("frog") or 0) <= max(lengths) * 1.01 + 1e-6


def test_little_is_not_known_and_what_was_long_ago_is_forgotten() -> None:
    times = ServiceTimes()
    times.began("frog", int(ENOUGH) - 1)
    times.held("frog", 9.0)
    assert times.mean_s("frog") is None
    for _ in range(500):
        times.began("frog", 1)
        times.held("frog", 0.1)
    assert times.mean_s("frog") == pytest.approx(0.1, rel=0.05)
    times.forget("frog")
    assert times.mean_s("frog") is None


def test_nothing_is_kept_of_a_model_that_was_removed() -> None:
    cell = serving(0.3)
    cell.acquire()
    cell.do(on.ModelRemoved("frog"))
    cell.now += 1.0
    cell.do(on.UsageReported("r", (ReplicaUsage("f1", 1, started=3),)))
    cell.now += 1.0
    cell.do(on.UsageReported("r", (ReplicaUsage("f1", 0),)))
    assert cell.state._board.service_times.mean_s("frog") is None
    assert not cell.state._board.service_times._of
