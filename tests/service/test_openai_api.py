"""What vLLM's tests of its OpenAI entrypoint check, as behaviours of ours, seen by the official client.

Here, with the real model:
- log-probabilities: none unless asked for; with no alternatives, with some; too many are refused, also for a stream, and
  the server goes on
- a completion says how many tokens it took, from a text and from tokens; so does a chat, which can go on
- a stream says the same as the whole answer, ends with one reason, and has no empty pieces
- usage in a stream: none unless asked for; once, behind the last choice, without choices; refused without a stream
- several answers to one prompt have their own index, end and text, in a stream too; several prompts are answered in order
- `echo` begins with the prompt, in a stream too
- a stop text ends an answer and does not show; a bias decides; a token that is none is refused
- tokens that are none, and prompts that are empty or too long, are refused
- roles: a developer's message counts as a system's; parts of a text are one text; an unknown role is refused
- a body that is no object, a path and a method that are none get OpenAI's errors
- a client that leaves in the middle takes nothing along

Elsewhere: JSON schemas and objects in `test_constrained.py`; named, required and free calls, whole and streamed, in
`test_tools.py`; responses with instructions, structured output, calls and streams in `test_responses.py`; seeds,
penalties, the queue's end, abandoned requests, a gate and a death in `test_engine.py`; offsets of log-probabilities,
errors in the middle of a stream, a null and an unknown `tool_choice` in `tests/unit/engine`; a stop under load in
`test_router_limits.py`; every field's fate in `tests/unit/engine/test_openai_fields.py`;
embeddings and classes in `test_embeddings.py` and `test_classifier.py`.

Left out, because there is nothing of it here: LoRA, prompt log-probabilities, prompt embeddings, token ids in answers,
reasoning parsers, `structured_outputs` by regex or grammar, `min_tokens`, `stop_token_ids`, `cache_salt`, usage that the
operator forces (the router is told tokens by a comment), `continue_final_message` and `add_generation_prompt`, batches of
chats, responses that are stored or come by WebSocket, tokenization routes, audio.
"""

import asyncio
from typing import Any

import openai
import pytest
from openai.types import Completion
from tests.capabilities import need
from tests.service.engine_process import Engine

pytestmark = need("model")

STORY = "Once upon a time, there was a frog who"
MESSAGES: Any = [{"role": "user", "content": "What is the capital of France?"}]
TEXT: dict[str, Any] = {"model": "frog", "prompt": STORY, "max_tokens": 6, "temperature": 0}
CHAT: dict[str, Any] = {"model": "frog", "messages": MESSAGES, "max_tokens": 6, "temperature": 0}


async def completed(client: openai.AsyncOpenAI, **changes: Any) -> Completion:
    completion = await client.completions.create(**{**TEXT, **changes})
    assert isinstance(completion, Completion)
    return completion


@pytest.mark.parametrize("count", [0, 1, 5])
async def test_logprobs_are_as_many_as_asked_for(api_engine: Engine, count: int) -> None:
    async with api_engine.client() as client:
        text = (await completed(client, logprobs=count)).choices[0].logprobs
        chat = await client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=count)
        assert (await completed(client)).choices[0].logprobs is None
    assert text
    assert text.top_logprobs
    assert len(text.tokens or []) == len(text.token_logprobs or []) == 6
    # The chosen token is among them, or comes on top.
    assert all(max(1, count) <= len(each) <= count + 1 for each in text.top_logprobs)
    assert chat.choices[0].logprobs
    assert {len(e.top_logprobs) for e in chat.choices[0].logprobs.content or []} == {count}


@pytest.mark.parametrize("stream", [False, True])
async def test_too_many_logprobs_are_refused_and_the_server_goes_on(
    api_engine: Engine, stream: bool
) -> None:
    async with api_engine.client() as client:
        with pytest.raises(openai.BadRequestError) as refusal:
            await client.chat.completions.create(
                **CHAT, logprobs=True, top_logprobs=21, stream=stream
            )
        assert refusal.value.param == "top_logprobs"
        with pytest.raises(openai.BadRequestError) as refusal:
            await client.completions.create(**TEXT, logprobs=21, stream=stream)
        assert refusal.value.param == "logprobs"
        assert (await completed(client)).choices[0].text


async def test_tokens_are_counted_for_texts_and_for_tokens(api_engine: Engine) -> None:
    async with api_engine.client() as client:
        text = await completed(client)
        tokens = await completed(client, prompt=[5, 6, 7])
    assert text.choices[0].finish_reason == "length"
    assert text.usage
    assert tokens.usage
    assert (text.usage.completion_tokens, tokens.usage.prompt_tokens) == (6, 3)
    assert text.usage.total_tokens == text.usage.prompt_tokens + 6


async def test_a_chat_goes_on(api_engine: Engine) -> None:
    async with api_engine.client() as client:
        first = await client.chat.completions.create(**CHAT)
        said = first.choices[0].message
        assert said.role == "assistant"
        again: Any = [*MESSAGES, said.model_dump(), {"role": "user", "content": "And of Spain?"}]
        second = await client.chat.completions.create(**{**CHAT, "messages": again})
    assert first.usage
    assert second.usage
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    assert second.choices[0].message.content


@pytest.mark.parametrize("usage", [None, False, True])
async def test_a_stream_says_what_the_whole_answer_says(
    api_engine: Engine, usage: bool | None
) -> None:
    options: Any = {} if usage is None else {"stream_options": {"include_usage": usage}}
    async with api_engine.client() as client:
        whole = await client.chat.completions.create(**CHAT)
        stream = await client.chat.completions.create(**CHAT, stream=True, **options)
        chunks = [chunk async for chunk in stream]
    if usage:
        last = chunks.pop()
        assert last.choices == []
        assert last.usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert [delta.role for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert all(chunk.choices[0].delta.content for chunk in chunks[1:-1])
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [whole.choices[0].finish_reason]


async def test_usage_needs_a_stream(api_engine: Engine) -> None:
    async with api_engine.client() as client:
        with pytest.raises(openai.BadRequestError) as refusal:
            await client.chat.completions.create(**CHAT, stream_options={"include_usage": True})
    assert refusal.value.param == "stream_options"


async def test_several_answers_have_their_own_ends(api_engine: Engine) -> None:
    asked = {**TEXT, "n": 2, "temperature": 1.0, "seed": 42, "max_tokens": 12}
    async with api_engine.client() as client:
        whole = await completed(client, **asked)
        texts, ends = ["", ""], [0, 0]
        async for chunk in await client.completions.create(**asked, stream=True):
            (choice,) = chunk.choices
            texts[choice.index] += choice.text
            ends[choice.index] += choice.finish_reason is not None
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert [choice.text for choice in whole.choices] == texts
    assert texts[0] != texts[1]
    assert ends == [1, 1]


async def test_several_prompts_are_answered_in_their_order(api_engine: Engine) -> None:
    async with api_engine.client() as client:
        both = await completed(client, prompt=[STORY, "1 2 3 4"], echo=True)
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[0].text.startswith(STORY)
    assert both.choices[1].text.startswith("1 2 3 4")


async def test_an_echo_begins_with_the_prompt(api_engine: Engine) -> None:
    async with api_engine.client() as client:
        plain = await completed(client)
        echoed = await completed(client, echo=True)
        both = await completed(client, echo=True, n=2)
        stream = await client.completions.create(**TEXT, echo=True, stream=True)
        streamed = "".join([chunk.choices[0].text async for chunk in stream])
    assert echoed.choices[0].text == streamed == STORY + plain.choices[0].text
    assert all(choice.text.startswith(STORY) for choice in both.choices)


async def test_stops_and_biases(api_engine: Engine) -> None:
    async with api_engine.client() as client:
        full = (await completed(client)).choices[0].text
        cut = (await completed(client, stop=full[5:9])).choices[0]
        assert (cut.text, cut.finish_reason) == (full[: full.index(full[5:9])], "stop")
        assert (await completed(client, logit_bias={"33": 100})).choices[0].text == "1" * 6
        with pytest.raises(openai.BadRequestError) as refusal:
            await completed(client, logit_bias={"999999": 1})
    assert refusal.value.param == "logit_bias"


@pytest.mark.parametrize("prompt", ["", [], [[]], [999999], [-1], "frog " * 3000])
async def test_prompts_that_are_none(api_engine: Engine, prompt: Any) -> None:
    async with api_engine.client() as client:
        with pytest.raises(openai.BadRequestError) as refusal:
            await completed(client, prompt=prompt)
    assert refusal.value.param == "prompt"


async def test_roles_and_parts(api_engine: Engine) -> None:
    def said(role: str, content: Any) -> Any:
        return {**CHAT, "messages": [{"role": role, "content": content}, *MESSAGES]}

    async with api_engine.client() as client:
        answers = [
            await client.chat.completions.create(**said("system", "Be brief.")),
            await client.chat.completions.create(**said("developer", "Be brief.")),
            await client.chat.completions.create(
                **said("system", [{"type": "text", "text": t} for t in ("Be ", "brief.")])
            ),
        ]
        with pytest.raises(openai.BadRequestError) as refusal:
            await client.chat.completions.create(**said("judge", "Be brief."))
    assert len({answer.choices[0].message.content for answer in answers}) == 1
    assert refusal.value.param == "messages[0].role"


@pytest.mark.parametrize(
    ("path", "method", "data", "status", "code"),
    [
        ("/v1/chat/completions", "POST", b'"text"', 400, "invalid_json"),
        ("/v1/chat/completions", "POST", b"{", 400, "invalid_json"),
        ("/v1/responses", "GET", b"", 405, "method_not_allowed"),
        ("/v1/audio/speech", "POST", b"{}", 404, "unknown_url"),
    ],
)
async def test_what_is_no_request(
    api_engine: Engine, path: str, method: str, data: bytes, status: int, code: str
) -> None:
    got, answer = await api_engine.raw(data, path, method)
    assert (got, answer["error"]["code"]) == (status, code)
    assert answer["error"]["type"] == "invalid_request_error"


async def test_a_client_that_leaves_takes_nothing_along(api_engine: Engine) -> None:
    long = {**CHAT, "max_tokens": 1500, "extra_body": {"ignore_eos": True}}
    async with api_engine.client() as client:
        stream = await client.chat.completions.create(**long, stream=True)
        async for _ in stream:
            break
        await stream.close()
        assert (await completed(client)).choices[0].text
    async with asyncio.timeout(60):
        while (await api_engine.call("describe"))["active"]:
            await asyncio.sleep(0.02)
