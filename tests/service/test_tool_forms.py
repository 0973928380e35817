"""Calls in forms that the test model's own template does not show: its folder with other templates."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.capabilities import need
from tests.memory.tool_templates import with_tools
from tests.service.engine_process import Engine, running
from tests.service.test_tools import ASKED, NAMED, check

pytestmark = need("model")

TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CALLS = {
    "named": "{{ tools }} [TOOL_CALLS]name[ARGS]{}",
    "tagged": "{{ tools }} <tool_call><function=x><parameter=y>",
}


@pytest.fixture(scope="module", params=list(CALLS))
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("engine")
    template = TURN + CALLS[request.param] + "<|im_start|>assistant\n"
    model = with_tools(folder / "model", template)
    with running(folder, model, "/v1/chat/completions") as engine:
        yield engine


@pytest.mark.parametrize("choice", ["required", NAMED])
async def test_a_call_that_must_be_made_is_made_streamed_or_not(
    engine: Engine, choice: object
) -> None:
    asked = {**ASKED, "tool_choice": choice, "temperature": 1.0, "seed": 3}
    tools: Any = [{"type": "function", **tool["function"]} for tool in ASKED["tools"]]
    async with engine.client() as client:
        whole = (await client.chat.completions.create(**asked)).choices[0]
        async with client.chat.completions.stream(**asked) as stream:
            streamed = (await stream.get_final_completion()).choices[0]
        response = await client.responses.create(
            model="frog",
            input="What lives in the pond?",
            tools=tools,
            tool_choice="required",
        )
    (call,) = whole.message.tool_calls or []
    (again,) = streamed.message.tool_calls or []
    assert call.type == again.type == "function"
    check(call.function.name, call.function.arguments)
    assert (again.function.name, json.loads(again.function.arguments)) == (
        call.function.name,
        json.loads(call.function.arguments),
    )
    assert whole.finish_reason == streamed.finish_reason == "tool_calls"
    (item,) = response.output
    assert item.type == "function_call"
    check(item.name, item.arguments)
