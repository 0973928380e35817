"""The HTTP face, asked by OpenAI's own client, before simulated engines and a simulated scheduler."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.memory.simulated_scheduler import Climb
from tests.service.router_bench import COMMENT_S, Bench, spec

from woodfrog.catalog import ModelPut, ModelRemoved
from woodfrog.errors import FailedPrecondition, ResourceExhausted, Unavailable
from woodfrog.model.rung import Rung

TEXT = "once upon a pond there sat a frog"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with Bench.open(tmp_path) as bench:
        yield bench


def post(body: bytes, *headers: str, path: str = "/v1/chat/completions") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: h", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "connection: close", "", ""]).encode() + body


def error_of(body: bytes) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


async def text_of(stream: Any) -> str:
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    return "".join(pieces)


async def test_whole_answer_says_how_the_model_was(bench: Bench) -> None:
    await bench.ready("a")
    raw = await bench.client.chat.completions.with_raw_response.create(
        model="m", messages=[{"role": "user", "content": "hi"}]
    )
    assert raw.parse().choices[0].message.content == TEXT
    assert raw.headers["x-woodfrog-rung"] == "serving"
    assert raw.headers["x-woodfrog-climb-ms"] == "0"
    assert raw.headers["x-woodfrog-replica"] == "a"
    assert len(raw.headers["x-woodfrog-trace-id"]) == 32
    assert raw.headers["x-request-id"].startswith("req_")
    assert "x-woodfrog-fallback" not in raw.headers
    assert not bench.scheduler.acquires, "a ready replica needs no scheduler"


async def test_streams_of_both_routes(bench: Bench) -> None:
    await bench.ready("a")
    assert await text_of(await bench.ask(stream=True)) == TEXT
    options: Any = {"include_usage": True}
    stream = await bench.client.completions.create(
        model="m", prompt="hi", stream=True, stream_options=options
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == TEXT
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 13


async def test_synchronous_client(bench: Bench) -> None:
    await bench.ready("a")

    def ask() -> str | None:
        with openai.OpenAI(
            base_url=f"http://{bench.http}/v1", api_key="k", max_retries=0
        ) as client:
            stream = client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert await asyncio.to_thread(ask) == TEXT


async def test_body_goes_untouched_and_the_key_stays(bench: Bench) -> None:
    engine = await bench.ready("a")
    body = b'{ "model" : "m", "tool_choice":null, "x": {"y":[1.50]}, "messages":[{"role":"user","content":"\xc3\xa9"}] }'
    head, _ = await bench.raw(
        post(body, "authorization: Bearer secret", "x-request-id: mine", "traceparent: " + PARENT)
    )
    assert head.startswith(b"HTTP/1.1 200")
    assert b"x-request-id: mine" in head
    assert b"x-woodfrog-trace-id: " + PARENT.split("-")[1].encode() in head
    (request,) = engine.requests
    assert request.body == body
    assert "authorization" not in request.headers
    assert request.headers["x-request-id"] == "mine"


PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def test_models_follow_the_catalog(bench: Bench) -> None:
    assert [model.id async for model in await bench.client.models.list()] == ["m", "org/m"]
    model = await bench.client.models.retrieve("org/m")
    assert (model.id, model.owned_by, model.created) == ("org/m", "woodfrog", 1_700_000_000)
    bench.catalog.events.put_nowait(ModelRemoved(spec("m")))
    bench.catalog.events.put_nowait(ModelPut(spec("new")))
    await bench.until(lambda: bench.catalog.events.empty())
    assert [model.id async for model in await bench.client.models.list()] == ["new", "org/m"]
    with pytest.raises(openai.NotFoundError) as failure:
        await bench.client.models.retrieve("m")
    assert failure.value.code == "model_not_found"


async def test_bad_requests_get_openais_error_object(bench: Bench) -> None:
    cases: list[tuple[bytes, int, str | None, str | None]] = [
        (b"{", 400, "invalid_json", None),
        (b"[1]", 400, "invalid_json", None),
        (b"\xff\xfe{", 400, "invalid_json", None),
        (b"[" * 100_000, 400, "invalid_json", None),
        (b"{}", 400, "missing_model", "model"),
        (b'{"model": 3}', 400, "missing_model", "model"),
        (b'{"model": "nobody"}', 404, "model_not_found", "model"),
    ]
    for body, status, code, param in cases:
        head, answer = await bench.raw(post(body))
        assert head.startswith(b"HTTP/1.1 %d" % status), body[:20]
        error = error_of(answer)
        assert (error["code"], error["param"]) == (code, param)
        assert error["type"] == "invalid_request_error"
        assert error["message"]
    with pytest.raises(openai.NotFoundError, match="nobody"):
        await bench.client.completions.create(model="nobody", prompt="hi")


async def test_unknown_routes_and_methods(bench: Bench) -> None:
    head, body = await bench.raw(post(b"{}", path="/nothing"))
    assert head.startswith(b"HTTP/1.1 404")
    assert error_of(body)["code"] == "route_not_found"
    _, body = await bench.raw(post(b"{}", path="/chat/completions"))
    assert error_of(body)["message"].endswith(
        "it is /v1/chat/completions: end the base URL with /v1"
    )
    head, body = await bench.raw(b"GET /v1/completions HTTP/1.1\r\nconnection: close\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 405")
    assert b"allow: POST" in head
    assert error_of(body)["code"] == "method_not_allowed"
    head, _ = await bench.raw(post(b"{}", path="/v1/models"))
    assert head.startswith(b"HTTP/1.1 405")
    head, body = await bench.raw(b"HEAD /health HTTP/1.1\r\nconnection: close\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert body == b""


async def test_engines_errors_pass_with_status_and_body(bench: Bench) -> None:
    await bench.ready("a")
    with pytest.raises(openai.BadRequestError) as bad:
        await bench.ask(extra_body={"simulate": {"status": 400}})
    assert bad.value.body == {
        "message": "simulated error", "type": "server_error", "param": None, "code": "simulated"
    }  # fmt: skip
    assert bad.value.response.headers["x-woodfrog-replica"] == "a"
    with pytest.raises(openai.RateLimitError) as limited:
        await bench.ask(extra_body={"simulate": {"status": 429}}, stream=True)
    assert limited.value.response.headers["retry-after-ms"] == "1500"
    with pytest.raises(openai.InternalServerError):
        await bench.ask(extra_body={"simulate": {"status": 503}})
    assert len(bench.engines["a"].requests) == 3, "an engine's own error is no reason to ask again"


async def test_wake_is_waited_for_and_told(bench: Bench) -> None:
    replica = await bench.replica("a")
    climb = Climb(replica, climb_ms=812.4, fallback_reason="node kernel is\r\n'6.1é'")
    bench.scheduler.climbs["m"] = climb
    ask: Any = bench.client.chat.completions.with_raw_response.create
    asking = asyncio.create_task(ask(model="m", messages=[{"role": "user", "content": "hi"}]))
    await bench.scheduler.until(lambda s: s.waiting == 1)
    assert not asking.done()
    climb.finish.set()
    raw = await asking
    assert raw.headers["x-woodfrog-rung"] == "frozen"
    assert raw.headers["x-woodfrog-climb-ms"] == "812"
    assert raw.headers["x-woodfrog-fallback"] == "node kernel is??'6.1?'"
    await bench.scheduler.until(lambda s: s.released == [("placement-1", False)])
    await bench.until(lambda: "a" in bench.replicas.ids)
    await bench.ask()
    assert len(bench.scheduler.acquires) == 1


async def test_streaming_client_gets_comments_while_it_waits(bench: Bench) -> None:
    climb = Climb(await bench.replica("a"), rung=Rung.ABSENT, climb_ms=4000)
    bench.scheduler.climbs["m"] = climb
    body = b'{"model":"m","messages":[],"stream":true,"simulate":{"tokens":1}}'
    host, _, port = bench.http.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(post(body))
    async with asyncio.timeout(60):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"content-type: text/event-stream" in head
        for _ in range(2):
            await reader.readuntil(b": waking\n\n")
        climb.finish.set()
        rest = await reader.read()
    writer.close()
    assert b": woken rung=absent climb-ms=4000 replica=a\n\n" in rest
    assert b'"content": "once"' in rest
    assert b"data: [DONE]\n\n" in rest
    assert await text_of(await bench.ask(stream=True)) == TEXT, "OpenAI's client ignores comments"


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/embeddings", b""),
        ("/v1/embeddings", b',"stream":true'),
        ("/v1/classify", b""),
        ("/v1/classify", b',"stream":true'),
    ],
)
async def test_what_does_not_stream_is_answered_whole(bench: Bench, path: str, more: bytes) -> None:
    """Comments before the answer would make JSON that nobody can read."""
    climb = Climb(await bench.replica("a"), climb_ms=812)
    bench.scheduler.climbs["m"] = climb
    body = b'{"model":"m","input":"frog"%b}' % more
    asking = asyncio.create_task(bench.raw(post(body, path=path)))
    await bench.scheduler.until(lambda s: s.waiting == 1)
    done, _ = await asyncio.wait({asking}, timeout=4 * COMMENT_S)
    assert not done
    climb.finish.set()
    head, answer = await asking
    assert head.startswith(b"HTTP/1.1 200")
    assert b"content-type: application/json" in head
    assert b"x-woodfrog-climb-ms: 812" in head
    assert json.loads(answer)["object"] == "list"
    (request,) = bench.engines["a"].requests
    assert (request.path, request.body) == (path, body)
    head, _ = await bench.raw(f"GET {path} HTTP/1.1\r\nconnection: close\r\n\r\n".encode())
    assert head.startswith(b"HTTP/1.1 405")


async def test_openai_client_streams_through_a_wake(bench: Bench) -> None:
    climb = Climb(await bench.replica("a"))
    bench.scheduler.climbs["m"] = climb
    stream = await bench.ask(stream=True, timeout=5)  # returns at the first comment
    climb.finish.set()
    assert await text_of(stream) == TEXT


async def test_refusal_after_comments_is_an_error_event(bench: Bench) -> None:
    climb = Climb(error=ResourceExhausted("NO_CAPACITY", "no node has room", retry_after_s=2.5))
    bench.scheduler.climbs["m"] = climb
    stream = await bench.ask(stream=True)
    climb.finish.set()
    with pytest.raises(openai.APIError, match="no node has room") as failure:
        await text_of(stream)
    assert failure.value.code == "no_capacity"
    climb.error = None
    climb.replica = await bench.replica("a")
    climb.finish.clear()
    stream = await bench.ask(stream=True, extra_body={"simulate": {"status": 400}})
    climb.finish.set()
    with pytest.raises(openai.APIError, match="simulated error"):
        await text_of(stream)


async def test_no_capacity_says_when_to_come_back(bench: Bench) -> None:
    climb = Climb(error=ResourceExhausted("NO_CAPACITY", "no node has room", retry_after_s=2.5))
    climb.finish.set()
    bench.scheduler.climbs["m"] = climb
    with pytest.raises(openai.RateLimitError) as failure:
        await bench.ask()
    assert failure.value.code == "no_capacity"
    assert failure.value.response.headers["retry-after-ms"] == "2500"
    assert failure.value.response.headers["retry-after"] == "3"


async def test_a_model_that_no_node_can_take_is_not_asked_for_again(bench: Bench) -> None:
    climb = Climb(error=FailedPrecondition("NO_NODE_FITS", "every node is too small"))
    climb.finish.set()
    bench.scheduler.climbs["m"] = climb
    with pytest.raises(openai.InternalServerError, match="too small") as failure:
        await bench.client.with_options(max_retries=3).chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}]
        )
    assert (failure.value.status_code, failure.value.code) == (503, "no_node_fits")
    assert "retry-after" not in failure.value.response.headers
    assert len(bench.scheduler.acquires) == 1


async def test_failed_climb_is_not_climbed_again(bench: Bench) -> None:
    climb = Climb(error=Unavailable("CLIMB_FAILED", "the engine ended while it started"))
    climb.finish.set()
    bench.scheduler.climbs["m"] = climb
    with pytest.raises(openai.InternalServerError) as failure:
        await bench.ask()
    assert failure.value.status_code == 503
    assert failure.value.code == "climb_failed"
    assert len(bench.scheduler.acquires) == 1


async def test_wait_is_capped(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, wake_wait_s=0.2) as bench:
        bench.scheduler.climbs["m"] = Climb()
        with pytest.raises(openai.InternalServerError, match="still waking") as failure:
            await bench.ask()
        assert failure.value.status_code == 503
        assert failure.value.code == "model_waking"
        assert failure.value.response.headers["retry-after-ms"] == "1000"
        await bench.scheduler.until(lambda s: s.waiting == 0)
        stream = await bench.ask(stream=True)
        with pytest.raises(openai.APIError, match="still waking"):
            await text_of(stream)


async def test_clients_own_timeout_bounds_the_wait(bench: Bench) -> None:
    bench.scheduler.climbs["m"] = Climb()
    with pytest.raises(openai.InternalServerError, match="still waking"):
        await bench.ask(timeout=2)
    await bench.scheduler.until(lambda s: s.waiting == 0)


async def test_client_that_leaves_during_a_wake_gives_it_up(bench: Bench) -> None:
    bench.scheduler.climbs["m"] = Climb()
    asking = asyncio.create_task(bench.ask())
    await bench.scheduler.until(lambda s: s.waiting == 1)
    asking.cancel()
    await bench.scheduler.until(lambda s: s.cancelled == 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_leaves_frees_its_slot(bench: Bench, stream: bool) -> None:
    engine = await bench.ready("a", slots=1)
    script = {"simulate": {"hold": "mid" if stream else True}}
    asking = asyncio.create_task(bench.ask(stream=stream, extra_body=script))
    await engine.until_active(1)
    await bench.scheduler.until(lambda s: s.active.get("a") == 1)
    if stream:
        await (await asking).close()
    else:
        asking.cancel()
    await engine.until_active(0)
    assert engine.cancelled == 1
    await bench.scheduler.until(lambda s: s.active["a"] == 0)
    await bench.ask()
    assert not bench.scheduler.acquires, "the slot was free again"


@pytest.mark.parametrize("state", ["quiesced", "parked"])
async def test_replica_going_to_sleep_is_asked_for_again(bench: Bench, state: str) -> None:
    """Its thaw may give the same replica: it did not fail, so it is not excluded at once."""
    sleepy = await bench.ready("a")
    sleepy.state = state
    climb = Climb(await bench.replica("b"))
    climb.finish.set()
    bench.scheduler.climbs["m"] = climb
    bench.scheduler.ready.clear()
    assert (await bench.ask()).choices[0].message.content == TEXT
    (acquire,) = bench.scheduler.acquires
    assert list(acquire.excluded_replica_ids) == []
    await bench.scheduler.until(lambda s: s.released == [("placement-1", False)])


async def test_replica_that_stays_asleep_is_excluded(bench: Bench) -> None:
    for name in ("a", "b"):
        await bench.ready(name)
    bench.engines["a"].state = "quiesced"
    await bench.ask()  # "b" answers: "a" is not picked again
    bench.engines["b"].state = "quiesced"
    with pytest.raises(openai.InternalServerError, match="went away"):
        await bench.ask()
    assert [list(a.excluded_replica_ids) for a in bench.scheduler.acquires] == [[], ["a"]]


async def test_dead_replica_is_replaced(bench: Bench) -> None:
    dead = await bench.ready("a")
    await bench.ask()  # leaves an idle connection
    dead.kill()
    climb = Climb(await bench.replica("b"))
    climb.finish.set()
    bench.scheduler.climbs["m"] = climb
    assert (await bench.ask()).choices[0].message.content == TEXT
    assert [list(a.excluded_replica_ids) for a in bench.scheduler.acquires] == [["a"]]
    await bench.scheduler.until(lambda s: s.released == [("placement-1", False)])


async def test_replica_that_dies_before_its_first_byte(bench: Bench) -> None:
    for name in "abc":
        await bench.ready(name)
    with pytest.raises(openai.InternalServerError, match="3 replicas") as failure:
        await bench.ask(extra_body={"simulate": {"die": 0}})
    assert failure.value.code == "replica_lost"
    assert [len(engine.requests) for engine in bench.engines.values()] == [1, 1, 1]
    assert not bench.scheduler.acquires


async def test_failed_replica_of_a_placement_is_reported(bench: Bench) -> None:
    replica = await bench.replica("a")
    bench.engines["a"].kill()
    climb = Climb(replica, announce=False)
    climb.finish.set()
    bench.scheduler.climbs["m"] = climb
    with pytest.raises(openai.InternalServerError):
        await bench.ask()
    await bench.scheduler.until(lambda s: len(s.released) == 3)
    assert all(failed for _, failed in bench.scheduler.released)


async def test_idle_connection_that_the_replica_closed_is_no_failure(bench: Bench) -> None:
    engine = await bench.ready("a")
    for _ in range(3):
        await bench.ask()
        engine.close_idle()
        await bench.ask()
    assert not bench.scheduler.acquires


async def test_death_in_mid_stream_is_an_error_event(bench: Bench) -> None:
    await bench.ready("a")
    stream = await bench.ask(stream=True, extra_body={"simulate": {"die": 3}})
    with pytest.raises(openai.APIError, match="in the middle") as failure:
        await text_of(stream)
    assert failure.value.code == "replica_lost"
    assert not isinstance(failure.value, openai.APIConnectionError)
    assert len(bench.engines["a"].requests) == 1, "a byte had gone to the client"


async def test_slots_are_filled_before_the_scheduler_is_asked(bench: Bench) -> None:
    engine = await bench.ready("a", slots=2)
    held = [asyncio.create_task(bench.ask(extra_body={"simulate": {"hold": True}})) for _ in "12"]
    await engine.until_active(2)
    climb = Climb(await bench.replica("b"))
    climb.finish.set()
    bench.scheduler.climbs["m"] = climb
    bench.scheduler.ready.clear()
    await bench.ask()
    assert len(bench.scheduler.acquires) == 1
    engine.let_go()
    await asyncio.gather(*held)


async def test_two_hundred_at_once(bench: Bench) -> None:
    engine = await bench.ready("a")
    script = {"simulate": {"hold": True}}
    asking = [asyncio.create_task(bench.ask(str(n), extra_body=script)) for n in range(200)]
    await engine.until_active(200)
    await bench.scheduler.until(lambda s: s.active.get("a") == 200)
    engine.let_go()
    answers = await asyncio.gather(*asking)
    assert {answer.choices[0].message.content for answer in answers} == {TEXT}
    await bench.scheduler.until(lambda s: s.active["a"] == 0 and s.started["a"] == 200)
    bench.replicas.check()


async def test_a_scheduler_killed_in_mid_climb_loses_no_request(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, schedulers=2) as bench:
        first, second = bench.schedulers
        first.climbs["m"] = Climb()
        climb = second.climbs["m"] = Climb(await bench.replica("a"))
        asking = [asyncio.create_task(bench.ask(stream=stream)) for stream in (False, True)]
        await first.until(lambda s: s.waiting == 2)
        assert not second.acquires, "one scheduler joins the requests to one climb"
        await first.__aexit__()
        await second.until(lambda s: s.waiting == 2)
        climb.finish.set()
        whole, stream = await asyncio.gather(*asking)
        assert whole.choices[0].message.content == await text_of(stream) == TEXT
        await second.until(lambda s: len(s.released) == 2)
        assert not first.released


async def test_a_scheduler_killed_in_mid_request_is_not_felt(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, schedulers=2) as bench:
        first, second = bench.schedulers
        replica = await bench.replica("a")
        first.climbs["m"] = climb = Climb(replica)
        climb.finish.set()
        holding = asyncio.create_task(bench.ask(extra_body={"simulate": {"hold": True}}))
        await bench.engines["a"].until_active(1)
        for scheduler in (first, second):
            await scheduler.until(lambda s: s.active == {"a": 1})
        await second.announce(replica)
        await first.__aexit__()
        assert (await bench.ask()).choices[0].message.content == TEXT
        assert "a" in bench.replicas.ids
        assert not second.acquires, "the other's list knows it"
        bench.engines["a"].let_go()
        assert (await holding).choices[0].finish_reason == "stop"
        await second.until(lambda s: (s.active, s.started) == ({"a": 0}, {"a": 2}))
