"""OpenAI's answers as clients read them."""

import pytest

from woodfrog.engine.render import Envelope, Renderer
from woodfrog.engine.request import GenerationRequest, Piece, Sampling, TokenLogprob
from woodfrog.errors import (
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    WoodfrogError,
)
from woodfrog.replica.openai_errors import error


def renderer(*, chat: bool, logprobs: int | None = None, usage: bool = False) -> Renderer:
    request = GenerationRequest(
        chat=chat,
        prompts=[[1, 2, 3]],
        n=2,
        max_tokens=9,
        sampling=Sampling(logprobs=logprobs),
        stops=[],
        stream=True,
        include_usage=usage,
        ignore_eos=False,
    )
    return Renderer(request, Envelope("id", 7, "frog", "fp"), lambda token: bytes([token]))


def test_chat_chunks_begin_with_the_role_and_end_with_the_reason() -> None:
    render = renderer(chat=True)
    first = render.chunk(0, Piece("he", [], 1, None))
    assert render.chunk(0, Piece("", [], 1, None)) is None
    last = render.chunk(0, Piece("", [], 1, "stop"))
    assert first
    assert last
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "he"}
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] == "stop"
    assert "usage" not in first


def test_usage_is_announced_and_told_once() -> None:
    render = renderer(chat=False, usage=True)
    chunk = render.chunk(1, Piece("he", [], 2, "length"))
    assert chunk
    assert chunk["usage"] is None
    told = render.usage_chunk()
    assert told["choices"] == []
    assert told["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_a_whole_answer_has_all_choices_in_order() -> None:
    whole = renderer(chat=True).whole([Piece("a", [], 1, "stop"), Piece("b", [], 4, "length")])
    assert [c["message"]["content"] for c in whole["choices"]] == ["a", "b"]
    assert whole["usage"]["completion_tokens"] == 5


def test_logprobs_of_chat_name_bytes() -> None:
    entry = TokenLogprob(0xC3, -0.5, [(0xC3, -0.5), (65, -2.0)])
    chunk = renderer(chat=True, logprobs=2).chunk(0, Piece("", [entry], 1, None))
    assert chunk
    (content,) = chunk["choices"][0]["logprobs"]["content"]
    assert (content["token"], content["bytes"], content["logprob"]) == ("�", [0xC3], -0.5)
    assert [top["token"] for top in content["top_logprobs"]] == ["�", "A"]


def test_logprobs_of_completions_count_offsets_over_chunks() -> None:
    render = renderer(chat=False, logprobs=1)
    entries = [TokenLogprob(token, -1.0, [(66, -0.1)]) for token in b"AB"]
    first = render.chunk(0, Piece("A", entries[:1], 1, None))
    second = render.chunk(0, Piece("B", entries[1:], 1, None))
    assert first
    assert second
    assert first["choices"][0]["logprobs"]["text_offset"] == [0]
    assert second["choices"][0]["logprobs"]["text_offset"] == [1]
    assert first["choices"][0]["logprobs"]["top_logprobs"] == [{"B": -0.1, "A": -1.0}]


@pytest.mark.parametrize(
    ("failure", "status", "kind"),
    [
        (InvalidArgument("BAD", "no", param="n"), 400, "invalid_request_error"),
        (ResourceExhausted("QUEUE_FULL", "no"), 429, "rate_limit_error"),
        (Unavailable("ENGINE_FAILED", "no"), 503, "server_error"),
        (Internal("INTERNAL", "no"), 500, "server_error"),
    ],
)
def test_errors_in_openai_form(failure: WoodfrogError, status: int, kind: str) -> None:
    got, body = error(failure)
    assert got == status
    assert body["error"]["type"] == kind
    assert body["error"]["code"] == failure.reason.lower()
    assert body["error"]["param"] == failure.metadata.get("param")
