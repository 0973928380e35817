"""`woodfrog plan`: what it prints, and what it may be asked."""

import pytest

from woodfrog.cli import plans
from woodfrog.cli.program import parser
from woodfrog.model.placement import PlannedModel, PlanView, WhatIf
from woodfrog.model.rung import Rung


def given(*arguments: str) -> WhatIf:
    found = [each for text in arguments for each in ("--what-if", text)]
    return WhatIf(**dict(parser().parse_args(["plan", *found]).what_if))


def test_nothing_is_supposed_unless_it_is_said() -> None:
    assert given() == WhatIf()


def test_prices_and_memory_may_be_supposed_together() -> None:
    asked = given("gpu-price=0.01", "disk-price=0", "memory=+50%")
    assert asked == WhatIf(gpu_price=0.01, disk_price=0.0, memory=1.5)
    assert given("memory=-20%", "pinned-price=1e-5", "memory-price=2") == WhatIf(
        memory=0.8, pinned_price=1e-5, memory_price=2.0
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("gpu=1", "none of gpu-price"),
        ("gpu-price", "a number of seconds"),
        ("gpu-price=-1", "a number of seconds"),
        ("gpu-price=nan", "a number of seconds"),
        ("gpu-price=dear", "a number of seconds"),
        ("memory=50%", "how much more or less"),
        ("memory=2", "how much more or less"),
        ("memory=-100%", "how much more or less, above -100%"),
    ],
)
def test_what_cannot_be_supposed_is_said(
    wrong: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        given(wrong)
    assert said in capsys.readouterr().err


def test_help_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parser().parse_args(["plan", "--help"])
    assert end.value.code == 0
    assert "memory=+50%" in capsys.readouterr().out


def test_each_model_is_shown_with_the_reason_for_its_rest() -> None:
    frog = PlannedModel(
        "frog", "a", "parked", Rung.FROZEN, 400.0, 0.5, 0.5, 0.0,
        "GPU memory of node a is full: toad is worth more",
    )  # fmt: skip
    toad = PlannedModel(
        "toad",
        "a",
        "hot",
        Rung.HOT,
        40.0,
        0.03,
        0.5,
        0.01175,
        "saves 470 ms of a wake expected in 40 s",
    )
    header, first, second, last = plans.shown(
        PlanView((toad, frog), "linear program", 0.123, 0.01175)
    ).splitlines()
    assert header.split()[-1] == "WHY"
    assert first.split() == [
        "toad", "a", "hot", "hot", "40", "s", "30", "ms", "500", "ms", "11.750",
        "saves", "470", "ms", "of", "a", "wake", "expected", "in", "40", "s",
    ]  # fmt: skip
    assert second.endswith("  0.000  GPU memory of node a is full: toad is worth more")
    assert last == (
        "2 models by linear program in 0.12 s; in all 11.750 ms of waiting saved a second, less the price"
    )
    one = plans.shown(PlanView((toad,), "linear program", 0.0, 0.01175)).splitlines()[-1]
    assert one.startswith("1 model by ")


def test_a_plan_of_nothing_says_so() -> None:
    shown = plans.shown(PlanView((), "linear program", 0.0, 0.0))
    assert shown.startswith("no model idles that the plan puts to rest")
