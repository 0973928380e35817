"""Calls of functions by the engine with the real model, whose template shows tools, read by the official client."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.capabilities import need
from tests.memory.tool_templates import with_tools
from tests.service.engine_process import Engine, running

pytestmark = need("model")

POND: Any = {
    "type": "function",
    "function": {
        "name": "look_into_pond",
        "description": "Looks what lives in a pond.",
        "parameters": {
            "type": "object",
            "properties": {"depth": {"enum": ["shallow", "deep"]}, "at_night": {"type": "boolean"}},
            "required": ["depth", "at_night"],
            "additionalProperties": False,
        },
    },
}
TREE: Any = {
    "type": "function",
    "function": {
        "name": "climb_tree",
        "parameters": {
            "type": "object",
            "properties": {"metres": {"$ref": "#/$defs/metres"}},
            "required": ["metres"],
            "additionalProperties": False,
            "$defs": {"metres": {"type": "integer", "minimum": 1, "maximum": 9}},
        },
    },
}
NAMED: Any = {"type": "function", "function": {"name": "climb_tree"}}
MESSAGES: Any = [{"role": "user", "content": "What lives in the pond?"}]
ASKED: dict[str, Any] = {"model": "frog", "messages": MESSAGES, "tools": [POND, TREE]}


def check(name: str, arguments: str) -> None:
    given = json.loads(arguments)
    if name == "climb_tree":
        assert set(given) == {"metres"}
        assert 1 <= given["metres"] <= 9
    else:
        assert name == "look_into_pond"
        assert given["depth"] in ("shallow", "deep")
        assert given["at_night"] in (True, False)


@pytest.mark.parametrize("choice", ["required", NAMED])
async def test_a_call_that_must_be_made_is_made(api_engine: Engine, choice: Any) -> None:
    async with api_engine.client() as client:
        answer = await client.chat.completions.create(
            **ASKED, tool_choice=choice, temperature=1.3, seed=1, n=2
        )
    assert len({call.id for c in answer.choices for call in c.message.tool_calls or []}) == 2
    for chosen in answer.choices:
        assert chosen.finish_reason == "tool_calls"
        assert chosen.message.content is None
        (call,) = chosen.message.tool_calls or []
        assert call.type == "function"
        check(call.function.name, call.function.arguments)
        if choice is NAMED:
            assert call.function.name == "climb_tree"


async def test_a_streamed_call_is_the_same_one(api_engine: Engine) -> None:
    asked = {**ASKED, "tool_choice": "required", "temperature": 0}
    async with api_engine.client() as client:
        whole = await client.chat.completions.create(**asked)
        async with client.chat.completions.stream(**asked) as stream:
            deltas = [event.type async for event in stream]
            streamed = (await stream.get_final_completion()).choices[0]
    (expected,) = whole.choices[0].message.tool_calls or []
    (call,) = streamed.message.tool_calls or []
    assert expected.type == call.type == "function"
    assert (call.function.name, call.function.arguments) == (
        expected.function.name,
        expected.function.arguments,
    )
    assert streamed.finish_reason == "tool_calls"
    assert deltas.count("tool_calls.function.arguments.delta") > 2


async def test_calls_and_their_results_reach_the_template(api_engine: Engine) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "look_into_pond", "arguments": '{"depth": "deep", "at_night": true}'},
    }
    told: Any = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Two frogs."},
    ]
    asked = {**ASKED, "max_tokens": 8, "temperature": 0}
    async with api_engine.client() as client:
        short = await client.chat.completions.create(**asked)
        answer = await client.chat.completions.create(**{**asked, "messages": told})
        bare = await client.chat.completions.create(**{**asked, "tool_choice": "none"})
    assert answer.choices[0].message.content
    assert short.usage
    assert answer.usage
    assert bare.usage
    assert bare.usage.prompt_tokens < short.usage.prompt_tokens < answer.usage.prompt_tokens


@pytest.fixture
def whole(tmp_path: Path) -> Iterator[Engine]:
    model = with_tools(tmp_path / "model", layers=30)
    with running(tmp_path, model, "/v1/chat/completions") as engine:
        yield engine


async def test_a_call_of_its_own_accord(whole: Engine) -> None:
    """The whole model has seen it done twice; nothing forces it."""
    example = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "look_into_pond", "arguments": '{"depth": "deep", "at_night": true}'},
    }
    turn = [
        *MESSAGES,
        {"role": "assistant", "content": "", "tool_calls": [example]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Two frogs."},
        {"role": "assistant", "content": "Two frogs live there."},
    ]
    asked = {**ASKED, "messages": [*turn, *turn, *MESSAGES], "temperature": 0, "max_tokens": 60}
    async with whole.client() as client:
        answer = await client.chat.completions.create(**asked)
    (choice,) = answer.choices
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    check(call.function.name, call.function.arguments)
    assert choice.finish_reason == "tool_calls"


async def test_parameters_that_cannot_be_followed_are_refused(api_engine: Engine) -> None:
    bad: Any = {"type": "function", "function": {"name": "x", "parameters": {"type": "frog"}}}
    async with api_engine.client() as client:
        with pytest.raises(openai.BadRequestError) as refusal:
            await client.chat.completions.create(
                **{**ASKED, "tools": [bad], "tool_choice": "required"}
            )
    assert refusal.value.param == "tools[0].function.parameters"
    assert refusal.value.code == "invalid_json_schema"
