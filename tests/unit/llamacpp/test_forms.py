"""What OpenAI's answers have beside what llama.cpp says."""

import json
from typing import Any

import pytest

from woodfrog.llamacpp import forms

ROOM = 100
RESPONSES, CHAT = "/v1/responses", "/v1/chat/completions"
BODY = {"model": "frog", "temperature": 0.5, "tools": [{"type": "function", "name": "pond"}]}
EVENTS: list[dict[str, Any]] = [
    {"type": "response.created", "response": {"id": "r", "object": "response"}},
    {"type": "response.output_item.added", "item": {"id": "m", "type": "message", "content": []}},
    {"type": "response.output_text.delta", "item_id": "m", "delta": "\n\ndata: {"},
    {"type": "response.output_item.added", "item": {"id": "f", "type": "function_call"}},
    {"type": "response.function_call_arguments.delta", "item_id": "f", "delta": "{"},
    {"type": "response.content_part.done", "item_id": "m", "part": {"type": "output_text", "text": "x"}},
]  # fmt: skip


def sent(events: list[dict[str, Any]]) -> bytes:
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), json.dumps(event).encode())
        for event in events
    )


def fed(data: bytes, size: int) -> list[dict[str, Any]]:
    events = forms.events(RESPONSES, BODY, 7.5, ROOM)
    assert events is not None
    whole = b"".join(events.feed(data[at : at + size]) for at in range(0, len(data), size))
    assert events.end() == b""
    lines = whole.split(b"\n")
    assert lines[:2] == [b"event: response.created", lines[1]]
    return [json.loads(line[6:]) for line in lines if line.startswith(b"data: ")]


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_events_are_numbered_and_placed_however_their_bytes_come(size: int) -> None:
    created, first, delta, second, arguments, done = fed(sent(EVENTS), size)
    numbers = [event["sequence_number"] for event in (created, first, delta, second, arguments)]
    assert numbers == [0, 1, 2, 3, 4]
    places = [event["output_index"] for event in (first, delta, second, arguments, done)]
    assert places == [0, 0, 1, 1, 0]
    assert (delta["content_index"], delta["logprobs"], delta["delta"]) == (0, [], "\n\ndata: {")
    assert done["part"] == {"type": "output_text", "text": "x", "annotations": [], "logprobs": []}
    response = created["response"]
    assert (response["id"], response["created_at"], response["model"]) == ("r", 7, "frog")
    assert (response["temperature"], response["top_p"], response["output"]) == (0.5, 1.0, [])
    assert response["tools"][0]["strict"] is None


def test_what_it_says_itself_stays() -> None:
    said = {"type": "response.created", "sequence_number": 40, "response": {"model": "other"}}
    (event,) = fed(sent([said]), 5)
    assert (event["sequence_number"], event["response"]["model"]) == (40, "other")


@pytest.mark.parametrize(
    ("read", "written", "status"),
    [(96, 3, "completed"), (9, 4, "incomplete"), (97, 3, "incomplete")],
)
def test_a_response_that_was_cut_says_so(read: int, written: int, status: str) -> None:
    body = {**BODY, "max_output_tokens": 4}
    said = {
        "status": "completed",
        "output": [{"type": "reasoning", "status": "completed"}, {"type": "message", "status": "completed"}],
        "usage": {"input_tokens": read, "output_tokens": written},
    }  # fmt: skip
    whole = json.loads(forms.whole(RESPONSES, json.dumps(said).encode(), body, 7.5, ROOM))
    events = forms.events(RESPONSES, body, 7.5, ROOM)
    assert events is not None
    told = events.feed(sent([{"type": "response.completed", "response": said}]))
    named, data = told.strip().split(b"\n")
    assert named == f"event: response.{status}".encode()
    event = json.loads(data[6:])
    assert event["type"] == f"response.{status}"
    for response in (whole, event["response"]):
        assert response["status"] == status
        assert [item["status"] for item in response["output"]] == ["completed", status]
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        assert response["incomplete_details"] == reason


def test_whole_answers() -> None:
    choice = {"message": {"role": "assistant", "content": "hi"}, "logprobs": {"content": []}}
    chat = json.loads(forms.whole(CHAT, json.dumps({"choices": [choice]}).encode(), {}, 0.0, ROOM))
    assert chat["choices"][0]["message"]["refusal"] is None
    assert chat["choices"][0]["logprobs"]["refusal"] is None
    usage = {"input_tokens_details": {"cached_tokens": 3}}
    response = json.loads(
        forms.whole(RESPONSES, json.dumps({"usage": usage}).encode(), {}, 0.0, ROOM)
    )
    assert response["usage"]["input_tokens_details"] == {
        "cached_tokens": 3,
        "cache_write_tokens": 0,
    }
    assert response["error"] is None


@pytest.mark.parametrize("data", [b"", b"[]", b"frog", b'{"choices": 3'])
def test_what_is_not_understood_goes_on_as_it_is(data: bytes) -> None:
    assert forms.whole(CHAT, data, {}, 0.0, ROOM) == data
    assert forms.whole("/v1/completions", b"{}", {}, 0.0, ROOM) == b"{}"
    events = forms.events(RESPONSES, {}, 0.0, ROOM)
    assert events is not None
    assert events.feed(b": comment\n\ndata: " + data + b"\n\ndata: cut") == (
        b": comment\n\ndata: " + data + b"\n\n"
    )
    assert events.end() == b"data: cut"


def test_an_event_that_is_far_too_long_goes_on_as_it_is() -> None:
    events = forms.events(RESPONSES, {}, 0.0, ROOM)
    assert events is not None
    parts = [b'data: {"delta": "', *[b"x" * (1 << 20)] * 17, b'"}\n\n']
    assert b"".join(map(events.feed, parts)) == b"".join(parts)
    assert b'"sequence_number": 0' in events.feed(b'data: {"type": "x"}\n\n')


def test_streams_that_lack_nothing_are_not_looked_into() -> None:
    assert forms.events(CHAT, {"stream": True}, 0.0, ROOM) is None
    assert forms.events("/v1/completions", {"logprobs": 2}, 0.0, ROOM) is None
    chunks = forms.events(CHAT, {"logprobs": True}, 0.0, ROOM)
    assert chunks is not None
    data = b'data: {"choices": [{"delta": {}, "logprobs": {"content": []}}]}\n\ndata: [DONE]\n\n'
    told, done, _ = chunks.feed(data).split(b"\n\n")
    assert json.loads(told[6:])["choices"][0]["logprobs"] == {"content": [], "refusal": None}
    assert done == b"data: [DONE]"
