"""Predictions, and how they follow what climbs take."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from woodfrog.model.node import Stage
from woodfrog.model.placement import Predictions
from woodfrog.model.rung import Rung
from woodfrog.scheduler.estimates import FEW_BYTES, SAMPLES, Branch, Estimates, Missing, Way
from woodfrog.scheduler.rates import Rates

FROZEN = Way("kind", "frog", Rung.FROZEN)
PRIORS = Rates(disk_bytes_s=1e9, store_bytes_s=0.5e9)
PROCESS = Branch(PRIORS.restore_s)
MB = 10**6


def learned(*seconds: float, way: Way = FROZEN) -> Estimates:
    estimates = Estimates(PRIORS)
    for took_s in seconds:
        estimates.learn(estimates.forecast(way, PROCESS), way.rung, (), took_s)
    return estimates


def test_without_samples_priors_hold() -> None:
    missing = Missing(store_bytes=500 * MB, disk_bytes=100 * MB)
    forecast = Estimates(PRIORS).forecast(FROZEN, PROCESS, Branch(0.2, missing), beside=3)
    assert forecast.seconds == pytest.approx(0.2 + 1.0 + 0.1)


def test_what_one_model_takes_is_predicted_after_one_climb_and_odd_ones_do_not_matter() -> None:
    estimates = learned(0.2)
    assert estimates.forecast(FROZEN, PROCESS).seconds == pytest.approx(0.2)
    estimates = learned(0.2, 0.21, 9.0, 0.19, 0.2)
    assert estimates.forecast(FROZEN, PROCESS).seconds == pytest.approx(0.2)


def test_what_changed_is_followed() -> None:
    estimates = learned(*[0.2] * 100, *[0.4] * SAMPLES)
    assert estimates.forecast(FROZEN, PROCESS).seconds == pytest.approx(0.4)


def test_a_model_that_never_climbed_is_taken_for_as_slow_as_others_on_that_kind_of_node() -> None:
    estimates = learned(PRIORS.restore_s * 5)
    for name, kind, expected in (("toad", "kind", 5), ("toad", "other", 1)):
        way = Way(kind, name, Rung.FROZEN)
        assert estimates.forecast(way, PROCESS).seconds == pytest.approx(
            PRIORS.restore_s * expected
        )


def test_rates_are_learned_from_what_bytes_cost_beyond_the_climb_itself() -> None:
    estimates = learned(0.2)
    stored = FROZEN._replace(rung=Rung.STORED)
    away = Branch(PRIORS.restore_s, Missing(store_bytes=1000 * MB))
    first = estimates.forecast(stored, away)
    assert first.seconds == pytest.approx(0.2 + 2.0)  # by the prior's rate
    estimates.learn(first, Rung.STORED, (), 0.2 + 4.0)
    twice = Branch(PRIORS.restore_s, Missing(store_bytes=2000 * MB))
    assert estimates.forecast(stored, twice).seconds == pytest.approx(0.2 + 8.0)
    on_disk = Branch(PRIORS.restore_s, Missing(disk_bytes=1000 * MB))
    estimates.learn(estimates.forecast(FROZEN, on_disk), Rung.FROZEN, (), 0.2 + 0.5)
    assert estimates.forecast(FROZEN, on_disk).seconds == pytest.approx(0.7)
    assert estimates.forecast(FROZEN, PROCESS).seconds == pytest.approx(0.2)


def test_bytes_that_come_behind_the_process_teach_a_rate_only_where_they_made_it_longer() -> None:
    estimates = learned(4.0)
    few, many = Missing(disk_bytes=2000 * MB), Missing(disk_bytes=40_000 * MB)
    for _ in range(SAMPLES):
        estimates.learn(estimates.forecast(FROZEN, PROCESS, Branch(0.1, few)), FROZEN.rung, (), 4.0)
    assert estimates.forecast(FROZEN, PROCESS, Branch(0.1, many)).seconds == pytest.approx(40.0)
    estimates.learn(estimates.forecast(FROZEN, PROCESS, Branch(0.1, many)), FROZEN.rung, (), 20.0)
    assert estimates.forecast(FROZEN, PROCESS, Branch(0.1, many)).seconds == pytest.approx(20.0)
    estimates.learn(estimates.forecast(FROZEN, PROCESS, Branch(0.1, many)), FROZEN.rung, (), 4.0)
    assert estimates.forecast(FROZEN, PROCESS, Branch(0.1, many)).seconds == pytest.approx(12.0)


def test_a_cold_start_in_place_of_a_restore_says_nothing_of_what_bytes_cost() -> None:
    absent = FROZEN._replace(rung=Rung.ABSENT)
    estimates = learned(5.0, way=absent)
    away = Branch(PRIORS.restore_s, Missing(store_bytes=300 * MB))
    stored = estimates.forecast(FROZEN._replace(rung=Rung.STORED), away)
    estimates.learn(stored, Rung.ABSENT, (), 25.0)
    assert estimates.forecast(stored.way, away).seconds == pytest.approx(stored.seconds)


def test_climbs_beside_it_cost_what_they_did() -> None:
    estimates = learned(0.2)
    crowded = estimates.forecast(FROZEN, PROCESS, beside=2)
    assert crowded.seconds == pytest.approx(0.2)
    estimates.learn(crowded, Rung.FROZEN, (), 0.4)
    assert estimates.forecast(FROZEN, PROCESS, beside=4).seconds == pytest.approx(0.6)
    assert estimates.forecast(FROZEN, PROCESS).seconds == pytest.approx(0.2)


def test_a_first_proof_and_another_rung_than_predicted_teach_nothing_wrong() -> None:
    estimates = learned(0.2)
    proof = (Stage("restore.proof", 0.1, 3.0),)
    estimates.learn(estimates.forecast(FROZEN, PROCESS), Rung.FROZEN, proof, 3.2)
    assert estimates.forecast(FROZEN, PROCESS).seconds == pytest.approx(0.2)
    cold = (Stage("cold.engine", 0.0, 5.0), Stage("checkpoint.dump", 5.0, 1.0))
    estimates.learn(estimates.forecast(FROZEN, PROCESS), Rung.ABSENT, cold, 6.0)
    assert estimates.forecast(FROZEN, PROCESS).seconds == pytest.approx(0.2)
    absent = Way("kind", "frog", Rung.ABSENT, checkpoint=True)
    assert estimates.forecast(absent, Branch(PRIORS.cold_s)).seconds == pytest.approx(6.0)


def test_the_error_of_predictions_is_told() -> None:
    assert Estimates(PRIORS).predictions() == Predictions()
    wrong = learned(0.2).predictions()
    assert wrong.count == 1
    assert wrong.error_p90 > 0.5  # of the prior
    chance = random.Random(7)
    found = learned(*(0.2 * chance.uniform(0.95, 1.05) for _ in range(100))).predictions()
    assert found.count == 100
    assert 0.0 < found.error_p90 < 0.1
    twice = learned(*(0.2 if number % 9 else 0.4 for number in range(100))).predictions()
    assert twice.error_p90 > 0.4, "one in nine is more than one in ten"


def test_a_model_that_is_gone_is_forgotten() -> None:
    estimates = learned(0.2)
    estimates.forget("frog")
    bias = 0.2 / PRIORS.restore_s
    expected = pytest.approx(PRIORS.restore_s * bias)
    assert estimates.forecast(FROZEN, PROCESS).seconds == expected


def test_what_lowering_takes_is_learned() -> None:
    estimates = Estimates(PRIORS)
    assert estimates.lower_s("kind", Rung.PARKED) == PRIORS.lower_s
    estimates.learn_lowered("kind", Rung.PARKED, 0.7)
    assert estimates.lower_s("kind", Rung.PARKED) == 0.7
    assert estimates.lower_s("kind", Rung.FROZEN) == PRIORS.lower_s


@given(
    st.lists(
        st.tuples(
            st.sampled_from([Rung.FROZEN, Rung.STORED, Rung.ABSENT]),
            st.sampled_from([Rung.FROZEN, Rung.STORED, Rung.ABSENT]),
            st.integers(0, 10**11),
            st.integers(0, 10**11),
            st.integers(0, 5),
            st.floats(0, 1000),
        ),
        max_size=30,
    )
)
def test_whatever_was_taken_predictions_are_times(
    climbs: list[tuple[Rung, Rung, int, int, int, float]],
) -> None:
    estimates = Estimates(PRIORS)
    for rung, found, store, disk, beside, took_s in climbs:
        missing = Missing(store, disk)
        way = Way("kind", "frog", rung)
        forecast = estimates.forecast(way, Branch(0.03, missing), Branch(0.1, missing), beside)
        assert 0 <= forecast.seconds < 1e9
        estimates.learn(forecast, found, (), took_s)


def test_what_comes_from_the_store_shares_its_line_and_how_much_is_learned() -> None:
    estimates = learned(0.2)
    stored = FROZEN._replace(rung=Rung.STORED)
    away = Branch(0.1, Missing(store_bytes=500 * MB))

    def told() -> float:
        return estimates.forecast(stored, away).seconds

    for _ in range(SAMPLES):
        estimates.learn(estimates.forecast(stored, away), Rung.STORED, (), 1.2)
    assert told() == pytest.approx(1.2)
    estimates.fetching = 3
    assert told() == pytest.approx(0.2 + 4 * 1.0)  # the line is shared, as far as is known
    for _ in range(SAMPLES):
        estimates.learn(
            estimates.forecast(stored, away), Rung.STORED, (), 0.2 + 1.0 * (1 + 3 * 0.2)
        )
    assert told() == pytest.approx(1.8)
    estimates.fetching = 0
    assert told() == pytest.approx(1.2)
    near = estimates.forecast(FROZEN, PROCESS)
    estimates.fetching = 9
    assert estimates.forecast(FROZEN, PROCESS).seconds == near.seconds


def test_models_that_climb_for_the_first_time_teach_what_bytes_cost() -> None:
    estimates = learned(0.1)  # of another model
    away = Branch(PROCESS.prior_s, Missing(store_bytes=300 * MB))
    for number in range(SAMPLES):
        way = FROZEN._replace(model=f"new{number}", rung=Rung.STORED)
        estimates.learn(estimates.forecast(way, away), Rung.STORED, (), 20.0)
    last = FROZEN._replace(model="newest", rung=Rung.STORED)
    assert estimates.forecast(last, away).seconds == pytest.approx(20.0, rel=0.05)


def test_what_is_on_its_way_already_takes_no_share_of_the_line_and_teaches_nothing() -> None:
    estimates = learned(0.2)
    stored = FROZEN._replace(rung=Rung.STORED)
    away = Branch(0.1, Missing(store_bytes=500 * MB))
    joined = replace(away, coming=True)
    estimates.fetching = 1
    told = estimates.forecast(stored, joined).seconds
    assert told == pytest.approx(0.2 + 1.0)
    assert estimates.forecast(stored, away).seconds == pytest.approx(0.2 + 2.0)
    for _ in range(SAMPLES):
        estimates.learn(estimates.forecast(stored, joined), Rung.STORED, (), 0.21)
    assert estimates.forecast(stored, joined).seconds == told


def test_how_long_others_take_to_make_room_is_learned_apart() -> None:
    estimates = learned(0.2)
    alone = estimates.forecast(FROZEN, PROCESS)
    first = estimates.forecast(FROZEN, PROCESS, yields=True)
    assert first.seconds == pytest.approx(alone.seconds + estimates.priors.lower_s)
    stages = (Stage("room", 0.0, 1.0), Stage("room", 1.0, 2.0))
    for _ in range(SAMPLES):
        estimates.learn(first, FROZEN.rung, stages, 3.2)
    assert estimates.forecast(FROZEN, PROCESS).seconds == pytest.approx(0.2)
    assert estimates.forecast(FROZEN, PROCESS, yields=True).seconds == pytest.approx(3.2)


def test_a_few_bytes_that_are_away_at_each_climb_are_counted_once() -> None:
    estimates = Estimates(PRIORS)
    process = replace(PROCESS, missing=Missing(disk_bytes=FEW_BYTES))
    for _ in range(SAMPLES):
        estimates.learn(estimates.forecast(FROZEN, process), Rung.FROZEN, (), 0.005)
    assert estimates.forecast(FROZEN, process).seconds == pytest.approx(0.005)
