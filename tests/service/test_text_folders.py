"""Text models whose folders promise more than the model has: what a client may then ask, and what ends nothing."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.memory import tiny_texts
from tests.memory.tiny_texts import BEYOND, PLACES, WORDS
from tests.service.engine_process import Engine, running


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("engine")
    with running(folder, tiny_texts.make(folder / "model"), "/v1/completions") as engine:
        yield engine


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"prompt": BEYOND}, "invalid_value", "prompt"),
        ({"prompt": f"a b {BEYOND} c"}, "invalid_value", "prompt"),
        ({"prompt": [WORDS]}, "invalid_value", "prompt"),
        ({"prompt": [-1]}, "invalid_value", "prompt"),
        ({"prompt": "a", "logit_bias": {str(WORDS): 1}}, "invalid_value", "logit_bias"),
        ({"prompt": "a" * PLACES}, "context_length_exceeded", "prompt"),
        ({"prompt": "a", "max_tokens": PLACES}, "context_length_exceeded", "prompt"),
    ],
)
async def test_what_the_model_has_no_place_for_is_refused_and_ends_nothing(
    engine: Engine, body: dict[str, Any], code: str, param: str
) -> None:
    status, answer = await engine.raw(json.dumps({"max_tokens": 2, **body}).encode())
    assert status == 400, answer
    assert (answer["error"]["code"], answer["error"]["param"]) == (code, param)
    await engine.ask(prompt="a b", max_tokens=2)


async def test_all_that_it_has_a_place_for_is_answered(engine: Engine) -> None:
    answer = await engine.ask(prompt=[WORDS - 1] * (PLACES - 8), max_tokens=8, ignore_eos=True)
    assert answer["usage"]["total_tokens"] == PLACES
