"""What is made up about a simulated cell: its bytes, its load, and what a policy's run tells."""

import random

import pytest
from loadtest.frontier import Point
from loadtest.report import Bench
from loadtest.simulate import ALWAYS_ON, LOCALITY, OURS, POLICIES, Scene, compare, equals, run
from loadtest.simulated_cache import Cache, Lane
from loadtest.simulated_load import FIRST_TOKEN_S, dealt, least_gpu_s, made, shapes
from loadtest.simulated_setup import Arrival

BY_NAME = {policy.name: policy for policy in POLICIES}


def test_bytes_come_from_the_nearest_tier_and_the_oldest_go() -> None:
    cache = Cache(disk_bytes=100, memory_bytes=50, disk=Lane(10.0), store=Lane(1.0))
    assert cache.fill("a", 40)
    assert not cache.fill("b", 70)
    assert cache.reach("a", 40, now=0.0) == (4.0, False, True)
    assert cache.reach("a", 40, now=1.0) == (3.0, False, False), "it is coming"
    cache.came("a", 40, stays=True)
    assert cache.reach("a", 40, now=5.0) == (0.0, False, False)
    assert cache.reach("b", 20, now=5.0) == (20.0, True, True)
    residents, gone = cache.came("b", 20, stays=True)
    assert {r.manifest: r.page_cache_bytes for r in residents} == {"b": 20, "a": 0}
    assert gone == []
    assert cache.came("c", 60, stays=False)[1] == ["a"]
    cache.forget_memory()
    assert cache.reach("b", 20, now=9.0) == (2.0, False, True)


def test_transfers_share_a_lane() -> None:
    lane = Lane(10.0)
    assert lane.take(100, now=0.0) == 10.0
    assert lane.take(20, now=0.0) == 4.0, "as long again beside another"
    assert lane.take(20, now=20.0) == 22.0


def test_no_policy_pays_less_than_one_replica_while_it_answers() -> None:
    models = shapes(2)
    share = [(model.weights_bytes + model.gpu_bytes) / 80e9 for model in models]
    arrivals = [Arrival(0.0, "m0", 4.0), Arrival(2.0, "m0", 4.0), Arrival(9.0, "m1", 1.0)]
    assert least_gpu_s(arrivals, models, 0.0, 80 * 10**9) == pytest.approx(6 * share[0] + share[1])
    assert least_gpu_s(arrivals, models, 5.0, 80 * 10**9) == pytest.approx(share[0] + share[1])


def test_policies_are_run_on_the_same_requests() -> None:
    arrivals = dealt(made(random.Random(3), 1.0), 6, 240.0, random.Random(3))
    scene = Scene(arrivals, models=6, nodes=3, copies=1, warm_s=60.0, seed=3)
    least_s = least_gpu_s(arrivals, shapes(6), 60.0, 80 << 30)
    found = {name: run(policy, policy.knobs[0], scene) for name, policy in BY_NAME.items()}
    for point in found.values():
        assert point.unanswered == 0
        assert point.p50_s >= FIRST_TOKEN_S
        assert point.gpu_s >= 0.9 * least_s, "answers vary by a tenth"
    assert found[ALWAYS_ON].p99_s < 0.1
    assert found[OURS].gpu_s < found[ALWAYS_ON].gpu_s
    assert found["keepalive-lru"].p99_s > 5 * found[OURS].p99_s


def test_each_aim_is_said_to_be_met_or_missed() -> None:
    theirs = [Point(LOCALITY, 0.0, 1.0, 10.0, 100.0), Point(ALWAYS_ON, 0.0, 0.1, 2.0, 300.0)]
    good = [Point(OURS, 0.0, 0.1, 1.9, 100.0)]
    said = list(compare(Bench("simulate"), [*good, *theirs], 10.0))
    assert [line.rsplit(" ", 1)[-1] for line in said] == ["met", "2.000", "met"]
    slow = [Point(OURS, 0.0, 0.1, 2.1, 100.0)]
    said = list(compare(Bench("simulate"), [*slow, *theirs], 10.0))
    assert [line.rsplit(" ", 1)[-1] for line in said] == ["missed", "2.000", "missed"]
    dear = [Point(OURS, 0.0, 0.1, 1.9, 200.0)]
    assert list(compare(Bench("simulate"), [*dear, *theirs], 10.0))[-1].endswith("missed")


def test_policies_are_put_side_by_side_where_they_pay_the_same() -> None:
    points = [
        Point(OURS, 0.0, 0.1, 4.0, 100.0),
        Point(OURS, 1.0, 0.1, 1.0, 400.0),
        Point(LOCALITY, 0.0, 1.0, 10.0, 200.0),
        Point(LOCALITY, 9.0, 1.0, 5.0, 800.0),
        Point(ALWAYS_ON, 0.0, 0.1, 0.1, 900.0),
    ]
    found = {point.policy: point for point in equals(points)}
    assert {name: point.gpu_s for name, point in found.items()} == {
        OURS: 200.0, LOCALITY: 200.0, ALWAYS_ON: 900.0,
    }  # fmt: skip
    assert found[OURS].p99_s == pytest.approx(2.0), "between both, by the powers"
    assert found[LOCALITY].p99_s == 10.0
