"""Bad options of the loadtests are told in one sentence, before anything is measured."""

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "typed", "said"),
    [
        ("replay", ["--nodes", "0"], "'0' is not a whole number from 1 to 16;"),
        ("replay", ["--minutes", "inf"], "'inf' is not a number from 0.1 to 1440;"),
        ("replay", ["--trace", "nowhere.csv"], "'nowhere.csv' is not a file that is there;"),
        ("predictions", ["--cases", "frozen,x"], "'x' is none of: parked, frozen, stored;"),
        ("simulate", ["--requests-s", "nan"], "'nan' is not a number from 0.001 to 100000;"),
        ("simulate", ["--policies", ""], "'' is none of: woodfrog, "),
        ("simulate", ["--name", "a/b"], "'a/b' is not letters, digits, '.', '_', '+' and '-';"),
        ("coldstart", ["--runs", "-1"], "'-1' is not a whole number from 1 to 10000;"),
        ("gateway", ["--connections", "1,x"], "'x' is not a whole number from 1 to 8192;"),
        ("placement", ["--decisions", "1.5"], "'1.5' is not a whole number from 1 to 10000000;"),
        ("gpu_ladder", ["--gpu-memory", "x"], "'x' is not a whole number from 1 to 1024 GiB;"),
        ("gpu_correctness", ["--kills", "1,inf"], "'inf' is not a number from 0 to 3600 seconds;"),
        ("shapes", ["no-such", "folder"], "invalid choice: 'no-such' (choose from"),
    ],
)
def test_a_bad_value_is_told_in_one_sentence(
    module: str,
    typed: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [module, *typed])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"loadtest.{module}").main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
