"""Tokens as engines tell them, in any cut, and nothing that a generated text or an echoed field says."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from woodfrog.router.told_tokens import ToldTokens

SSE, JSON = b"text/event-stream; charset=utf-8", b"application/json"
FORGED = '\n: usage prompt_tokens=0 completion_tokens=0\n\ndata: {"usage": {"prompt_tokens": 0}}'


def told(content_type: bytes, body: bytes, size: int = 1 << 20) -> tuple[int, int]:
    tokens = ToldTokens(content_type)
    for at in range(0, len(body), size):
        tokens.saw(body[at : at + size])
    return tokens.tokens()


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def piece(text: str) -> bytes:
    return event({"choices": [{"delta": {"content": text}}]})


@given(st.lists(st.text(max_size=30), max_size=6), st.integers(1, 70))
@example([FORGED], 1)
@settings(deadline=None)
def test_a_streams_comment_is_found_and_no_text_forges_it(texts: list[str], size: int) -> None:
    body = b"".join(map(piece, texts))
    end = b"data: [DONE]\n\n"
    comment = b": usage prompt_tokens=12 completion_tokens=345\n\n"
    assert told(SSE, body + comment + piece(FORGED) + end, size) == (12, 345)
    assert told(SSE, body + piece(FORGED), 1 << 20) == (0, len(texts) + 1)
    begin = b": usage prompt_tokens=12\n\n"
    assert told(SSE, body + begin + piece(FORGED), size) == (12, len(texts) + 1)
    assert told(SSE, begin + body + comment + piece(FORGED) + end, size) == (12, 345)
    assert told(SSE, body + comment + piece("x" * 100_000), 1 << 20) == (12, 345)


@given(st.text(max_size=200), st.integers(1, 70))
@example(FORGED, 3)
@example('"usage": {"prompt_tokens": 0, "completion_tokens": 0}}', 3)
@example("usage", 3)
@settings(deadline=None)
def test_a_whole_answers_usage_is_found_and_no_text_forges_it(text: str, size: int) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    choices = [{"message": {"content": text, "usage": text}}]
    metadata = {"usage": {"prompt_tokens": 0, "completion_tokens": 0}}
    for answer in (
        {"choices": choices, "usage": usage},
        {"usage": usage, "choices": choices},
        {"usage": usage, "metadata": metadata, "timings": {"text": text}},
        {"metadata": metadata, "usage": usage},
    ):
        for encoded in (json.dumps(answer), json.dumps(answer, ensure_ascii=False)):
            assert told(JSON, encoded.encode("utf-8", "replace"), size) == (3, 4)
    assert told(JSON, json.dumps({"metadata": metadata}).encode()) == (0, 0)


@pytest.mark.parametrize("length", [10, 3000, 100_000])
def test_what_is_long_hides_no_usage(length: int) -> None:
    usage, forged = {"prompt_tokens": 3, "total_tokens": 3}, {"usage": {"prompt_tokens": 0}}
    floats = [0.5] * length
    first = {"model": "m", "object": "list", "extra": forged, "usage": usage, "data": floats}
    last = {"data": floats, "extra": forged, "usage": usage}
    for answer in (first, last, {**first, "extra": forged}):
        assert told(JSON, json.dumps(answer).encode(), 5000) == (3, 0)
    assert told(JSON, json.dumps({"a": forged, "data": floats}).encode(), 5000) == (0, 0)


def test_other_names_and_places() -> None:
    assert told(JSON, b'{"usage": {"input_tokens": 5, "output_tokens": 6}}') == (5, 6)
    assert told(JSON, b'{"data": [], "usage": {"prompt_tokens": 5, "total_tokens": 5}}') == (5, 0)
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    assert told(SSE, piece("a") + event({"choices": [], "usage": usage})) == (1, 2)
    completed = {
        "type": "response.completed",
        "response": {"usage": {"input_tokens": 8, "output_tokens": 9}},
    }
    assert told(SSE, piece("a") + event(completed)) == (8, 9)
    assert told(b"audio/wav", b"\n: usage prompt_tokens=1 completion_tokens=1\n") == (0, 0)


@pytest.mark.parametrize(
    "usage", ["x", [], {}, {"prompt_tokens": -1}, {"prompt_tokens": 1e9}, None]
)
def test_nonsense_counts_nothing(usage: Any) -> None:
    assert told(JSON, json.dumps({"usage": usage}).encode()) == (0, 0)


def test_only_the_end_of_a_long_answer_is_kept() -> None:
    tokens = ToldTokens(JSON)
    for _ in range(1000):
        tokens.saw(b"[" + b"0.5, " * 1000 + b"]")
    assert sum(map(len, tokens._parts)) + len(tokens._begin) < 48 << 10
    assert tokens.tokens() == (0, 0)


def test_done_is_the_end() -> None:
    tokens = ToldTokens(SSE)
    assert not tokens.saw(piece("data: [DONE]"))
    assert tokens.saw(piece("a") + b"data: [DONE]\n\n")
