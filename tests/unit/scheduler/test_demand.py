"""What a model did tells when it is wanted next."""

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from woodfrog.scheduler.demand import BINS, LONGEST_S, Demand, Histogram, bin_of


def woken(model: str, *idle_s: float) -> Demand:
    demand = Demand()
    for each in idle_s:
        demand.woke(model, each)
    return demand


def test_a_model_that_wakes_each_hour_is_expected_on_the_hour() -> None:
    demand = woken("frog", *[3600.0] * 20)
    waits = [demand.wait_s("frog", idle_s) for idle_s in (60, 1800, 3000)]
    assert waits == pytest.approx([3540, 1800, 600], abs=250)
    assert demand.wait_s("frog", 7200) == 7200  # nothing is known of so late


def test_one_that_wakes_at_random_is_as_likely_at_any_time() -> None:
    chance = random.Random(1)
    demand = Demand()
    models = [f"frog{number}" for number in range(30)]
    for model in models * 200:
        demand.woke(model, chance.expovariate(1 / 600))
    for idle_s in (60, 300, 900):
        waits = [demand.wait_s(model, idle_s) for model in models]
        assert statistics.mean(waits) == pytest.approx(600, rel=0.2)


def test_a_model_without_a_history_is_an_ordinary_one_and_its_own_history_soon_counts() -> None:
    demand = woken("toad", *[100.0] * 50)
    assert demand.wait_s("frog", 20) == pytest.approx(80, abs=10)
    for _ in range(20):
        demand.woke("frog", 5000.0)
    assert demand.wait_s("frog", 20) > 3000


def test_what_a_model_did_long_ago_is_forgotten() -> None:
    demand = woken("frog", *[60.0] * 100, *[7200.0] * 400)
    assert demand.wait_s("frog", 30) > 6000


def test_a_wake_that_is_likely_soon_is_not_outweighed_by_one_next_week() -> None:
    demand = woken("frog", *[3600.0] * 12, *[7 * 86400.0] * 4)
    assert demand.wait_s("frog", 3550) < 300
    assert demand.wait_s("frog", 7200) > 86400


def test_nothing_is_known_of_nothing() -> None:
    demand = Demand()
    assert [demand.wait_s("frog", idle_s) for idle_s in (10, 1000)] == [60, 1000]
    demand.woke("frog", 0.2)  # it never came to rest
    assert demand.wait_s("frog", 10) == 60
    demand.woke("frog", 20.0)
    demand.forget("frog")
    assert demand.wait_s("frog", 10) == pytest.approx(10, abs=2)  # as an ordinary one


@given(st.lists(st.floats(0, 1e9), max_size=50), st.floats(0, 1e9))
def test_a_wait_is_a_time_and_no_longer_than_any_idle_time(
    idle: list[float], idle_s: float
) -> None:
    wait_s = woken("frog", *idle).wait_s("frog", idle_s)
    assert 0 <= wait_s <= max(60.0, idle_s, 1.2 * LONGEST_S)


@given(st.floats(0, 1e12))
def test_every_time_has_a_bin(idle_s: float) -> None:
    assert 0 <= bin_of(idle_s) < BINS


def test_a_histogram_stays_small() -> None:
    histogram = Histogram(64.0)
    chance = random.Random(2)
    for _ in range(5000):
        histogram.add(chance.uniform(1, LONGEST_S))
    assert len(histogram.counts) <= BINS
    assert histogram.total < 64 / 0.69 + 2
