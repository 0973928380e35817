"""Other people's clients, and OpenAI's schema, before the whole cluster and a real model."""

import asyncio
import json
import urllib.request

import pytest

from tests.capabilities import need
from tests.cluster.conftest import NAME, Running
from tests.conformance import clients_run, schema
from tests.service import reflection
from woodfrog.clients.weight_fs import WeightFsClient

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
        ("/responses", {"input": "Say a word.", "instructions": "Be brief."}),
    ],
)
def test_answers_are_of_the_schema(frog: Running, path: str, question: dict[str, object]) -> None:
    asked = {"model": NAME, **question}
    if path == "/responses":
        include = ["message.output_text.logprobs"]
        asked |= {"max_output_tokens": 24, "top_logprobs": 2, "include": include}
    else:
        asked |= {"max_tokens": 4}
    if path == "/chat/completions":
        asked |= {"logprobs": True, "top_logprobs": 2}
    schema.check_whole(path, post(frog, path, asked))
    usage = {"include_usage": True}
    if path != "/responses":
        asked |= {"stream_options": usage}
    events = post(frog, path, {**asked, "stream": True})
    schema.check_events(path, events)
    assert path == "/responses" or events.endswith(b"data: [DONE]\n\n")


def test_each_service_tells_what_it_has_and_that_it_serves(frog: Running) -> None:
    for name in ("router", "scheduler", "snapshot_store", "weight_fs", "node_agent"):
        address = frog.cluster.address(name)
        listed = reflection.services(address)
        assert any(f".{name}.v1." in service for service in listed), (name, listed)
        assert all(reflection.serves(address, service) for service in ("", *listed))
    messages = [{"role": "user", "content": "Hello"}]
    asked = {"chat": {"model": NAME, "messages": messages, "max_tokens": 4}}
    answer = reflection.ask(
        frog.cluster.address("router"), "woodfrog.api.router.v1.Chats", "Create", asked
    )
    assert answer["choices"][0]["message"]["content"]


def test_a_wake_from_the_store_is_one_tree_over_all_services_and_is_in_their_logs(
    frog: Running,
) -> None:
    frog.freeze()
    (pointer,) = frog.snapshots()
    asyncio.run(forget(frog, pointer.manifest))
    answer = frog.ask("Name three animals.")
    assert answer.rung == "stored"
    spans = frog.spans(answer.trace_id)
    assert len([span for span in spans if not span["parent_id"]]) == 1
    assert {span["service"] for span in spans} == {
        f"woodfrog-{name}"
        for name in ("router", "scheduler", "node_agent", "weight_fs", "snapshot_store")
    }
    for service, message in (("scheduler", "climb finished"), ("node_agent", "replica serves")):
        told = [line for line in frog.log(service) if line["message"] == message]
        assert told[-1]["trace_id"] == answer.trace_id


async def forget(running: Running, manifest: str) -> None:
    """The node's cache loses it, as if others had needed the room."""
    async with WeightFsClient(running.cluster.address("weight_fs")) as weight_fs:
        await weight_fs.evict(manifest)


def post(running: Running, path: str, asked: dict[str, object]) -> bytes:
    request = urllib.request.Request(
        running.cluster.base_url + path,
        json.dumps(asked).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        body: bytes = response.read()
    return body
