"""Arguments that no model can have are refused before anything is read."""

import pytest

from woodfrog.cli import __main__ as cli
from woodfrog.cli.__main__ import parser
from woodfrog.engine import settings
from woodfrog.model import spec

ADD = ["models", "add", "frog", "folder"]


@pytest.mark.parametrize(
    "wrong",
    [
        *(["--memory", text] for text in ("nan", "inf", "-1", "0", "1e9", "much")),
        *(["--gpu-memory", text] for text in ("nan", "-1", "0", "much")),
        *(["--context", text] for text in ("0", "-5", "99999999", "1.5", "9" * 5000)),
        ["--slots", "x"],
    ],
)
def test_wrong_sizes_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(ADD + wrong)
    assert f"argument {wrong[0]}: " in capsys.readouterr().err


def test_sizes_are_read() -> None:
    args = parser().parse_args([*ADD, "--memory", "0.5", "--context", "16"])
    assert (args.memory, args.context, args.gpu_memory) == (1 << 29, 16, 0)
    args = parser().parse_args([*ADD, "--gpu-memory", "1.5"])
    assert args.gpu_memory == 3 << 29


@pytest.mark.parametrize("wrong", ["nan", "-1", "inf", "soon"])
def test_a_wait_is_some_seconds(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parser().parse_args(["nodes", "drain", "a", "--wait", "1.5"]).wait == 1.5
    with pytest.raises(SystemExit):
        parser().parse_args(["nodes", "drain", "a", "--wait", wrong])
    assert "argument --wait: " in capsys.readouterr().err


def test_the_bounds_are_those_of_the_engine() -> None:
    assert settings._BOUNDS["context_tokens"] == (cli._CONTEXT_TOKENS_MIN, cli._CONTEXT_TOKENS_MAX)
    assert settings._BOUNDS["slots"] == (1, spec._SLOTS_MAX)
