"""`/v1/responses`: its body as a chat's, and an answer's pieces as its events."""

from typing import Any

import pytest

from woodfrog.engine.parse import Limits
from woodfrog.engine.render import Envelope
from woodfrog.engine.request import GenerationRequest, Piece, Sampling, TokenLogprob
from woodfrog.engine.responses import chat_body, response_request
from woodfrog.engine.responses_render import ResponseRenderer
from woodfrog.engine.tool_format import ToolFormat
from woodfrog.engine.tools import ToolUse
from woodfrog.errors import InvalidArgument, Unavailable

LIMITS = Limits(64, 256, 4, schemas=True, tool_format=ToolFormat.HERMES)
POND = {"type": "function", "name": "pond", "parameters": {"type": "object"}}


def request(**body: Any) -> GenerationRequest:
    def encode(messages: list[dict[str, Any]], **_: Any) -> list[int]:
        return list("".join(message["content"] for message in messages).encode())

    return response_request({"input": "hello", **body}, LIMITS, encode)


def test_a_text_and_instructions_are_two_messages() -> None:
    assert chat_body({"input": "hello", "instructions": "be brief"})["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
    ]
    assert request(max_output_tokens=7).max_tokens == 7


def test_items_of_earlier_answers_become_messages() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "pond", "arguments": "{}", "id": "x"}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "look"}]},
        {"type": "reasoning", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I"}]},
        call,
        {**call, "call_id": "c2"},
        {"type": "function_call_output", "call_id": "c1", "output": "frogs"},
    ]
    user, assistant, tool = chat_body({"input": items})["messages"]
    assert user == {"role": "user", "content": [{"type": "text", "text": "look"}]}
    assert [made["id"] for made in assistant["tool_calls"]] == ["c1", "c2"]
    assert tool == {"role": "tool", "tool_call_id": "c1", "content": "frogs"}


def test_tools_and_formats_are_a_chats() -> None:
    named = request(tools=[POND], tool_choice={"type": "function", "name": "pond"})
    assert named.tools
    assert named.tools.names == {"pond"}
    assert named.schema == named.tools.forced
    form = {"type": "json_schema", "name": "frog", "strict": True, "schema": {"type": "object"}}
    kept = request(text={"format": form})
    assert kept.schema
    assert kept.schema.text == '{"type": "object"}'
    assert request(include=["message.output_text.logprobs"]).sampling.logprobs == 0
    assert request(top_logprobs=2).sampling.logprobs == 2


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("input", {"input": None}),
        ("input", {"input": []}),
        ("input", {"input": ""}),
        ("input", {"input": "x" * 99}),
        ("input", {"input": [{"type": "reasoning"}]}),
        ("input[0]", {"input": ["hello"]}),
        ("input[0].type", {"input": [{"type": "item_reference", "id": "x"}]}),
        ("input[0].role", {"input": [{"role": "judge", "content": "x"}]}),
        ("input[0].content", {"input": [{"role": "user"}]}),
        (
            "input[0].content[0].type",
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
        ),
        ("input[0].arguments", {"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}),
        ("input[0].call_id", {"input": [{"type": "function_call_output", "output": "x"}]}),
        ("instructions", {"instructions": 1}),
        ("previous_response_id", {"previous_response_id": "resp_1"}),
        ("conversation", {"conversation": "conv_1"}),
        ("prompt", {"prompt": {"id": "x"}}),
        ("background", {"background": True}),
        ("truncation", {"truncation": "auto"}),
        ("include", {"include": ["file_search_call.results"]}),
        ("max_output_tokens", {"max_output_tokens": 0}),
        ("temperature", {"temperature": 3}),
        ("top_logprobs", {"top_logprobs": 21}),
        ("reasoning", {"reasoning": "much"}),
        ("reasoning.effort", {"reasoning": {"effort": "high"}}),
        ("text", {"text": "plain"}),
        ("text.verbosity", {"text": {"verbosity": "low"}}),
        ("text.format.type", {"text": {"format": {"type": "xml"}}}),
        ("text.format.name", {"text": {"format": {"type": "json_schema", "schema": {}}}}),
        ("tools[0].type", {"tools": [{"type": "web_search"}]}),
        ("tools[0].name", {"tools": [{"type": "function"}]}),
        ("tool_choice.name", {"tools": [POND], "tool_choice": {"type": "function", "name": "x"}}),
    ],
)
def test_what_is_refused_is_named_as_the_client_named_it(param: str, body: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        request(**body)
    assert refusal.value.metadata["param"] == param
    assert "'messages" not in refusal.value.message
    assert "completion_tokens" not in refusal.value.message


def rendered(*texts: str, reason: str = "stop", tools: bool = False) -> list[dict[str, Any]]:
    """Events of an answer in these pieces."""
    render = renderer(tools=tools)
    pieces = [Piece(text, [], 1, None) for text in texts] + [Piece("", [], 1, reason)]
    return [event for piece in pieces for event in render.events(0, piece)]


def renderer(
    *, tools: bool = False, logprobs: int | None = None, said: dict[str, Any] | None = None
) -> ResponseRenderer:
    """`said` is the response's body."""
    shown = [{"type": "function", "function": {"name": "pond", "parameters": {}}}]
    asked = GenerationRequest(
        chat=True,
        prompts=[[1, 2, 3]],
        n=1,
        max_tokens=9,
        sampling=Sampling(logprobs=logprobs),
        stops=[],
        stream=True,
        include_usage=False,
        ignore_eos=False,
        tools=ToolUse(ToolFormat.HERMES, shown, None, True) if tools else None,
    )
    return ResponseRenderer(
        asked,
        Envelope("resp_1", 7, "frog", "fp"),
        lambda token: bytes([token]),
        said or {"user": "me"},
    )


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_a_text_has_openais_events_in_their_order() -> None:
    events = rendered("he", "llo")
    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(10))
    assert events[2]["item"]["content"] == []
    assert events[3]["part"]["text"] == ""
    response = events[-1]["response"]
    assert response["status"] == "completed"
    assert response["user"] == "me"
    assert response["output"] == [events[-2]["item"]]
    assert response["output"][0]["content"][0]["text"] == "hello"
    assert response["usage"]["input_tokens"] == 3
    assert [*response][-1] == "usage", "behind all that is echoed, for who counts by the end"
    assert response["usage"]["output_tokens"] == 3
    assert {e["item_id"] for e in events if "item_id" in e} == {response["output"][0]["id"]}


def test_the_limits_end_is_an_incomplete_response() -> None:
    last = rendered("he", reason="length")[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["output"][0]["status"] == "incomplete"


def test_no_text_is_an_empty_message() -> None:
    (message,) = rendered()[-1]["response"]["output"]
    assert message["content"][0]["text"] == ""


def test_a_call_is_an_item_of_its_own() -> None:
    events = rendered(
        "I look.", '<tool_call>{"name": "pond", "arguments": {"a"', ": 1}}</tool_call>", tools=True
    )
    message, call = events[-1]["response"]["output"]
    assert message["content"][0]["text"] == "I look."
    assert (call["type"], call["name"], call["arguments"]) == ("function_call", "pond", '{"a": 1}')
    assert kinds(events)[-6:] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert events[-6]["item"]["arguments"] == ""
    assert {e["output_index"] for e in events[-6:-1]} == {1}


def test_logprobs_go_with_their_text() -> None:
    entry = TokenLogprob(65, -0.5, [(66, -0.7)])
    render = renderer(logprobs=1)
    events = render.events(0, Piece("A", [entry], 1, None)) + render.events(
        0, Piece("", [entry], 1, "stop")
    )
    (delta,) = [event for event in events if event["type"].endswith("text.delta")]
    assert [told["token"] for told in delta["logprobs"]] == ["A"]
    (part,) = events[-1]["response"]["output"][0]["content"]
    assert len(part["logprobs"]) == 2


def test_a_whole_response_is_what_the_stream_ends_with() -> None:
    whole = renderer().whole([Piece("hello", [], 3, "stop")])
    assert whole == rendered("he", "llo")[-1]["response"]


def test_a_failure_in_the_middle_has_its_event() -> None:
    render = renderer()
    begun = render.events(0, Piece("he", [], 1, None))
    (failed,) = render.failure(Unavailable("ENGINE_FAILED", "the engine died"))
    assert failed["type"] == "response.failed"
    assert failed["sequence_number"] == begun[-1]["sequence_number"] + 1
    assert failed["response"]["error"] == {"code": "server_error", "message": "the engine died"}
