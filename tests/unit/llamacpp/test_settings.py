"""The environment of a llama.cpp replica: what is right is taken, what is wrong is named."""

from pathlib import Path

import pytest

from woodfrog.errors import InvalidArgument
from woodfrog.llamacpp.settings import load


def environ(folder: Path, **more: str) -> dict[str, str]:
    names = ("SOCKET", "CONTROL", "MODEL")
    return {**{f"WOODFROG_{name}": str(folder) for name in names}, **more}


def test_the_first_part_of_a_model_is_named(tmp_path: Path) -> None:
    for part in (2, 1):
        (tmp_path / f"m-0000{part}-of-00002.gguf").touch()
    arguments = '{"slots": 3, "threads": 2, "context_tokens": 0}'
    settings = load(environ(tmp_path, WOODFROG_ENGINE_ARGS=arguments))
    assert settings.model.name == "m-00001-of-00002.gguf"
    assert settings.model_name == tmp_path.name
    assert (settings.arguments.slots, settings.arguments.threads) == (3, 2)
    assert settings.inner.parent == settings.socket.parent


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"WOODFROG_SOCKET": ""}, "WOODFROG_SOCKET is not set"),
        ({"WOODFROG_ENGINE_ARGS": "[]"}, "not a JSON object"),
        ({"WOODFROG_ENGINE_ARGS": '{"compile": 1}'}, "'compile' is unknown"),
        ({"WOODFROG_ENGINE_ARGS": '{"slots": 256}'}, "slots is a whole number from 1 to 255"),
        ({"WOODFROG_ENGINE_ARGS": '{"threads": true}'}, "threads is a whole number"),
        ({"WOODFROG_DEVICE_MEMORY": "a:b"}, "runs on the CPU"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, more: dict[str, str], why: str) -> None:
    (tmp_path / "m.gguf").touch()
    with pytest.raises(InvalidArgument, match=why):
        load(environ(tmp_path, **more))
