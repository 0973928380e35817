import json
from typing import Any

import pytest

from woodfrog import errors
from woodfrog.api.router.v1 import chats_pb2, completions_pb2
from woodfrog.router import typed_json
from woodfrog.router.gateway import Wake

WAKE = Wake("frozen", 90.5, "r", "")


def test_typed_fields_win_and_absent_ones_are_left_out() -> None:
    chat = chats_pb2.ChatRequest(model="m", temperature=0)
    chat.extra.update({"model": "other", "temperature": 2, "tools": [{"depth": 1.0}], "seed": 7})
    assert json.loads(typed_json.chat_body(chat, stream=True)) == {
        "model": "m",
        "temperature": 0,
        "tools": [{"depth": 1}],
        "seed": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_messages_that_are_not_plain_text_come_by_extra() -> None:
    chat = chats_pb2.ChatRequest(model="m")
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    chat.extra.update({"messages": messages, "stream_options": {}})
    body = json.loads(typed_json.chat_body(chat, stream=True))
    assert body["messages"] == messages
    assert body["stream_options"] == {}


def test_completion_body() -> None:
    completion = completions_pb2.CompletionRequest(model="m", prompt="once", max_tokens=0)
    body = json.loads(typed_json.completion_body(completion, stream=False))
    assert body == {"model": "m", "prompt": "once", "max_tokens": 0, "stream": False}


def test_answer_without_text_is_empty_text() -> None:
    """A tool call has no content."""
    choice = {"index": 0, "message": {"role": "assistant", "content": None}, "finish_reason": None}
    body = json.dumps({"id": "1", "model": "m", "choices": [choice], "usage": None}).encode()
    answer = typed_json.chat_answer(body, WAKE)
    assert answer.choices[0].message.content == ""
    assert not answer.HasField("usage")


def test_calls_pictures_and_results_of_calls_go_as_openai_has_them() -> None:
    chat = chats_pb2.ChatRequest(model="m")
    chat.messages.add(role="user", content="what is it?", image_urls=["data:a", "data:b"])
    said = chat.messages.add(role="assistant")
    said.tool_calls.add(id="c", name="pond", arguments='{"a": 1}')
    chat.messages.add(role="tool", content="deep", tool_call_id="c")
    user, assistant, tool = json.loads(typed_json.chat_body(chat, stream=False))["messages"]
    assert [part["type"] for part in user["content"]] == ["image_url", "image_url", "text"]
    assert user["content"][1]["image_url"] == {"url": "data:b"}
    function = {"name": "pond", "arguments": '{"a": 1}'}
    calls = [{"id": "c", "type": "function", "function": function}]
    assert assistant == {"role": "assistant", "content": None, "tool_calls": calls}
    assert tool == {"role": "tool", "content": "deep", "tool_call_id": "c"}


def test_logprobs_of_both_forms() -> None:
    top = [{"token": "a", "logprob": -0.5, "bytes": [97]}, {"token": "b", "logprob": -1.0}]
    entry = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": top}
    choice = {"index": 0, "message": {"role": "assistant"}, "logprobs": {"content": [entry]}}
    body = json.dumps({"id": "1", "model": "m", "choices": [choice]}).encode()
    (told,) = typed_json.chat_answer(body, WAKE).choices[0].logprobs
    assert (told.token, told.logprob, told.bytes) == ("a", -0.5, b"a")
    assert [(each.token, each.logprob) for each in told.top] == [("a", -0.5), ("b", -1.0)]
    lists = {
        "tokens": ["x", "y"],
        "token_logprobs": [None, -2.0],
        "top_logprobs": [None, {"y": -2.0}],
    }
    body = json.dumps(
        {"id": "1", "model": "m", "choices": [{"index": 0, "text": "xy", "logprobs": lists}]}
    ).encode()
    first, second = typed_json.completion_answer(body, WAKE).choices[0].logprobs
    assert (first.token, first.logprob, list(first.top)) == ("x", 0.0, [])
    assert (second.token, second.logprob, second.top[0].token) == ("y", -2.0, "y")
    pieces = typed_json.Pieces(chats_pb2.StreamResponse, WAKE)
    streamed = {"id": "1", "choices": [{"index": 0, "delta": {}, "logprobs": {"content": [entry]}}]}
    (piece,) = pieces.of(json.dumps(streamed).encode())
    assert piece.logprobs[0] == told


@pytest.mark.parametrize("vector", [[0.5, -0.25], "AAAAPwAAgL4="])
def test_vectors_come_in_their_order_in_either_form(vector: Any) -> None:
    rows = [{"index": 1, "embedding": [1.0, 2.0]}, {"index": 0, "embedding": vector}]
    answer = typed_json.embed_answer(json.dumps({"model": "m", "data": rows}).encode(), WAKE)
    assert [list(each.vector) for each in answer.embeddings] == [[0.5, -0.25], [1.0, 2.0]]
    assert answer.wake.rung == "frozen"


@pytest.mark.parametrize(
    "row", [{}, {"index": 0, "embedding": "AAA"}, {"index": 0, "embedding": ["a"]}]
)
def test_vectors_and_pictures_that_are_not_openais(row: Any) -> None:
    body = json.dumps({"model": "m", "data": [row]}).encode()
    for parse in (typed_json.embed_answer, typed_json.generate_answer):
        with pytest.raises(errors.Internal) as error:
            parse(body, WAKE)
        assert error.value.reason == "ENGINE_ANSWER_MALFORMED"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b'{"id": 1, "model": "m", "choices": []}', b'{"choices": [3]}']
)
def test_answer_that_is_not_openais(body: bytes) -> None:
    for parse in (typed_json.chat_answer, typed_json.completion_answer):
        with pytest.raises(errors.Internal) as error:
            parse(body, WAKE)
        assert error.value.reason == "ENGINE_ANSWER_MALFORMED"


@pytest.mark.parametrize("event", [b"", b"[]", b"{}", b'{"id": "1", "choices": [3]}'])
def test_event_that_is_not_openais(event: bytes) -> None:
    with pytest.raises(errors.Internal):
        typed_json.Pieces(chats_pb2.StreamResponse, WAKE).of(event)


def test_pieces_skip_what_says_nothing() -> None:
    pieces = typed_json.Pieces(chats_pb2.StreamResponse, WAKE)

    def event(choices: list[object], **more: object) -> list[chats_pb2.StreamResponse]:
        return pieces.of(json.dumps({"id": "1", "choices": choices, **more}).encode())

    (first,) = event([{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}])
    assert first.wake.rung == "frozen"
    assert event([{"index": 0, "delta": {}, "finish_reason": None}]) == []
    (piece,) = event([{"index": 1, "delta": {"content": "a"}}], usage=None)
    assert (piece.index, piece.content, piece.HasField("wake")) == (1, "a", False)
    (last,) = event([], usage={"total_tokens": 3})
    assert last.usage.total_tokens == 3


def test_error_event_is_raised_as_its_class() -> None:
    pieces = typed_json.Pieces(completions_pb2.StreamCompleteResponse, WAKE)
    with pytest.raises(errors.ResourceExhausted, match="slow down"):
        pieces.of(b'{"error": {"message": "slow down", "type": "rate_limit_error"}}')


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_numbers_that_json_has_not_are_the_client_s_error(number: float) -> None:
    chat = chats_pb2.ChatRequest(model="m")
    chat.extra.update({"temperature": number})
    with pytest.raises(errors.InvalidArgument, match="a number that JSON has not"):
        typed_json.chat_body(chat, stream=False)
    typed = chats_pb2.ChatRequest(model="m", temperature=number)
    with pytest.raises(errors.InvalidArgument, match="a number that JSON has not"):
        typed_json.chat_body(typed, stream=False)


def test_messages_have_a_number() -> None:
    request = chats_pb2.ChatRequest(model="m")
    request.messages.extend([chats_pb2.ChatMessage()] * ((1 << 16) + 1))
    with pytest.raises(errors.InvalidArgument, match="65537 messages"):
        typed_json.chat_body(request, stream=False)
