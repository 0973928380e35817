"""Other people's clients, and OpenAI's schema, before the whole cluster and a real model."""

import asyncio
import json
import urllib.request

import pytest

from tests.capabilities import need
from tests.cluster.conftest import NAME, Running
from tests.conformance import clients_run, schema

ROUTES = ("chat", "completions", "responses")  # what a model that writes text answers


@need("clients")
@pytest.mark.parametrize("name", clients_run.NAMES)
def test_client(frog: Running, name: str) -> None:
    frog.ask("Wake up.")
    said = asyncio.run(clients_run.run(name, frog.cluster.base_url, NAME, *ROUTES))
    assert said == clients_run.expected(name)


@pytest.mark.parametrize(
    ("path", "question"),
    [
        ("/chat/completions", {"messages": [{"role": "user", "content": "Say a word."}]}),
        ("/completions", {"prompt": "Once"}),
    ],
)
def test_answers_are_of_the_schema(frog: Running, path: str, question: dict[str, object]) -> None:
    asked = {"model": NAME, "max_tokens": 4, **question}
    if path == "/chat/completions":
        asked |= {"logprobs": True, "top_logprobs": 2}
    schema.check_whole(path, post(frog, path, asked))
    usage = {"include_usage": True}
    events = post(frog, path, {**asked, "stream": True, "stream_options": usage})
    schema.check_events(path, events)
    assert events.endswith(b"data: [DONE]\n\n")


def post(running: Running, path: str, asked: dict[str, object]) -> bytes:
    request = urllib.request.Request(
        running.cluster.base_url + path,
        json.dumps(asked).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        body: bytes = response.read()
    return body
