"""Answers that must be JSON, by the engine with the real model: whatever it would like to say, the schema holds."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.capabilities import MODEL, need
from tests.service.engine_process import Engine, running

pytestmark = need("model")

CHAT = "/v1/chat/completions"
FROG = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "legs": {"enum": [2, 4]},
        "wakes": {"type": "boolean"},
    },
    "required": ["name", "legs", "wakes"],
    "additionalProperties": False,
}
QUESTION = [{"role": "user", "content": "Tell me about a frog."}]
FORMAT = {"type": "json_schema", "json_schema": {"name": "frog", "strict": True, "schema": FROG}}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with running(tmp_path_factory.mktemp("engine"), MODEL, CHAT) as engine:
        yield engine


def body(**fields: Any) -> dict[str, Any]:
    return {"messages": QUESTION, "response_format": FORMAT, "temperature": 0, **fields}


def frog(content: str) -> dict[str, Any]:
    value = json.loads(content)
    assert list(value) == ["name", "legs", "wakes"]
    assert isinstance(value["name"], str)
    assert value["legs"] in (2, 4)
    assert value["wakes"] in (True, False)
    return dict(value)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 2.0, "seed": 3},
        {"temperature": 1.0, "top_p": 0.5, "top_k": 40, "frequency_penalty": 1.0},
        {"logit_bias": {"33": 100}},
        {"logprobs": True, "top_logprobs": 2},
    ],
)
async def test_a_schema_holds_beside_all_that_chooses(
    engine: Engine, fields: dict[str, Any]
) -> None:
    (choice,) = (await engine.ask(**body(**fields)))["choices"]
    frog(choice["message"]["content"])
    assert choice["finish_reason"] == "stop"
    if "logprobs" in fields:
        entries = choice["logprobs"]["content"]
        assert "".join(entry["token"] for entry in entries) == choice["message"]["content"]


async def test_seeds_repeat_and_answers_to_one_request_differ(engine: Engine) -> None:
    asked = body(temperature=1.5, seed=5, n=2)
    first, again = [(await engine.ask(**asked))["choices"] for _ in range(2)]
    texts = [choice["message"]["content"] for choice in first]
    assert texts == [choice["message"]["content"] for choice in again]
    assert texts[0] != texts[1]
    for text in texts:
        frog(text)


async def test_company_in_the_batch_is_not_held_to_it(engine: Engine) -> None:
    free = {"messages": QUESTION, "temperature": 0, "max_tokens": 12}
    alone = await engine.ask(**free)
    together, kept = await asyncio.gather(engine.ask(**free), engine.ask(**body()))
    frog(kept["choices"][0]["message"]["content"])
    content = together["choices"][0]["message"]["content"]
    assert content == alone["choices"][0]["message"]["content"]


async def test_any_object(engine: Engine) -> None:
    asked = body(response_format={"type": "json_object"}, max_tokens=400)
    (choice,) = (await engine.ask(**asked))["choices"]
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)
    else:  # it found no end, but it began as an object does
        assert choice["message"]["content"].startswith("{")


async def test_what_ends_an_answer_early_ends_this_one_too(engine: Engine) -> None:
    short = (await engine.ask(**body(max_tokens=3)))["choices"][0]
    assert short["finish_reason"] == "length"
    stopped = (await engine.ask(**body(stop="legs")))["choices"][0]
    assert stopped["finish_reason"] == "stop"
    assert stopped["message"]["content"].endswith(', "')


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "frog"}, "frog"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"not": {"type": "string"}}, "not"),
    ],
)
async def test_a_schema_that_cannot_be_followed_is_refused(
    engine: Engine, schema: dict[str, Any], said: str
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "frog", "schema": schema}}
    status, answer = await engine.raw(json.dumps(body(response_format=form)).encode())
    error = answer["error"]
    assert (status, error["code"]) == (400, "invalid_json_schema")
    assert error["param"] == "response_format.json_schema.schema"
    assert said in error["message"]
    assert "\n" not in error["message"]


async def test_it_holds_after_a_park_too(engine: Engine) -> None:
    before = (await engine.ask(**body()))["choices"][0]["message"]["content"]
    await engine.lowered_and_thawed("park")
    assert (await engine.ask(**body()))["choices"][0]["message"]["content"] == before
