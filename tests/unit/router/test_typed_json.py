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
