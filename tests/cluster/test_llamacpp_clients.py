"""Other people's clients, and OpenAI's schema, before the whole cluster and llama.cpp."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.capabilities import GGUF, need
from tests.cluster.conftest import Running
from tests.cluster.test_clients import ROUTES, post
from tests.conformance import clients_run, schema

NAME = "llama-asked"


@pytest.fixture(scope="module")
def asked(running: Running) -> Iterator[Running]:
    running.add(NAME, GGUF, engine="llamacpp", slots=4)
    running.ask("Wake up.", NAME)
    yield running
    running.remove(NAME)


@need("clients", "llamacpp")
@pytest.mark.parametrize("name", clients_run.NAMES)
def test_client(asked: Running, name: str) -> None:
    said = asyncio.run(clients_run.run(name, asked.cluster.base_url, NAME, *ROUTES))
    assert said == clients_run.expected(name)


@need("llamacpp")
@pytest.mark.parametrize(
    ("path", "question"),
    [
        ("/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "logprobs": True}),
        ("/completions", {"prompt": "Once", "logprobs": 1}),
        ("/responses", {"input": "Say a word."}),
        (
            "/responses",
            {
                "input": "Hi",
                "tools": [{"type": "function", "name": "pond", "parameters": {}}],
                "tool_choice": "none",  # the model's template has no place for them
            },
        ),
    ],
)
def test_answers_are_of_the_schema(asked: Running, path: str, question: dict[str, Any]) -> None:
    most = "max_output_tokens" if path == "/responses" else "max_tokens"
    question = {"model": NAME, most: 4, **question}
    schema.check_whole(path, post(asked, path, question))
    schema.check_events(path, post(asked, path, {**question, "stream": True}))
