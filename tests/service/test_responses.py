"""`/v1/responses` of the engine with the real model, as the official client asks and reads it."""

import json
from typing import Any

import openai
import pydantic
import pytest
from tests.capabilities import need
from tests.service.engine_process import Engine

pytestmark = need("model")

ASKED: dict[str, Any] = {
    "model": "frog",
    "input": "What is the capital of France?",
    "temperature": 0,
    "max_output_tokens": 20,
}
POND: Any = {
    "type": "function",
    "name": "pond",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"depth": {"enum": ["shallow", "deep"]}},
        "required": ["depth"],
        "additionalProperties": False,
    },
}


class Frog(pydantic.BaseModel):
    legs: int
    wakes: bool


async def test_the_client_reads_a_response(api_engine: Engine) -> None:
    async with api_engine.client() as client:
        response = await client.responses.create(**ASKED, instructions="Answer in one sentence.")
        chat = await client.chat.completions.create(
            model="frog",
            messages=[
                {"role": "system", "content": "Answer in one sentence."},
                {"role": "user", "content": ASKED["input"]},
            ],
            temperature=0,
            max_tokens=20,
        )
    assert response.status in ("completed", "incomplete")
    assert response.output_text == chat.choices[0].message.content
    assert response.usage
    assert chat.usage
    assert response.usage.total_tokens == chat.usage.total_tokens
    assert (response.model, response.store) == ("frog", False)


async def test_a_streamed_response_is_the_same_one(api_engine: Engine) -> None:
    form = {"type": "json_schema", "name": "pond", "strict": True, "schema": POND["parameters"]}
    asked = {**ASKED, "text": {"format": form}}  # it ends by itself
    async with api_engine.client() as client:
        whole = await client.responses.create(**asked)
        async with client.responses.stream(**asked) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == final.output_text == whole.output_text
    assert final.usage == whole.usage


async def test_the_limit_makes_it_incomplete(api_engine: Engine) -> None:
    async with api_engine.client() as client:
        response = await client.responses.create(**{**ASKED, "max_output_tokens": 2})
    assert response.status == "incomplete"
    assert response.incomplete_details
    assert response.incomplete_details.reason == "max_output_tokens"


async def test_a_form_is_kept_and_parsed(api_engine: Engine) -> None:
    async with api_engine.client() as client:
        response = await client.responses.parse(
            model="frog", input="Describe a frog.", text_format=Frog, temperature=0
        )
    assert isinstance(response.output_parsed, Frog)


async def test_a_call_and_its_result(api_engine: Engine) -> None:
    asked: dict[str, Any] = {
        "model": "frog", "tools": [POND], "temperature": 0, "max_output_tokens": 40,
        "input": [{"role": "user", "content": "What lives in the pond?"}],
    }  # fmt: skip
    async with api_engine.client() as client:
        async with client.responses.stream(**asked, tool_choice="required") as stream:
            kinds = [event.type async for event in stream]
            response = await stream.get_final_response()
        (call,) = response.output
        assert call.type == "function_call"
        assert json.loads(call.arguments)["depth"] in ("shallow", "deep")
        assert "response.function_call_arguments.delta" in kinds
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "Two frogs."}
        made = {
            k: v
            for k, v in call.model_dump().items()
            if k in ("type", "call_id", "name", "arguments")
        }
        follow = await client.responses.create(
            **{**asked, "input": [*asked["input"], made, result]}
        )
    assert follow.output


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("previous_response_id", {"previous_response_id": "resp_1"}),
        ("text.format.schema", {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "frog"}}}}),
        ("max_output_tokens", {"max_output_tokens": 0}),
    ],
)  # fmt: skip
async def test_refusals_name_the_field(
    api_engine: Engine, param: str, body: dict[str, Any]
) -> None:
    async with api_engine.client() as client:
        with pytest.raises(openai.BadRequestError) as refusal:
            await client.responses.create(**{**ASKED, **body})
    assert refusal.value.param == param
