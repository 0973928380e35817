"""Arguments that nothing can have are refused before anything is read, by one sentence."""

import argparse
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from woodfrog.cli import options
from woodfrog.cli import program as cli
from woodfrog.cli.program import parser
from woodfrog.engine import settings
from woodfrog.errors import InvalidArgument
from woodfrog.model import spec

ADD = ["models", "add", "frog", "folder"]
NOT_NUMERIC = ("home", "what_if", "since", "until", "last", "tenant", "node_tenants")
NO_NUMBERS = (
    "x",
    "",
    "nan",
    "inf",
    "-inf",
    "-nan",
    "-1e999",
    "-1e5",
    "-.5e-3",
    "1e400",
    "1.5.1",
    "9" * 5000,
)


def numeric_options() -> Iterator[tuple[list[str], str]]:
    """Of each verb, what else it must be given, and each option that takes a number."""

    def walk(
        of: argparse.ArgumentParser, typed: list[str]
    ) -> Iterator[tuple[list[str], argparse.Action]]:
        for action in of._actions:
            if isinstance(action, argparse._SubParsersAction):
                for verb, below in action.choices.items():
                    yield from walk(below, [*typed, verb])
        positional = [a.dest for a in of._actions if not a.option_strings and not a.choices]
        for action in of._actions:
            numeric = action.type is not None and action.dest not in NOT_NUMERIC
            if numeric and action.option_strings:
                yield [*typed, *positional], action

    return ((typed, action.option_strings[0]) for typed, action in walk(parser(), []))


@pytest.mark.parametrize("wrong", NO_NUMBERS)
@pytest.mark.parametrize("apart", [False, True])
def test_what_is_no_number_is_told_in_one_sentence(
    apart: bool, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = list(numeric_options())
    assert len(options) > 11
    for typed, option in options:
        with pytest.raises(SystemExit) as ended:
            parser().parse_args([*typed, *((option, wrong) if apart else (f"{option}={wrong}",))])
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert re.fullmatch(
            rf"woodfrog [a-z ]+: argument {option}: '.*' is not a (whole )?number from \S+ to .+; see: .+ --help\n",
            said,
        ), said
        assert len(said) < 250


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["up", "--nodes", "x"], "'x' is not a whole number from 1 to 16;"),
        (["up", "--routers", "17"], "'17' is not a whole number from 1 to 16;"),
        ([*ADD, "--park-after", "inf"], "'inf' is not a number from 0 to 3162240000 seconds;"),
        ([*ADD, "--freeze-after", "-1"], "'-1' is not a number from 0 to 3162240000 seconds;"),
        ([*ADD, "--priority", "0"], "'0' is not a number from 0.01 to 100;"),
        ([*ADD, "--memory", "nan"], "'nan' is not a number from 0.015625 to 1048576 GiB;"),
        ([*ADD, "--dtype", "int3"], "argument --dtype: invalid choice: 'int3' (choose from"),
        (["models", "add", "frog", ""], "argument path: it is empty; give a path;"),
        (["--home", "/dev/null/frog", "ps"], "'/dev/null/frog' is not a folder, nor below one;"),
        (
            ["usage", "--since", "soon"],
            "'soon' is not a time such as 2026-11-26 or 2026-11-26T14:00;",
        ),
        (["usage", "--until", "9" * 5000], "…' is not a time such as"),
        (["usage", "--last", "0h"], "'0h' is not a span such as 24h or 7d, of ten years at most;"),
        (["usage", "--last", "9" * 5000 + "d"], "…' is not a span such as 24h or 7d,"),
        (["usage", "--last", "1d", "--since", "2026-01-01"], "not allowed with argument --last;"),
        (["usage", "--by", "day"], "invalid choice: 'day' (choose from"),
        (["models"], "woodfrog models: the following arguments are required: action;"),
        (["plan", "--what-if", "-inf"], "'-inf' is none of gpu-price,"),
        ([*ADD, "--slots", "-x"], "argument --slots: expected one argument;"),
        (["ps", "more"], "unrecognized arguments: more;"),
    ],
)
def test_the_sentence_says_what_is_allowed(
    typed: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(typed)
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


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


def test_a_span_is_in_utc_unless_it_says_otherwise() -> None:
    args = parser().parse_args(
        ["usage", "--since", "1970-01-02", "--until", "1970-01-02T02:00+01:00"]
    )
    assert (args.since, args.until, args.last) == (86_400.0, 90_000.0, None)
    assert parser().parse_args(["usage", "--last", "7d"]).last == 168


def test_the_bounds_are_those_of_the_engine() -> None:
    assert settings._BOUNDS["context_tokens"] == (cli._CONTEXT_TOKENS_MIN, cli._CONTEXT_TOKENS_MAX)
    assert settings._BOUNDS["slots"] == (1, spec.SLOTS_MAX)


@pytest.mark.parametrize("read", [options.file, options.folder])
def test_a_path_that_the_system_refuses_is_told_in_one_sentence(
    read: Callable[[str], Path],
) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        read("x" * 300)
    assert "is of no use: File name too long" in str(refused.value)


@pytest.mark.parametrize(
    ("typed", "name", "path"),
    [
        ("frog folder", "frog", "folder"),
        ("frog --slots 4 folder", "frog", "folder"),
        ("--engine llamacpp frog --slots 4 some/file.gguf --compile", "frog", "some/file.gguf"),
        (
            "--engine llamacpp some/wood-frog.Q8_0.gguf",
            "wood-frog.Q8_0",
            "some/wood-frog.Q8_0.gguf",
        ),
        ("some/wood.frog/ --slots 4", "wood.frog", "some/wood.frog/"),
    ],
)
def test_a_model_is_called_as_its_file_where_nothing_else_is_said(
    typed: str, name: str, path: str
) -> None:
    args = cli.parsed(["models", "add", *typed.split()])
    assert (args.name, args.path) == (name, Path(path))


def test_a_name_that_none_can_have_must_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidArgument, match=r"say how: woodfrog models add NAME a frog\.gguf"):
        cli.parsed(["models", "add", "a frog.gguf"])
    for typed in (["a", "b", "c"], ["a", "--slot", "1", "--x"], []):
        with pytest.raises(SystemExit):
            cli.parsed(["models", "add", *typed])
    assert "unrecognized arguments: c" in capsys.readouterr().err
