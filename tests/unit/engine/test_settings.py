"""The engine's environment: complete, or refused with the variable's name."""

from pathlib import Path

import pytest

from woodfrog.engine.settings import load, parse_arguments
from woodfrog.errors import InvalidArgument


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "config.json").write_text("{}")
    return {
        "WOODFROG_SOCKET": "/run/a.sock",
        "WOODFROG_CONTROL": "/run/b.sock",
        "WOODFROG_MODEL": str(tmp_path),
        "WOODFROG_MODEL_NAME": "frog",
        "WOODFROG_ENGINE_ARGS": '{"slots": 2, "threads": 3}',
    }


def test_everything_is_read(environ: dict[str, str]) -> None:
    settings = load(environ)
    assert settings.socket == Path("/run/a.sock")
    assert settings.model_name == "frog"
    assert (settings.arguments.slots, settings.arguments.threads) == (2, 3)
    assert settings.arguments.context_tokens == 2048


def test_threads_follow_the_cpus_that_may_be_used() -> None:
    assert parse_arguments("{}").threads >= 1


@pytest.mark.parametrize("name", ["WOODFROG_SOCKET", "WOODFROG_CONTROL", "WOODFROG_MODEL"])
def test_a_missing_variable_is_named(environ: dict[str, str], name: str) -> None:
    del environ[name]
    with pytest.raises(InvalidArgument, match=name):
        load(environ)


def test_a_folder_without_a_model_is_refused(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "config.json").unlink()
    with pytest.raises(InvalidArgument, match=r"config\.json"):
        load(environ)


@pytest.mark.parametrize(
    "text", ["[", "[]", '{"slot": 1}', '{"slots": 0}', '{"slots": true}', '{"slots": "2"}']
)
def test_arguments_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(InvalidArgument, match="WOODFROG_ENGINE_ARGS"):
        parse_arguments(text)
