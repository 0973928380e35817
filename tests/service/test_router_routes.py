"""Which paths lead to an engine, which are refused and how, and that a client's retry takes the place of what it retries."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.memory.simulated_scheduler import Climb
from tests.service.router_bench import Bench
from tests.service.test_router import TEXT, error_of, post

from woodfrog.errors import DeadlineExceeded, Internal

QUESTION = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with Bench.open(tmp_path) as bench:
        yield bench


@pytest.mark.parametrize(
    "path",
    ["/v1/rerank", "/v1/moderations", "/tokenize", "/v1/responses/input_tokens", "/v2/rerank"],
)
async def test_what_an_engine_may_offer_passes_by_its_path(bench: Bench, path: str) -> None:
    engine = await bench.ready("a")
    body = b'{"model": "m", "whatever": [1.50]}'
    head, answer = await bench.raw(post(body, path=path + "?api-version=1"))
    assert head.startswith(b"HTTP/1.1 200")
    assert json.loads(answer)["path"] == path
    assert engine.requests[-1].body == body
    head, answer = await bench.raw(post(b"{}", path=path))
    assert (head[9:12], error_of(answer)["code"]) == (b"400", "missing_model")
    head, answer = await bench.raw(f"GET {path} HTTP/1.1\r\nconnection: close\r\n\r\n".encode())
    assert (head[9:12], error_of(answer)["code"]) == (b"405", "method_not_allowed")
    assert b"\r\nallow: POST\r\n" in head


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/audio/speech"),
        ("POST", "/v1/audio/transcriptions"),
        ("POST", "/v1/images/edits"),
        ("POST", "/v1/files"),
        ("GET", "/v1/files/file-1/content"),
        ("POST", "/v1/batches"),
        ("POST", "/v1/assistants"),
        ("POST", "/v1/threads/runs"),
        ("GET", "/v1/fine_tuning/jobs"),
        ("GET", "/v1/responses/resp_1"),
        ("DELETE", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel"),
        ("GET", "/v1/chat/completions/chatcmpl-1"),
        ("POST", "/v1/load_lora_adapter"),
    ],
)
async def test_what_is_never_served_says_so(bench: Bench, method: str, path: str) -> None:
    engine = await bench.ready("a")
    head, answer = await bench.raw(post(QUESTION, path=path).replace(b"POST", method.encode(), 1))
    error = error_of(answer)
    assert (head[9:12], error["code"]) == (b"404", "route_not_supported")
    assert error["message"].startswith(f"{path} is not served: ")
    assert not engine.requests


@pytest.mark.parametrize(
    "path", ["/sleep", "/wake_up", "/v1", "/v1/", "/v1//x", "/v1/../sleep", "/v1/%2e%2e/sleep",
             "/v1/a%0d%0ab", "/v1/a%20b", "/v1/%C3%A9", "/v1/" + "a/" * 5 + "a"]
)  # fmt: skip
async def test_an_engines_own_verbs_are_not_reached(bench: Bench, path: str) -> None:
    engine = await bench.ready("a")
    head, answer = await bench.raw(post(QUESTION, path=path))
    assert (head[9:12], error_of(answer)["code"]) == (b"404", "route_not_found")
    assert not engine.requests


async def test_new_paths_make_no_new_metrics(bench: Bench) -> None:
    await bench.ready("a")
    for path in ("/v1/one", "/v1/two"):
        await bench.raw(post(QUESTION, path=path))
    text = await bench.metrics()
    assert 'woodfrog_router_requests_total{model="m",route="/v1/*",status="200"} 2.0' in text
    assert "/v1/one" not in text


async def test_each_refusal_is_counted_by_its_reason(bench: Bench) -> None:
    for body in (b"{", b'{"model": ""}', b'{"model": "nobody"}'):
        await bench.raw(post(body))
    text = await bench.metrics()
    for reason in ("INVALID_JSON", "MISSING_MODEL", "MODEL_NOT_FOUND"):
        assert f'woodfrog_router_refusals_total{{reason="{reason}"}} 1.0' in text


async def test_forms_are_refused_before_they_are_read(bench: Bench) -> None:
    await bench.ready("a")
    form = b"content-length: 1073741824\r\ncontent-type: multipart/form-data; boundary=x"
    for path, status, code in (
        (b"/v1/images/edits", b"404", "route_not_supported"),
        (b"/v1/audio/transcriptions", b"404", "route_not_supported"),
        (b"/v1/rerank", b"415", "unsupported_media_type"),
    ):
        head, body = await bench.raw(b"POST %b HTTP/1.1\r\n%b\r\n\r\n--x\r\n" % (path, form))
        assert (head[9:12], error_of(body)["code"]) == (status, code)
    with pytest.raises(openai.NotFoundError, match="no engine here takes or makes sound"):
        await bench.client.audio.transcriptions.create(model="m", file=("a.wav", b"RIFF" * 1000))


async def test_embeddings_as_floats_and_as_base64(bench: Bench) -> None:
    engine = await bench.ready("a")
    vector = [0.5, -0.25, 0.125, 1.0]
    asked = await bench.client.embeddings.create(model="m", input=["a", "b"])
    assert [each.embedding for each in asked.data] == [vector, vector]
    assert engine.requests[-1].json["encoding_format"] == "base64", "the client's own wish"
    floats = await bench.client.embeddings.create(model="m", input="a", encoding_format="float")
    assert floats.data[0].embedding == vector


async def test_responses_whole_and_as_events(bench: Bench) -> None:
    await bench.ready("a")
    whole = await bench.client.responses.create(model="m", input="hi")
    assert whole.output_text == TEXT
    async with bench.client.responses.stream(model="m", input="hi") as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert final.output_text == TEXT
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")


async def test_a_stream_of_responses_waits_with_comments_and_fails_with_its_own_event(
    bench: Bench,
) -> None:
    climb = bench.scheduler.climbs["m"] = Climb(error=Internal("BROKEN", "it broke"))
    stream = await bench.client.responses.create(model="m", input="hi", stream=True)
    climb.finish.set()
    with pytest.raises(openai.APIError, match="it broke") as failure:
        _ = [event async for event in stream]
    assert failure.value.code == "broken"
    climb.finish.clear()
    body = b'{"model":"m","input":"hi","stream":true}'
    asking = asyncio.create_task(bench.raw(post(body, path="/v1/responses")))
    await bench.scheduler.until(lambda s: s.waiting == 1)
    await asyncio.wait({asking}, timeout=0.2)
    climb.finish.set()
    _, answer = await asking
    head, event, data, *_ = answer.decode().rstrip().rpartition("event: ")[2].partition("\ndata: ")
    assert head == "error"
    assert event
    value = json.loads(data.partition("\r\n")[0])
    assert (value["type"], value["code"], value["message"]) == ("error", "broken", "it broke")


# --- retries ---


async def test_a_client_that_times_out_has_one_waiter_and_one_answer(bench: Bench) -> None:
    """Its first request is closed by the client, its second is not told `still waking` before the climb ends."""
    climb = bench.scheduler.climbs["m"] = Climb(await bench.replica("a"))
    client = bench.client.with_options(max_retries=2, timeout=0.5)
    asking = asyncio.create_task(client.embeddings.create(model="m", input="a"))
    await bench.scheduler.until(lambda s: len(s.acquires) == 2)
    climb.finish.set()
    assert (await asking).data
    assert bench.scheduler.waiting_most == 1
    assert len(bench.engines["a"].requests) == 1


def keyed(key: str, retries: int = 0) -> bytes:
    named = [f"idempotency-key: {key}"] if key else []
    return post(QUESTION, f"x-stainless-retry-count: {retries}", *named)


@pytest.mark.parametrize("sent", [("k", 0, 0), ("k", 0, 1), ("", 0, 1), ("", 0, 2)])
async def test_a_retry_takes_the_place_of_what_still_waits(
    bench: Bench, sent: tuple[str, int, int]
) -> None:
    """As when a proxy in between keeps the connection that its client gave up."""
    key, first, second = sent
    climb = bench.scheduler.climbs["m"] = Climb(await bench.replica("a"))
    old = asyncio.create_task(bench.raw(keyed(key, first)))
    await bench.scheduler.until(lambda s: s.waiting == 1)
    new = asyncio.create_task(bench.raw(keyed(key, second)))
    head, body = await old
    assert (head[9:12], error_of(body)["code"]) == (b"409", "superseded")
    assert b"\r\nx-should-retry: false\r\n" in head
    await bench.scheduler.until(lambda s: len(s.acquires) == 2 and s.waiting == 1)
    climb.finish.set()
    head, _ = await new
    assert head.startswith(b"HTTP/1.1 200")
    assert len(bench.engines["a"].requests) == 1


@pytest.mark.parametrize("second", [("k", 1), ("", 0)])
async def test_equal_questions_that_are_no_retries_are_all_answered(
    bench: Bench, second: tuple[str, int]
) -> None:
    climb = bench.scheduler.climbs["m"] = Climb(await bench.replica("a"))
    asking = [asyncio.create_task(bench.raw(keyed(*each))) for each in (("", 0), ("", 0), second)]
    await bench.scheduler.until(lambda s: s.waiting == 3)
    climb.finish.set()
    assert [head[9:12] for head, _ in await asyncio.gather(*asking)] == [b"200"] * 3


async def test_a_retry_ends_the_generation_of_what_it_retries(bench: Bench) -> None:
    engine = await bench.ready("a")
    body = QUESTION[:-1] + b',"simulate":{"hold":true}}'
    old = asyncio.create_task(bench.raw(post(body, "idempotency-key: k")))
    await engine.until_active(1)
    new = asyncio.create_task(bench.raw(post(body, "idempotency-key: k")))
    assert (await old)[0][9:12] == b"409"
    await bench.until(lambda: engine.cancelled == 1 and engine.active == 1)
    engine.let_go()
    assert (await new)[0].startswith(b"HTTP/1.1 200")


async def test_a_retry_leaves_a_stream_that_flows_alone(bench: Bench) -> None:
    engine = await bench.ready("a")
    headers = {"idempotency-key": "k"}
    held: Any = {"simulate": {"hold": "mid"}}
    stream = await bench.ask(stream=True, extra_headers=headers, extra_body=held)
    first = await anext(stream)
    again = await bench.ask(stream=True, extra_headers=headers, extra_body=held)
    await engine.until_active(2)
    engine.let_go()
    rest = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert first.choices[0].delta.content + "".join(rest) == TEXT
    assert [chunk async for chunk in again]


@pytest.mark.parametrize(("predicted_s", "told_ms"), [(7.25, "7250"), (600.0, "60000")])
async def test_who_waited_in_vain_is_told_the_predicted_time(
    bench: Bench, predicted_s: float, told_ms: str
) -> None:
    error = DeadlineExceeded("ACQUIRE_DEADLINE", "it still climbs", retry_after_s=predicted_s)
    climb = bench.scheduler.climbs["m"] = Climb(error=error)
    climb.finish.set()
    with pytest.raises(openai.InternalServerError, match="still climbs") as failure:
        await bench.ask()
    assert failure.value.code == "model_waking"
    assert failure.value.response.headers["retry-after-ms"] == told_ms
