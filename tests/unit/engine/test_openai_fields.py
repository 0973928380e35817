"""The table of OpenAI's fields in the engine's README: each is honoured, ignored or refused as it says."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from woodfrog.engine.parse import Limits, chat_request, completion_request
from woodfrog.engine.request import GenerationRequest
from woodfrog.engine.responses import response_request
from woodfrog.engine.tool_format import ToolFormat
from woodfrog.errors import InvalidArgument

README = Path(__file__).parents[3] / "services/woodfrog/engine/README.md"
LIMITS = Limits(64, 256, 4, schemas=True, tool_format=ToolFormat.HERMES)
POND = {"type": "function", "function": {"name": "pond"}}
OWN_POND = {"type": "function", "name": "pond"}  # as responses have it
#: A value of each field that is not its default; with what else the request must say, where there is something.
VALUES: dict[str, Any] = {
    "audio": {"voice": "frog", "format": "wav"},
    "background": True,
    "best_of": 3,
    "conversation": "conv_1",
    "echo": True,
    "frequency_penalty": 0.5,
    "function_call": {"name": "pond"},
    "functions": [{"name": "pond"}],
    "include": ["message.output_text.logprobs"],
    "instructions": "be brief",
    "logit_bias": {"33": 1},
    "logprobs": {"chat": True, "completions": 2},
    "max_completion_tokens": 3,
    "max_output_tokens": 3,
    "max_tokens": 3,
    "max_tool_calls": 1,
    "metadata": {"a": "b"},
    "modalities": ["text", "audio"],
    "n": 2,
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "frogs"},
    "presence_penalty": 0.5,
    "previous_response_id": "resp_1",
    "prompt": {"completions": "other", "responses": {"id": "pmpt_1"}},
    "prompt_cache_key": "key",
    "reasoning": {"responses": {"effort": "high"}},
    "reasoning_effort": "high",
    "response_format": {"type": "json_object"},
    "safety_identifier": "me",
    "seed": 7,
    "service_tier": "flex",
    "stop": ["x"],
    "store": True,
    "stream": True,
    "stream_options": {"include_usage": True},
    "suffix": "end",
    "temperature": 0.5,
    "text": {"responses": {"format": {"type": "json_object"}}},
    "tool_choice": "required",
    "tools": {"chat": [POND], "responses": [OWN_POND]},
    "top_logprobs": 2,
    "top_p": 0.5,
    "truncation": "auto",
    "user": "me",
    "verbosity": "low",
    "web_search_options": {},
}
BESIDE: dict[str, dict[str, dict[str, Any]]] = {
    "parallel_tool_calls": {"chat": {"tools": [POND]}, "responses": {"tools": [OWN_POND]}},
    "stream_options": {route: {"stream": True} for route in ("chat", "completions", "responses")},
    "tool_choice": {"chat": {"tools": [POND]}, "responses": {"tools": [OWN_POND]}},
    "top_logprobs": {"chat": {"logprobs": True}},
}


def _encode(messages: list[dict[str, Any]], **_: Any) -> list[int]:
    return list("".join(message["content"] for message in messages).encode())


def chat(body: dict[str, Any]) -> GenerationRequest:
    messages = [{"role": "user", "content": "hello"}]
    return chat_request({"messages": messages, **body}, LIMITS, _encode)


def completions(body: dict[str, Any]) -> GenerationRequest:
    def decode(tokens: list[int]) -> str:
        return bytes(tokens).decode()

    return completion_request(
        {"prompt": "hello", **body}, LIMITS, lambda text: list(text.encode()), decode
    )


def responses(body: dict[str, Any]) -> GenerationRequest:
    return response_request({"input": "hello", **body}, LIMITS, _encode)


ROUTES: dict[str, Callable[[dict[str, Any]], GenerationRequest]] = {
    "chat": chat,
    "completions": completions,
    "responses": responses,
}


def rows() -> list[tuple[str, str, str]]:
    """Field, route, and what the table says of both."""
    _, _, section = README.read_text().partition("## OpenAI's fields")
    lines = re.findall(r"^\| `(\w+)` \|(.*)\|$", section.partition("\n## ")[0], re.MULTILINE)
    assert len(lines) > 40
    return [
        (field, route, said.strip())
        for field, cells in lines
        for route, said in zip(ROUTES, cells.split("|"), strict=False)
        if said.strip() != "–"
    ]


def test_the_table_is_sorted_and_has_each_field_once() -> None:
    fields = list(dict.fromkeys(field for field, _, _ in rows()))
    assert fields == sorted(VALUES)


@pytest.mark.parametrize(("field", "route", "said"), rows())
def test_a_field_is_what_the_table_says(field: str, route: str, said: str) -> None:
    value = VALUES[field]
    if isinstance(value, dict) and value.keys() <= ROUTES.keys() and value:
        value = value[route]
    ask = ROUTES[route]
    beside = BESIDE.get(field, {}).get(route, {})
    plain = ask(beside)
    if (field, route) != ("prompt", "completions"):  # which must be there
        assert ask({**beside, field: None}) == plain
    match said:
        case "honoured":
            assert ask({**beside, field: value}) != plain
        case "ignored":
            assert ask({**beside, field: value}) == plain
        case "refused":
            with pytest.raises(InvalidArgument) as refusal:
                ask({**beside, field: value})
            assert refusal.value.reason == "UNSUPPORTED_PARAMETER"
            assert refusal.value.metadata["param"].partition(".")[0] == field
        case _:
            pytest.fail(f"the table says {said!r}")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user", 1),
        ("store", "yes"),
        ("service_tier", "first"),
        ("metadata", ["a"]),
        ("metadata", {"a": 1}),
        ("metadata", {"a" * 65: "b"}),
        ("metadata", {str(n): "" for n in range(17)}),
        ("prompt_cache_key", {}),
    ],
)
def test_what_is_ignored_has_its_kind(route: str, field: str, value: Any) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        ROUTES[route]({field: value})
    assert refusal.value.metadata["param"] == field
