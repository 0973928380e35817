"""The gRPC face: the same path, typed; and the traces of both faces."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from google.rpc import error_details_pb2, status_pb2
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.memory.simulated_scheduler import Climb
from tests.service import reflection
from tests.service.router_bench import Bench
from tests.service.test_router import PARENT, TEXT, post

from woodfrog import errors
from woodfrog.api.router.v1 import (
    chats_pb2,
    chats_pb2_grpc,
    completions_pb2,
    completions_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
)
from woodfrog.errors import status
from woodfrog.model.rung import Rung


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with Bench.open(tmp_path) as bench:
        yield bench


@pytest.fixture
async def channel(bench: Bench) -> AsyncIterator[grpc.aio.Channel]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(bench.grpc, options=options) as channel:
        yield channel


@pytest.fixture
def chats(channel: grpc.aio.Channel) -> chats_pb2_grpc.ChatsStub:
    return chats_pb2_grpc.ChatsStub(channel)  # type: ignore[no-untyped-call]


@pytest.fixture
def spans() -> InMemorySpanExporter:
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        provider = TracerProvider()
        trace.set_tracer_provider(provider)
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


def chat(**extra: Any) -> chats_pb2.ChatRequest:
    request = chats_pb2.ChatRequest(
        model="m",
        messages=[chats_pb2.ChatMessage(role="user", content="hi")],
        max_tokens=8,
        temperature=0.5,
        stop=["\n"],
    )
    request.extra.update(extra)
    return request


async def failure(call: Any) -> errors.WoodfrogError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return status.from_rpc_error(raised.value, "router")


async def test_chat_whole(bench: Bench, chats: chats_pb2_grpc.ChatsStub) -> None:
    engine = await bench.ready("a")
    extra = {"n": 1, "logit_bias": {"5": -2.5}, "temperature": 9}
    answer = await chats.Create(chats_pb2.CreateRequest(chat=chat(**extra)))
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == 13
    assert answer.wake == chats_pb2.Wake(rung="serving")
    assert json.loads(engine.requests[0].body) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 8,
        "temperature": 0.5,
        "stop": ["\n"],
        "n": 1,
        "logit_bias": {"5": -2.5},
        "stream": False,
    }
    assert b'"n": 1,' in engine.requests[0].body, "engines refuse 1.0"


async def test_chat_stream_after_a_wake(bench: Bench, chats: chats_pb2_grpc.ChatsStub) -> None:
    climb = Climb(await bench.replica("a"), climb_ms=90.5, fallback_reason="it was damaged")
    bench.scheduler.climbs["m"] = climb
    call = chats.Stream(chats_pb2.StreamRequest(chat=chat()))
    await bench.scheduler.until(lambda s: s.waiting == 1)
    climb.finish.set()
    pieces = [piece async for piece in call]
    assert "".join(piece.content for piece in pieces) == TEXT
    wake = chats_pb2.Wake(rung="frozen", climb_ms=90.5, fallback_reason="it was damaged")
    assert [piece.wake for piece in pieces if piece.HasField("wake")] == [wake]
    assert pieces[0].wake == wake
    assert [piece.finish_reason for piece in pieces if piece.finish_reason] == ["stop"]
    assert pieces[-1].usage.completion_tokens == 8


async def test_completions(bench: Bench, channel: grpc.aio.Channel) -> None:
    await bench.ready("a")
    stub = completions_pb2_grpc.CompletionsStub(channel)  # type: ignore[no-untyped-call]
    request = completions_pb2.CompletionRequest(model="m", prompt="hi")
    answer = await stub.Complete(completions_pb2.CompleteRequest(completion=request))
    assert answer.choices[0].text == TEXT
    call = stub.StreamComplete(completions_pb2.StreamCompleteRequest(completion=request))
    assert "".join([piece.text async for piece in call]) == TEXT


async def test_models(channel: grpc.aio.Channel) -> None:
    stub = models_pb2_grpc.ModelsStub(channel)  # type: ignore[no-untyped-call]
    listed = await stub.ListModels(models_pb2.ListModelsRequest())
    assert [model.id for model in listed.models] == ["m", "org/m"]
    got = await stub.GetModel(models_pb2.GetModelRequest(model="org/m"))
    assert got.model == models_pb2.Model(id="org/m", create_time=1_700_000_000, weights_bytes=7)
    missing = await failure(stub.GetModel(models_pb2.GetModelRequest(model="nobody")))
    assert isinstance(missing, errors.NotFound)
    assert missing.reason == "MODEL_NOT_FOUND"


async def test_errors_are_rich(bench: Bench, chats: chats_pb2_grpc.ChatsStub) -> None:
    climb = Climb(error=errors.ResourceExhausted("NO_CAPACITY", "full", retry_after_s=2.5))
    climb.finish.set()
    bench.scheduler.climbs["m"] = climb
    error = await failure(chats.Create(chats_pb2.CreateRequest(chat=chat())))
    assert isinstance(error, errors.ResourceExhausted)
    assert (error.reason, error.retry_after_s) == ("NO_CAPACITY", 2.5)
    error = await failure(chats.Create(chats_pb2.CreateRequest()))
    assert isinstance(error, errors.InvalidArgument)
    assert error.metadata["param"] == "model"
    await bench.ready("a")
    script = {"status": 429}
    error = await failure(chats.Create(chats_pb2.CreateRequest(chat=chat(simulate=script))))
    assert isinstance(error, errors.ResourceExhausted)
    assert (error.reason, error.message) == ("SIMULATED", "simulated error")
    assert error.retry_after_s == 1.5


async def test_details_are_google_rpcs(bench: Bench, chats: chats_pb2_grpc.ChatsStub) -> None:
    """As a client in another language reads them."""
    full = errors.ResourceExhausted("NO_CAPACITY", "full", retry_after_s=2.5, model="m")
    bench.scheduler.climbs["m"] = Climb(error=full)
    bench.scheduler.climbs["m"].finish.set()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await chats.Create(chats_pb2.CreateRequest(chat=chat()))
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailing: Any = dict(raised.value.trailing_metadata())  # type: ignore[arg-type]
    details = status_pb2.Status.FromString(trailing["grpc-status-details-bin"]).details
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert [details[0].Unpack(info), details[1].Unpack(retry), len(details)] == [True, True, 2]
    assert (info.reason, info.domain, info.metadata["model"]) == ("NO_CAPACITY", "woodfrog", "m")
    assert retry.retry_delay.ToTimedelta().total_seconds() == 2.5


async def test_who_knows_nothing_of_it_may_ask_and_watch_its_health(bench: Bench) -> None:
    await bench.ready("a")

    def look() -> None:
        listed = reflection.services(bench.grpc)
        faces = ("Chats", "Completions", "Embeddings", "Images", "Models")
        assert listed == {
            "woodfrog.api.metering.v1.Usages",
            *(f"woodfrog.api.router.v1.{face}" for face in faces),
        }
        assert all(reflection.serves(bench.grpc, name) for name in ("", *listed))
        with pytest.raises(grpc.RpcError) as unknown:
            reflection.serves(bench.grpc, "woodfrog.api.router.v1.Frogs")
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        asked = {"chat": {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}}
        answer = reflection.ask(bench.grpc, "woodfrog.api.router.v1.Chats", "Create", asked)
        assert answer["choices"][0]["message"]["content"] == TEXT

    await asyncio.to_thread(look)


async def test_death_in_mid_stream(bench: Bench, chats: chats_pb2_grpc.ChatsStub) -> None:
    await bench.ready("a")
    call = chats.Stream(chats_pb2.StreamRequest(chat=chat(simulate={"die": 3})))
    got: list[str] = []

    async def read() -> None:
        async for piece in call:
            got.append(piece.content)

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await read()
    assert "".join(got) == "once upon a"
    error = status.from_rpc_error(raised.value, "router")
    assert isinstance(error, errors.Unavailable)
    assert error.reason == "REPLICA_LOST"


@pytest.mark.parametrize("stream", [False, True])
async def test_cancelled_call_frees_its_slot(
    bench: Bench, chats: chats_pb2_grpc.ChatsStub, stream: bool
) -> None:
    engine = await bench.ready("a")
    request = chat(simulate={"hold": "mid" if stream else True})
    call: Any
    if stream:
        call = chats.Stream(chats_pb2.StreamRequest(chat=request))
        await call.read()
    else:
        call = chats.Create(chats_pb2.CreateRequest(chat=request))
    await engine.until_active(1)
    call.cancel()
    await engine.until_active(0)
    assert engine.cancelled == 1
    await bench.until(lambda: bench.replicas.active("a") == 0)


async def test_a_client_that_does_not_read_its_stream_is_cut_off(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, unread_wait_s=0.3) as bench:
        engine = await bench.ready("a")
        async with grpc.aio.insecure_channel(bench.grpc) as channel:
            stub = chats_pb2_grpc.ChatsStub(channel)  # type: ignore[no-untyped-call]
            script = {"tokens": 1_000_000, "text": "frog" * 4096}
            call = stub.Stream(chats_pb2.StreamRequest(chat=chat(simulate=script)))
            await call.read()
            await engine.until_active(1)
            await engine.until_active(0)
            assert engine.cancelled == 1
            await bench.until(lambda: bench.replicas.active("a") == 0)
            slow = {
                "tokens": 5,
                "interval_s": 0.2,
            }  # an engine that takes its time is no client's fault
            read = stub.Stream(chats_pb2.StreamRequest(chat=chat(simulate=slow)))
            assert len([piece async for piece in read]) > 5


async def test_deadline_bounds_the_wait(bench: Bench, chats: chats_pb2_grpc.ChatsStub) -> None:
    bench.scheduler.climbs["m"] = Climb()
    call = chats.Create(chats_pb2.CreateRequest(chat=chat()), timeout=0.2)
    assert isinstance(await failure(call), errors.DeadlineExceeded | errors.Unavailable)
    await bench.scheduler.until(lambda s: s.waiting == 0)


def called(span: ReadableSpan) -> tuple[Any, str]:
    return (span.attributes or {}).get("rpc.response.status_code"), span.kind.name


def by_name(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


async def test_a_streams_span_lasts_as_long_as_its_answer_and_says_why_it_failed(
    bench: Bench, chats: chats_pb2_grpc.ChatsStub, spans: InMemorySpanExporter
) -> None:
    name = "woodfrog.api.router.v1.Chats/Stream"
    engine = await bench.ready("a")
    call = chats.Stream(chats_pb2.StreamRequest(chat=chat(simulate={"hold": "mid"})))
    await call.read()
    await engine.until_active(1)
    assert name not in by_name(spans)
    call.cancel()
    await bench.until(lambda: name in by_name(spans))
    assert by_name(spans)[name].status.status_code is not trace.StatusCode.ERROR
    nobody = chats_pb2.ChatRequest(model="nobody", messages=[{"role": "user", "content": "hi"}])
    for asked, reason, code in (
        (nobody, "MODEL_NOT_FOUND", trace.StatusCode.UNSET),  # the client's own
        (chat(simulate={"die": 3}), "REPLICA_LOST", trace.StatusCode.ERROR),
    ):
        spans.clear()
        with pytest.raises(grpc.aio.AioRpcError):
            [piece async for piece in chats.Stream(chats_pb2.StreamRequest(chat=asked))]
        await bench.until(lambda: name in by_name(spans))
        failed = by_name(spans)[name]
        assert failed.status.status_code is code
        assert (failed.attributes or {})["error.type"] == reason


async def test_trace_of_a_wake(bench: Bench, spans: InMemorySpanExporter) -> None:
    """A joined climb belongs to another trace: the acquire links to it."""
    climb_parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    climb = Climb(await bench.replica("a"), rung=Rung.STORED, traceparent=climb_parent)
    climb.finish.set()
    bench.scheduler.climbs["m"] = climb
    body = b'{"model":"m","messages":[],"stream":true}'
    head, _ = await bench.raw(post(body, f"traceparent: {PARENT}"))
    trace_id = PARENT.split("-")[1]
    assert f"x-woodfrog-trace-id: {trace_id}".encode() in head
    await bench.until(lambda: "POST /v1/chat/completions" in by_name(spans))
    tree = by_name(spans)
    root = tree["POST /v1/chat/completions"]
    assert root.kind is trace.SpanKind.SERVER
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == PARENT.split("-")[2]
    assert dict(root.attributes or {}) == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "url.path": "/v1/chat/completions",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "woodfrog",
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 8,
        "woodfrog.request_id": (root.attributes or {})["woodfrog.request_id"],
        "woodfrog.rung": "stored",
        "woodfrog.climb_ms": 100.0,
    }
    parents = {
        "router.acquire": "POST /v1/chat/completions",
        "woodfrog.api.scheduler.v1.Placements/Acquire": "router.acquire",
        "router.forward": "POST /v1/chat/completions",
        "router.first_token": "router.forward",
    }
    clients = {s.name: s for s in spans.get_finished_spans() if s.kind is not trace.SpanKind.SERVER}
    for child, parent in parents.items():
        span = clients[child]
        assert span.parent is not None
        assert span.parent.span_id == tree[parent].context.span_id, child
        assert f"{span.context.trace_id:032x}" == trace_id
    rpc = clients["woodfrog.api.scheduler.v1.Placements/Acquire"]
    address, _, port = bench.scheduler.address.partition(":")
    assert dict(rpc.attributes or {}) == {
        "rpc.system.name": "grpc",
        "rpc.method": "woodfrog.api.scheduler.v1.Placements/Acquire",
        "rpc.response.status_code": "OK",
        "server.address": address,
        "server.port": int(port),
    }
    (link,) = clients["router.acquire"].links
    assert f"{link.context.span_id:016x}" == climb_parent.split("-")[2]
    engine_parent = bench.engines["a"].requests[0].headers["traceparent"]
    assert engine_parent.split("-")[2] == f"{clients['router.forward'].context.span_id:016x}"


async def test_trace_of_a_failure(bench: Bench, spans: InMemorySpanExporter) -> None:
    for name in "abc":
        await bench.ready(name)
    bench.engines["a"].state = "failed"
    await bench.ask()
    with pytest.raises(openai.InternalServerError):
        await bench.ask(extra_body={"simulate": {"die": 0}})
    await bench.until(
        lambda: [s.name for s in spans.get_finished_spans()].count("POST /v1/chat/completions") == 2
    )
    finished = spans.get_finished_spans()
    first, second = [s for s in finished if s.name == "POST /v1/chat/completions"]
    assert first.status.status_code is trace.StatusCode.UNSET
    assert second.status.status_code is trace.StatusCode.ERROR
    assert (second.attributes or {})["error.type"] == "REPLICA_LOST"
    forwards = [s for s in finished if s.name == "router.forward"]
    assert forwards[0].status.status_code is trace.StatusCode.ERROR
    assert (forwards[1].attributes or {})["woodfrog.retries"] == "1"


async def test_what_an_engine_failed_at_is_an_error_by_either_face(
    bench: Bench, chats: chats_pb2_grpc.ChatsStub, spans: InMemorySpanExporter
) -> None:
    await bench.ready("a")
    with pytest.raises(openai.InternalServerError):
        await bench.ask(extra_body={"simulate": {"status": 500}})
    with pytest.raises(openai.RateLimitError):
        await bench.ask(extra_body={"simulate": {"status": 429}})
    await failure(chats.Create(chats_pb2.CreateRequest(chat=chat(simulate={"status": 500}))))
    call = chats.Stream(chats_pb2.StreamRequest(chat=chat(simulate={"die": 3})))
    with pytest.raises(grpc.aio.AioRpcError):
        _ = [piece async for piece in call]
    unknown = chats_pb2.ChatRequest(model="nobody")
    await failure(chats.Create(chats_pb2.CreateRequest(chat=unknown)))
    (rpc,) = [s for s in spans.get_finished_spans() if called(s) == ("NOT_FOUND", "SERVER")]
    assert rpc.status.status_code is trace.StatusCode.UNSET, "it is the caller's to mend"
    names = ("POST /v1/chat/completions", "chat m")
    await bench.until(lambda: sum(s.name in names for s in spans.get_finished_spans()) == 4)
    failed, refused, *typed = [s for s in spans.get_finished_spans() if s.name in names]
    assert failed.status.status_code is trace.StatusCode.ERROR
    assert (failed.attributes or {})["error.type"] == "500"
    assert refused.status.status_code is trace.StatusCode.UNSET
    assert [s.status.status_code for s in typed] == [trace.StatusCode.ERROR] * 2


async def test_trace_of_a_client_that_left(bench: Bench, spans: InMemorySpanExporter) -> None:
    engine = await bench.ready("a")
    asking = asyncio.create_task(bench.ask(extra_body={"simulate": {"hold": True}}))
    await engine.until_active(1)
    asking.cancel()
    await bench.until(lambda: "POST /v1/chat/completions" in by_name(spans))
    root = by_name(spans)["POST /v1/chat/completions"]
    assert (root.attributes or {})["http.response.status_code"] == 499
    assert root.status.status_code is trace.StatusCode.UNSET
