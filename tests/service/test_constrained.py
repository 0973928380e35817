"""Answers that must be JSON, by the engine with the real model: whatever it would like to say, the schema holds."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.capabilities import need
from tests.service.engine_process import DEADLINE_S, Engine

pytestmark = need("model")

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


def large(letter: str) -> dict[str, Any]:
    """One that takes most of a second to compile, and then has too much that may come next."""
    properties = {f"{letter}{n}": {"type": "string"} for n in range(3900)}
    schema = {"type": "object", "properties": properties}
    return {"type": "json_schema", "json_schema": {"name": "large", "schema": schema}}


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
    api_engine: Engine, fields: dict[str, Any]
) -> None:
    (choice,) = (await api_engine.ask(**body(**fields)))["choices"]
    frog(choice["message"]["content"])
    assert choice["finish_reason"] == "stop"
    if "logprobs" in fields:
        entries = choice["logprobs"]["content"]
        assert "".join(entry["token"] for entry in entries) == choice["message"]["content"]


async def test_seeds_repeat_and_answers_to_one_request_differ(api_engine: Engine) -> None:
    asked = body(temperature=1.5, seed=5, n=2)
    first, again = [(await api_engine.ask(**asked))["choices"] for _ in range(2)]
    texts = [choice["message"]["content"] for choice in first]
    assert texts == [choice["message"]["content"] for choice in again]
    assert texts[0] != texts[1]
    for text in texts:
        frog(text)


async def test_company_in_the_batch_is_not_held_to_it(api_engine: Engine) -> None:
    free = {"messages": QUESTION, "temperature": 0, "max_tokens": 12}
    together, kept = await asyncio.gather(api_engine.ask(**free), api_engine.ask(**body()))
    frog(kept["choices"][0]["message"]["content"])
    assert not together["choices"][0]["message"]["content"].startswith("{")


async def test_any_object(api_engine: Engine) -> None:
    asked = body(response_format={"type": "json_object"}, max_tokens=60)
    (choice,) = (await api_engine.ask(**asked))["choices"]
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)
    else:  # it found no end, but it began as an object does
        assert choice["message"]["content"].startswith("{")


async def test_what_ends_an_answer_early_ends_this_one_too(api_engine: Engine) -> None:
    short = (await api_engine.ask(**body(max_tokens=3)))["choices"][0]
    assert short["finish_reason"] == "length"
    stopped = (await api_engine.ask(**body(stop="legs")))["choices"][0]
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
    api_engine: Engine, schema: dict[str, Any], said: str
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "frog", "schema": schema}}
    status, answer = await api_engine.raw(json.dumps(body(response_format=form)).encode())
    error = answer["error"]
    assert (status, error["code"]) == (400, "invalid_json_schema")
    assert error["param"] == "response_format.json_schema.schema"
    assert said in error["message"]
    assert "\n" not in error["message"]


async def test_it_holds_after_a_park_too(api_engine: Engine) -> None:
    before = (await api_engine.ask(**body()))["choices"][0]["message"]["content"]
    await api_engine.lowered_and_thawed("park")
    assert (await api_engine.ask(**body()))["choices"][0]["message"]["content"] == before


async def test_others_tokens_come_while_a_large_schema_is_compiled(api_engine: Engine) -> None:
    """It takes as long as many tokens."""
    form = large("a")
    endless = {"messages": QUESTION, "max_tokens": 1500, "ignore_eos": True, "stream": True}
    connector = aiohttp.UnixConnector(path=str(api_engine.socket))
    async with aiohttp.ClientSession("http://engine", connector=connector) as client:
        async with client.post(api_engine.path, json=endless) as response:
            await response.content.readuntil(b"\n\n")
            raw = json.dumps(body(response_format=form)).encode()
            asked = asyncio.ensure_future(api_engine.raw(raw))
            seen = 0
            while not asked.done():
                event = await response.content.readuntil(b"\n\n")
                assert event.startswith((b"data: {", b": usage "))
                seen += 1
    status, answer = await asked
    assert (status, answer["error"]["code"]) == (400, "schema_too_complex")
    assert seen >= 8


async def test_no_thread_of_a_client_that_left_is_there_at_rest(api_engine: Engine) -> None:
    threads = Path(f"/proc/{api_engine.pid}/task")
    before = len(list(threads.iterdir()))
    form = large("b")
    left = asyncio.ensure_future(api_engine.ask(**body(response_format=form, max_tokens=1)))
    async with asyncio.timeout(DEADLINE_S):
        while len(list(threads.iterdir())) == before:
            await asyncio.sleep(0.001)
    left.cancel()
    await api_engine.call("quiesce")
    try:
        assert len(list(threads.iterdir())) == before
    finally:
        await api_engine.lowered_and_thawed("quiesce")
