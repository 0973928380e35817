"""What counts as running."""

from woodfrog.model.placement import ReplicaUsage
from woodfrog.scheduler.usage import Usage


def test_a_promise_counts_until_its_router_reports_a_start() -> None:
    usage = Usage()
    usage.promise("p1", "f1", "r1")
    usage.promise("p2", "f1", "r1")
    assert usage.report("r2", ReplicaUsage("f1", 1, 1)) == []
    assert usage.active("f1") == 3
    assert usage.report("r1", ReplicaUsage("f1", 1, 1)) == ["p1"]
    assert usage.active("f1") == 3  # r2's, r1's, and the promise that is left
    assert usage.keep("p1") is None
    assert usage.keep("p2") == "f1"
    assert usage.active("f1") == 2
    usage.check()


def test_a_short_request_may_be_over_when_it_is_reported() -> None:
    usage = Usage()
    usage.promise("p1", "f1", "r1")
    usage.report("r1", ReplicaUsage("f1", 0, 1))
    assert usage.active("f1") == 0
    usage.check()


def test_all_of_a_lost_router_ends() -> None:
    usage = Usage()
    usage.promise("p1", "f1", "r1")
    usage.promise("p2", "f2", "r2")
    usage.report("r1", ReplicaUsage("f3", 2))
    usage.report("r2", ReplicaUsage("f3", 1))
    assert usage.lose("r1") == ({"f1", "f3"}, ["p1"])
    assert [usage.active(name) for name in ("f1", "f2", "f3")] == [0, 1, 1]
    usage.check()


def test_of_a_replica_that_ended_the_router_says_what_broke() -> None:
    usage = Usage()
    usage.promise("p1", "f1", "r1")
    usage.report("r1", ReplicaUsage("f1", 2))
    assert usage.forget("f1") == ["p1"]
    assert usage.active("f1") == 2
    usage.report("r1", ReplicaUsage("f1", 0))
    assert usage.active("f1") == 0
    usage.check()
