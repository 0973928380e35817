"""What the router records of each request: once, before its last byte, however it ends."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from opentelemetry import trace
from tests.memory.simulated_engine import SimulatedEngine
from tests.memory.simulated_scheduler import Climb
from tests.service.router_bench import Bench

from woodfrog.api.router.v1 import chats_pb2, chats_pb2_grpc
from woodfrog.clients.usages import UsagesClient
from woodfrog.clock import SystemClock
from woodfrog.errors import InvalidArgument
from woodfrog.metering import Ledger, Row, Usage
from woodfrog.model.placement import Caller, ReadyReplica
from woodfrog.model.rung import Rung
from woodfrog.router.gateway import Call, Gateway
from woodfrog.router.metrics import Metrics
from woodfrog.router.replica_client import ReplicaClient
from woodfrog.router.replicas import ReplicaTable
from woodfrog.router.routes import Route
from woodfrog.router.schedulers import Schedulers
from woodfrog.router.slots import Slots
from woodfrog.router.usage_records import UsageRecords


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with Bench.open(tmp_path, usage_file=tmp_path / "router" / "usage.db") as bench:
        yield bench


async def used(bench: Bench, model: str = "m") -> Usage:
    """Without its slot seconds, which only are more than none."""
    usage = (await bench.usages())["", model]
    return dataclasses.replace(usage, slot_s=0.0)


async def test_a_request_is_recorded_before_its_last_byte_is_read(bench: Bench) -> None:
    await bench.ready("a")
    await bench.ask()
    assert await used(bench) == Usage(requests=1, prompt_tokens=5, completion_tokens=8)
    stream = await bench.ask(stream=True)
    async for _ in stream:
        pass
    assert await used(bench) == Usage(requests=2, prompt_tokens=10, completion_tokens=16)
    options: Any = {"include_usage": True}
    more: Any = {"stream_options": options, "extra_body": {"simulate": {"tells": False}}}
    async for _ in await bench.ask(stream=True, **more):
        pass
    assert await used(bench) == Usage(requests=3, prompt_tokens=15, completion_tokens=24)
    assert (await bench.usages())["", "m"].slot_s > 0


@pytest.mark.parametrize("stream", [False, True])
async def test_the_record_is_there_when_the_last_byte_is_given_on(
    stream: bool, tmp_path: Path
) -> None:
    """Of the path itself, which waits where a slow client would."""
    clock, ledger, metrics = SystemClock(), Ledger(None), Metrics()
    table = ReplicaTable()
    schedulers = Schedulers(table, {}, lambda replica: None, lambda replica_id: None, clock)
    records = UsageRecords(ledger, metrics, clock)
    client = ReplicaClient(10.0)
    slots = Slots(table, schedulers, clock)
    gateway = Gateway(slots, client, metrics, records, clock, 10.0)
    path = str(tmp_path / "a.sock")
    table.apply([ReadyReplica("a", "m", "node-1", path, 1)], ())
    body = json.dumps({"model": "m", "stream": stream}).encode()
    call = Call(
        Route.CHAT, "m", body, stream, 10.0, clock.now(), "r", trace.INVALID_SPAN, Caller("frog")
    )
    seen: list[tuple[bytes, list[Row]]] = []
    async with SimulatedEngine(path), aclosing(gateway.answer(call)) as events:
        async for event in events:
            if isinstance(event, bytes):
                seen.append((event, ledger.page(0, 1 << 40)))
    client.close()
    last, (row,) = next(each for each in reversed(seen) if each[0])
    assert last.endswith(b"data: [DONE]\n\n" if stream else b"}")
    assert (row.tenant, row.usage.requests, row.usage.completion_tokens) == ("frog", 1, 8)
    assert ledger.page(0, 1 << 40) == [row]


async def test_the_typed_face_is_recorded_as_well(bench: Bench) -> None:
    await bench.ready("a")
    chat = chats_pb2.ChatRequest(
        model="m", messages=[chats_pb2.ChatMessage(role="user", content="hi")]
    )
    async with grpc.aio.insecure_channel(bench.grpc) as channel:
        stub = chats_pb2_grpc.ChatsStub(channel)  # type: ignore[no-untyped-call]
        await stub.Create(chats_pb2.CreateRequest(chat=chat))
        async for _ in stub.Stream(chats_pb2.StreamRequest(chat=chat)):
            pass
    assert await used(bench) == Usage(requests=2, prompt_tokens=10, completion_tokens=16)


async def test_a_stream_that_breaks_off_counts_what_went_out(bench: Bench) -> None:
    engine = await bench.ready("a")
    script: Any = {"simulate": {"die": 3, "interval_s": 0.01}}
    with pytest.raises(openai.APIError):
        async for _ in await bench.ask(stream=True, extra_body=script):
            pass
    assert await used(bench) == Usage(requests=1, failed=1, completion_tokens=3)
    script = {"simulate": {"hold": "mid"}}
    stream = await bench.ask(stream=True, extra_body=script)
    await anext(aiter(stream))
    await stream.close()  # the client leaves
    await bench.until(lambda: engine.cancelled == 1)
    assert await used(bench) == Usage(requests=2, failed=1, completion_tokens=4)


async def test_refusals_are_failed_requests_without_tokens(bench: Bench) -> None:
    await bench.ready("a")
    for status in (400, 500):
        script: Any = {"simulate": {"status": status}}
        with pytest.raises(openai.APIStatusError):
            await bench.ask(extra_body=script)
    assert await used(bench) == Usage(requests=2, failed=2)
    with pytest.raises(openai.NotFoundError):
        await bench.client.completions.create(model="nobody", prompt="hi")
    assert set(await bench.usages()) == {("", "m")}, "who names no model is nobody's usage"


async def test_each_request_that_waited_for_a_climb_has_a_wake(bench: Bench) -> None:
    replica = await bench.replica("a")
    climb = bench.scheduler.climbs["m"] = Climb(replica, rung=Rung.FROZEN, climb_ms=20.0)
    asking = [asyncio.create_task(bench.ask()) for _ in range(2)]
    await bench.until(lambda: bench.scheduler.waiting == 2)
    climb.finish.set()
    await asyncio.gather(*asking)
    usage = await used(bench)
    assert (usage.requests, usage.wakes) == (2, 2)
    await bench.until(lambda: "a" in bench.replicas.ids)
    await bench.ask()
    assert (await used(bench)).wakes == 2


async def test_an_attempt_that_another_replica_took_over_is_one_request(bench: Bench) -> None:
    await bench.ready("a", slots=1)
    first = bench.engines["a"]
    first.state = "parked"
    await bench.scheduler.announce(await bench.replica("b"))
    await bench.until(lambda: "b" in bench.replicas.ids)
    await bench.ask()
    assert await used(bench) == Usage(requests=1, prompt_tokens=5, completion_tokens=8)


async def test_usage_survives_a_restart_and_has_its_metrics(tmp_path: Path) -> None:
    file = tmp_path / "usage.db"
    for count in (1, 2):
        async with Bench.open(tmp_path, usage_file=file) as bench:
            await bench.ready("a")
            await bench.ask()
            assert (await used(bench)).requests == count
            metrics = await bench.metrics()
            assert 'woodfrog_router_usage_total{tenant="",unit="completion_tokens"} 8.0' in metrics
            head, _ = await bench.raw(b"GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n")
            assert b" 404 " in head, "the public port tells no tenant's usage"


async def test_a_span_that_cannot_be_is_refused(bench: Bench) -> None:
    async with UsagesClient(bench.grpc) as usages:
        with pytest.raises(InvalidArgument, match="nor end before it begins"):
            await usages.list(5, 4)
