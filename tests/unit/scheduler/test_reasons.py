"""Why a plan is as it is, in words."""

from dataclasses import replace

import pytest
from tests.unit.scheduler.test_plan import AWAY_S, FREE, GB, PARKED_S, ladder, of

from woodfrog.model.rung import Rung
from woodfrog.scheduler.plan import Item, Limits, Option, Prices, Resource
from woodfrog.scheduler.planner import Planner


def why(items: list[Item], limits: Limits, prices: Prices = FREE) -> dict[str, str]:
    solution = Planner().solve(items, limits, prices, 60.0, asked=True)
    assert solution.reasons.keys() == {item.model for item in items}
    return dict(solution.reasons)


def test_plans_of_the_leader_give_none() -> None:
    assert Planner().solve([ladder("frog", 1.0)], of(), FREE).reasons == {}


def test_where_there_is_room_it_is_what_is_saved() -> None:
    assert why([ladder("frog", 1 / 40)], of()) == {"frog": "saves 10 s of a wake expected in 40 s"}


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.0057, "5.7 ms"), (0.109, "109 ms"), (9.66, "9.7 s"), (41.2, "41 s"), (4000.0, "4,000 s")],
)
def test_times_have_two_digits_or_are_whole(seconds: float, told: str) -> None:
    kept = ladder("frog", 1 / 40)
    found = why([replace(kept, away_s=kept.options[0].wake_s + seconds)], of())
    assert found == {"frog": f"saves {told} of a wake expected in 40 s"}


def test_who_is_not_as_high_as_it_could_be_is_told_who_is_there() -> None:
    """One is hot and leaves the GPU too little for the other."""
    found = why([ladder("frog", 0.1), ladder("toad", 0.2)], of(gpu=18))
    assert found["toad"] == "saves 10 s of a wake expected in 5 s"
    assert found["frog"] == (
        "saves 9.7 s of a wake expected in 10 s;"
        " not hot: GPU memory of node h100 is full: toad is worth more"
    )


def test_who_finds_nothing_is_told_which_limit_is_full() -> None:
    items = [ladder("frog", 0.1), ladder("toad", 0.2)]
    tight = of(gpu=0, pinned=0, disk=17)
    assert why(items, tight)["frog"] == "disk of node h100 is full: toad is worth more"


def test_pinned_memory_is_named_where_it_is_what_is_short() -> None:
    def parked(model: str, wakes_s: float) -> Item:
        uses = {Resource.GPU: GB, Resource.PINNED: 15 * GB}
        options = (
            Option("a", Rung.PARKED, PARKED_S, uses),
            Option("a", Rung.PARKED, 2 * PARKED_S, {Resource.GPU: GB}),
        )
        return Item(model, wakes_s, AWAY_S, options)

    found = why([parked("frog", 0.1), parked("toad", 0.2)], {"a": {Resource.PINNED: 20 * GB}})
    assert found["frog"] == (
        "saves 9.4 s of a wake expected in 10 s;"
        " not with its weights pinned: pinned memory of node a is full: toad is worth more"
    )


def test_what_the_plan_leaves_alone_may_be_in_the_way() -> None:
    said = "node h100 has too little GPU memory beside what the plan leaves alone"
    assert why([ladder("frog", 0.1)], of(gpu=0, pinned=0, disk=5)) == {"frog": said}


def test_a_price_is_named_as_such() -> None:
    dear = Prices({Resource.GPU: 1e-10, Resource.PINNED: 1e-10, Resource.DISK: 1e-10})
    said = "not worth its price: hot would save 1 ms a second and cost 1.6 s"
    assert why([ladder("frog", 1e-4)], of(), dear) == {"frog": said}
    off_gpu = why([ladder("frog", 0.01)], of(), Prices({Resource.GPU: 3e-13}))
    assert off_gpu["frog"] == (
        "saves 9.7 s of a wake expected in 100 s; hot would not be worth its price"
    )


def test_so_is_what_is_not_worth_the_move() -> None:
    frog = replace(ladder("frog", 0.01), now=1)
    parked = why([frog], of(), Prices({Resource.GPU: 1.9e-13}))["frog"]
    assert parked.endswith("; hot would not be worth the move")


def test_a_model_that_would_wake_no_sooner_is_told_so() -> None:
    frog = replace(ladder("frog", 0.01), away_s=0.0)
    assert why([frog], of()) == {"frog": "nothing that it could keep would shorten a wake"}


def test_a_greedy_choice_has_reasons_too() -> None:
    items = [ladder("frog", 0.1), ladder("toad", 0.2)]
    found = Planner().solve(items, of(gpu=18, disk=0), FREE, 0.0, asked=True)
    assert found.solver == "greedy"
    assert found.choices["frog"].option.rung is Rung.PARKED
    assert "GPU memory of node h100 is full: toad" in found.reasons["frog"]


def test_more_of_what_is_full_is_what_helps() -> None:
    items = [ladder("frog", 0.1), ladder("toad", 0.2)]
    assert "not hot" not in why(items, of(gpu=32 + GB))["frog"]
