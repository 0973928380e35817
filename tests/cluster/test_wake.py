"""The main job: a model sleeps at zero and a request wakes it; and what must be equal, shared or different then."""

import asyncio
import concurrent.futures
import os
import signal
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.cluster.conftest import Running, descend, replica_pid, wait
from tests.cluster.replicas import control, mappings, restore_twice
from woodfrog.host.cgroup import Cgroups
from woodfrog.model.node import Replica
from woodfrog.replica.client import ControlClient

STEP_S = 2.0  # a token's, on a machine that is busy
QUESTION = "Name three animals that live in a forest."


def test_a_woken_model_answers_token_for_token_what_it_answered_cold(running: Running) -> None:
    running.add("cold-and-woken")
    questions = ["What is the capital of France?", QUESTION, "Write one line about winter."]
    cold = [running.ask(question, "cold-and-woken", max_tokens=24) for question in questions]
    assert cold[0].rung == "absent"
    running.freeze("cold-and-woken")
    woken = [running.ask(question, "cold-and-woken", max_tokens=24) for question in questions]
    assert woken[0].rung == "frozen"
    assert woken[0].climb_ms > 0
    assert woken[1].rung == "serving"
    assert [answer.text for answer in woken] == [answer.text for answer in cold]
    # What keeps an answer to a schema came with the snapshot.
    form = {"type": "json_schema", "json_schema": {"name": "frog", "schema": {"enum": ["awake"]}}}
    kept = running.ask(QUESTION, "cold-and-woken", response_format=form)
    assert kept.text == '"awake"'
    running.remove("cold-and-woken")


def test_the_snapshot_holds_no_weights_and_no_prompt(frog: Running) -> None:
    marker = "Zanzibar quicksilver marmalade"
    running = frog
    running.add("secretive")
    running.ask(f"Repeat: {marker}", "secretive")
    running.freeze("secretive")
    (pointer,) = running.snapshots("secretive")
    tree = running.cluster.home / "node" / "cache" / pointer.manifest.removeprefix("sha256:")
    files = [path for path in tree.rglob("*") if path.is_file()]
    assert any(path.name == "pages" for path in files)
    for path in files:
        assert marker.encode() not in path.read_bytes(), path
    weights = next(Path(p) for p in tree.parent.glob("*/files/model.safetensors"))
    sample = weights.read_bytes()[-(1 << 20) :][: 1 << 12]
    pages = next(path for path in files if path.name == "pages")
    assert sample not in pages.read_bytes()
    running.remove("secretive")


def test_a_parked_model_wakes_with_its_process(frog: Running) -> None:
    frog.ask(QUESTION)
    (replica,) = frog.replicas()
    asyncio.run(descend(frog.cluster, replica.replica_id, "parked"))
    wait(lambda: [r.state.value for r in frog.replicas()] == ["parked"], "a parked replica")
    answer = frog.ask(QUESTION)
    assert answer.rung == "parked"
    assert answer.replica == replica.replica_id


def test_twenty_requests_to_a_sleeping_model_make_one_climb(frog: Running) -> None:
    frog.freeze()
    before = _climbs(frog)
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(
            pool.map(lambda i: frog.ask(f"Say the number {i}.", max_tokens=4), range(20))
        )
    assert len(answers) == 20
    assert all(answer.text for answer in answers)
    assert len({answer.replica for answer in answers}) == 1
    assert _climbs(frog) - before == 1


def test_an_idle_model_sleeps_to_zero_by_itself(running: Running) -> None:
    running.add("sleepy", park_after_s=0.5, freeze_after_s=1.5)
    running.ask(QUESTION, "sleepy")
    wait(lambda: bool(running.snapshots("sleepy")), "its snapshot")
    wait(lambda: not running.replicas("sleepy"), "no replica of it")
    inside = [pid for group in Cgroups(running.cluster.node).leftovers() for pid in group.pids()]
    environments = [Path(f"/proc/{pid}/environ").read_bytes() for pid in inside]
    assert not [each for each in environments if b"WOODFROG_MODEL_NAME=sleepy" in each]
    assert running.ask(QUESTION, "sleepy").rung == "frozen"
    running.remove("sleepy")
    wait(lambda: not running.replicas("sleepy"), "no replica of a model that was removed")


def test_two_clones_at_once_share_pages_and_no_randomness(frog: Running) -> None:
    """The trap: OpenSSL's state is cloned only when it was used before the dump; the engine draws once in its warm-up."""
    frog.freeze()
    first, second = asyncio.run(restore_twice(frog, "smollm2"))
    try:
        one, two = asyncio.run(_draw(first)), asyncio.run(_draw(second))
        assert one.keys() >= {"openssl", "random", "numpy", "torch"}
        for kind, value in one.items():
            assert value is not None, kind
            assert value != two[kind], kind
        assert asyncio.run(_canary(first)) == asyncio.run(_canary(second))
        maps = [mappings(replica_pid(Path(replica.socket_path))) for replica in (first, second)]
        for smaps in maps:
            pages = smaps["/run/woodfrog/snapshot/pages"]
            weights = smaps["/run/woodfrog/weights/model.safetensors"]
            assert weights["Private_Dirty"] == 0
            assert pages["Private_Dirty"] < pages["Rss"] / 2
            # Mapped by both, so that each counts for half where nobody else maps it.
            clean = pages["Rss"] - pages["Private_Dirty"]
            assert pages["Shared_Clean"] > 0.8 * clean
    finally:
        for replica in (first, second):
            asyncio.run(descend(frog.cluster, replica.replica_id))


def test_a_request_leaves_one_trace_from_accept_to_first_token(frog: Running) -> None:
    frog.freeze()
    spans = frog.spans(frog.ask(QUESTION).trace_id)
    by_id = {span["span_id"]: span for span in spans}

    def path(span: dict[str, Any]) -> list[str]:
        above = path(by_id[span["parent_id"]]) if span["parent_id"] in by_id else []
        return [*above, span["name"]]

    paths = [path(span) for span in spans]
    climb = [
        "POST /v1/chat/completions",
        "router.acquire",
        "woodfrog.api.scheduler.v1.Placements/Acquire",
        "woodfrog.api.scheduler.v1.Placements/Acquire",
        "scheduler.place",
        "woodfrog.api.node_agent.v1.Replicas/Climb",
        "woodfrog.api.node_agent.v1.Replicas/Climb",
        "climb",
    ]
    for stage in ("fetch", "sandbox", "mount", "criu", "thaw"):
        assert [*climb, f"restore.{stage}"] in paths
    assert [*climb, "restore.thaw", "restore.canary"] in paths
    assert ["POST /v1/chat/completions", "router.forward", "router.first_token"] in paths
    root = next(span for span in spans if not span["parent_id"])
    assert root["attributes"]["woodfrog.rung"] == "frozen"
    assert {span["service"] for span in spans} >= {
        "woodfrog-router", "woodfrog-scheduler", "woodfrog-node_agent",
    }  # fmt: skip
    for span in spans:  # a child lies within its parent, but for what goes on behind a climb
        parent = by_id.get(span["parent_id"])
        if parent and span["name"].startswith("restore."):
            assert span["start_ns"] >= parent["start_ns"] - 1_000_000


def test_requests_that_share_a_climb_link_to_it(frog: Running) -> None:
    frog.freeze()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: frog.ask(f"Count to {i}.", max_tokens=2), range(4)))
    traces = [frog.spans(answer.trace_id) for answer in answers]
    climbed = [spans for spans in traces if any(span["name"] == "climb" for span in spans)]
    assert len(climbed) == 1
    joined = [spans for spans in traces if spans is not climbed[0]]
    links = [link["trace_id"] for spans in joined for span in spans for link in span["links"]]
    assert links
    assert set(links) == {climbed[0][0]["trace_id"]}


def test_a_disconnected_client_frees_its_slot(frog: Running) -> None:
    stream = frog.client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Tell a very long story."}],
        max_tokens=900,
        stream=True,
    )
    next(iter(stream))
    (replica,) = frog.replicas()
    wait(lambda: frog.replicas()[0].active == 1, "one active request")
    stream.close()
    wait(lambda: frog.replicas()[0].active == 0, "no active request")
    socket = next(frog.cluster.run_dir.glob("*/control.sock"))
    wait(lambda: asyncio.run(_describe(socket))["active"] == 0, "the engine's slot free")
    assert replica.replica_id == frog.replicas()[0].replica_id


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "no-such-model", "messages": [{"role": "user", "content": "x"}]}, 404, "model_not_found"),
        ({"model": "smollm2", "messages": []}, 400, None),
        ({"model": "smollm2", "messages": "hello"}, 400, None),
        ({"model": "smollm2", "messages": [{"role": "user", "content": "x"}], "temperature": 9}, 400, None),
        ({"model": "smollm2", "messages": [{"role": "user", "content": "x " * 5000}]}, 400, "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "x"}]}, 400, None),
    ],
)  # fmt: skip
def test_a_bad_request_gets_openais_error(
    frog: Running, body: dict[str, Any], status: int, code: str | None
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        frog.client.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.status_code == status
    error = caught.value.response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert "\n" not in error["message"]
    if code:
        assert error["code"] == code


def _climbs(running: Running) -> int:
    return sum(line["message"] == "climb finished" for line in running.log("scheduler"))


async def _draw(replica: Replica) -> dict[str, Any]:
    return await control(replica, "draw")


async def _canary(replica: Replica) -> Any:
    return (await control(replica, "canary"))["digest"]


async def _describe(control: Path) -> dict[str, Any]:
    return await ControlClient(control).call("describe", 30)


def test_a_model_with_a_minimum_serves_unasked_and_again_when_its_replica_dies(
    running: Running,
) -> None:
    def serves(before: str = "") -> bool:
        states = [(each.state.value, each.replica_id) for each in running.replicas("always")]
        return len(states) == 1 and states[0][0] == "serving" and states[0][1] != before

    others = {*running.cluster.run_dir.glob("*/engine.sock")}
    running.add("always", replicas_min=1, park_after_s=0.0, freeze_after_s=0.0)
    # Before its snapshot is there it may stand still for it, and a request waits for the same climb.
    wait(lambda: bool(running.snapshots("always")) and serves(), "a replica that nobody asked for")
    (first,) = running.replicas("always")
    assert running.ask(QUESTION, "always").rung == "serving"
    wait(lambda: bool(running.snapshots("always")), "a snapshot")
    (socket,) = {*running.cluster.run_dir.glob("*/engine.sock")} - others
    os.kill(replica_pid(socket), signal.SIGKILL)
    wait(lambda: serves(first.replica_id), "another replica in its place")
    climbed = [each for each in running.log("scheduler") if each.get("model") == "always"]
    assert climbed[-1]["rung"] == "frozen"
    running.remove("always")
    wait(lambda: not running.replicas("always"), "no replica")


def test_a_client_that_times_out_three_times_costs_one_climb_and_no_generation(
    running: Running,
) -> None:
    """OpenAI's client asks twice more by itself, in a cold start and in the middle of an answer."""
    others = {*running.cluster.run_dir.glob("*/engine.sock")}
    running.add("impatient")
    impatient = running.client.with_options(timeout=0.5, max_retries=2)
    messages: Any = [{"role": "user", "content": QUESTION}]
    # It is told just before its time is over, or is not.
    with pytest.raises((openai.APITimeoutError, openai.InternalServerError)):
        impatient.chat.completions.create(model="impatient", messages=messages)

    def climbs() -> list[str]:
        told = [each for each in running.log("scheduler") if each.get("model") == "impatient"]
        return [each["message"] for each in told if each["message"].startswith("climb")]

    wait(lambda: bool(climbs()), "the climb that it began")
    assert running.ask(QUESTION, "impatient").rung == "serving"
    long: Any = {"max_tokens": 900, "extra_body": {"ignore_eos": True}}
    with pytest.raises(openai.APITimeoutError):
        impatient.chat.completions.create(model="impatient", messages=messages, **long)
    (socket,) = {*running.cluster.run_dir.glob("*/engine.sock")} - others

    def active() -> int:
        return int(asyncio.run(_describe(socket.with_name("control.sock")))["active"])

    wait(lambda: active() == 0, "the end of what nobody waits for", 1.0 + STEP_S)
    assert climbs() == ["climb finished"]
    running.remove("impatient")
