"""OpenAI's client for Python, of any version: what its users do, against a running gateway.

    python python_openai.py BASE_URL MODEL ROUTE…

ROUTE is one of chat, completions, embeddings, responses, images, tools; the last needs a simulated engine. Ends with an AssertionError or the client's own error, or
prints the client's version.
"""

import asyncio
import base64
import sys
from collections.abc import Callable
from typing import Any

import openai

MESSAGES: Any = [{"role": "user", "content": "Name one animal."}]
TOOLS: Any = [{"type": "function", "function": {"name": "pond", "parameters": {"type": "object"}}}]
SHORT: Any = {
    "temperature": 0,
    "max_tokens": 64,
    "stop": ["."],
}  # the helpers refuse an answer that was cut


def chat(client: Any, model: str) -> None:
    create = client.chat.completions.create
    whole = create(model=model, messages=MESSAGES, **SHORT)
    text = whole.choices[0].message.content
    assert text
    assert whole.choices[0].finish_reason in ("stop", "length")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole._request_id
    usage = {"include_usage": True}
    chunks = [*create(model=model, messages=MESSAGES, stream=True, stream_options=usage, **SHORT)]
    assert joined(chunks) == text
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    with helper(client)(model=model, messages=MESSAGES, **SHORT) as events:
        kinds = {event.type for event in events}
        final = events.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == text
    raw = client.chat.completions.with_raw_response.create(model=model, messages=MESSAGES, **SHORT)
    assert raw.headers["x-woodfrog-rung"] == "serving"
    assert raw.parse().choices[0].message.content == text
    streaming = client.chat.completions.with_streaming_response
    with streaming.create(model=model, messages=MESSAGES, stream=True, **SHORT) as response:
        assert [*response.iter_lines()][-2:] == ["data: [DONE]", ""]


def completions(client: Any, model: str) -> None:
    whole = client.completions.create(model=model, prompt="Once", max_tokens=8, temperature=0)
    stream = client.completions.create(
        model=model, prompt="Once", stream=True, max_tokens=8, temperature=0
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def embeddings(client: Any, model: str) -> None:
    as_bytes = client.embeddings.create(model=model, input=["a", "b"])
    as_floats = client.embeddings.create(model=model, input=["a", "b"], encoding_format="float")
    assert len(as_bytes.data) == 2
    assert as_bytes.data[1].embedding == as_floats.data[1].embedding


def responses(client: Any, model: str) -> None:
    whole = client.responses.create(model=model, input="Say a word.", temperature=0)
    assert whole.status in ("completed", "incomplete")
    assert whole.output_text
    events = [
        *client.responses.create(model=model, input="Say a word.", temperature=0, stream=True)
    ]
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == events[-1].response.output_text
    assert [event.sequence_number for event in events if hasattr(event, "sequence_number")] in (
        [*range(len(events))],
        [],  # old versions do not know it
    )

    stream = getattr(client.responses, "stream", None)
    if stream is not None:  # old versions have none
        with stream(model=model, input="Say a word.", temperature=0) as helped:
            kinds = {event.type for event in helped}
            final = helped.get_final_response()
        assert {"response.created", "response.output_text.done"} <= kinds
        assert final.output_text == whole.output_text


def images(client: Any, model: str) -> None:
    answer = client.images.generate(model=model, prompt="a frog", size="256x256")
    assert base64.b64decode(answer.data[0].b64_json)


def tools(client: Any, model: str) -> None:
    """Two calls, whole and by the helper that puts their pieces together."""
    asked = {
        "model": model, "messages": MESSAGES, "tools": TOOLS,
        "extra_body": {"simulate": {"calls": ["pond", "pond"]}},
    }  # fmt: skip
    whole = client.chat.completions.create(**asked, tool_choice=None).choices[0]
    assert whole.finish_reason == "tool_calls"
    calls = [(call.id, call.function.arguments) for call in whole.message.tool_calls]
    with helper(client)(**asked) as events:
        done = [e for e in events if e.type == "tool_calls.function.arguments.done"]
        final = events.get_final_completion().choices[0].message
    assert [call.arguments for call in done] == [arguments for _, arguments in calls]
    assert [(call.id, call.function.arguments) for call in final.tool_calls] == calls


def helper(client: Any) -> Any:
    """The streaming one of chats, which has moved."""
    return getattr(client.chat.completions, "stream", None) or client.beta.chat.completions.stream


def models_and_errors(client: Any, model: str) -> None:
    assert model in [each.id for each in client.models.list()]
    assert client.models.retrieve(model).object == "model"
    for ask in (
        lambda: client.models.retrieve("nobody"),
        lambda: client.chat.completions.create(model="nobody", messages=MESSAGES),
        lambda: client.completions.create(model="nobody", prompt="Once", stream=True),
    ):
        error = error_of(ask, openai.NotFoundError)
        assert (error.code, error.param, error.type) == (
            "model_not_found", "model", "invalid_request_error",
        )  # fmt: skip
        assert "nobody" in error.message
    error = error_of(
        lambda: client.chat.completions.create(model="", messages=MESSAGES), openai.BadRequestError
    )
    assert (error.code, error.param) == ("missing_model", "model")
    error = error_of(lambda: client.files.list(), openai.NotFoundError)
    assert error.code == "route_not_supported"


def error_of(ask: Callable[[], Any], kind: Any) -> Any:
    try:
        ask()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def joined(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def asynchronous(base_url: str, model: str, routes: list[str]) -> None:
    """Several at once, and a stream that is left in the middle."""
    async with openai.AsyncOpenAI(base_url=base_url, api_key="k", max_retries=0) as client:
        create: Any = client.chat.completions.create
        if "chat" in routes:
            asking = [create(model=model, messages=MESSAGES, **SHORT) for _ in range(4)]
            answers = await asyncio.gather(*asking)
            assert all(answer.choices[0].message.content for answer in answers)
            stream = await create(model=model, messages=MESSAGES, stream=True, **SHORT)
            assert joined([chunk async for chunk in stream])
            stream = await create(model=model, messages=MESSAGES, stream=True, **SHORT)
            await anext(stream)
            await stream.close()
            async with helper(client)(model=model, messages=MESSAGES, **SHORT) as helped:
                kinds = {event.type async for event in helped}
                final = await helped.get_final_completion()
            assert {"content.delta", "content.done"} <= kinds
            assert final.choices[0].message.content
        if "responses" in routes:
            respond: Any = client.responses.create
            events = [event async for event in await respond(model=model, input="Hi", stream=True)]
            assert events[-1].type in ("response.completed", "response.incomplete")
        assert model in [each.id async for each in client.models.list()]


def main() -> None:
    base_url, model, *routes = sys.argv[1:]
    suites = {
        "chat": chat,
        "completions": completions,
        "embeddings": embeddings,
        "responses": responses,
        "images": images,
        "tools": tools,
    }
    with openai.OpenAI(base_url=base_url, api_key="k", max_retries=0) as client:
        for route in routes:
            suites[route](client, model)
        models_and_errors(client, model)
    asyncio.run(asynchronous(base_url, model, routes))
    sys.stdout.write(openai.__version__ + "\n")


if __name__ == "__main__":
    main()
