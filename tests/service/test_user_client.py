"""The typed client for users, both faces, before a router with simulated engines."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.memory.simulated_scheduler import Climb
from tests.service.router_bench import Bench
from tests.service.test_router import TEXT
from tests.service.test_tenants import ACME, ACME_KEPT, ACME_KEY

from woodfrog.catalog import KeyPut, TenantPut
from woodfrog.client import AsyncClient, Client, Model
from woodfrog.errors import (
    DeadlineExceeded,
    NotFound,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)

HELLO = [("system", "Be brief."), ("user", "hi")]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with Bench.open(tmp_path) as bench:
        yield bench


async def test_answers_whole_and_in_pieces(bench: Bench) -> None:
    engine = await bench.ready("a")
    async with AsyncClient(bench.grpc) as client:
        answer = await client.chat("m", HELLO, max_tokens=8, temperature=0, stop=["."], user="me")
        assert (answer.text, answer.finish_reason, answer.rung) == (TEXT, "stop", "serving")
        assert (answer.prompt_tokens, answer.completion_tokens) == (5, 8)
        asked = engine.requests[-1].json
        assert asked["messages"] == [{"role": r, "content": c} for r, c in HELLO]
        assert (asked["max_tokens"], asked["stop"], asked["user"]) == (8, ["."], "me")
        pieces = [piece async for piece in client.chat_pieces("m", HELLO)]
        assert "".join(piece.text for piece in pieces) == TEXT
        assert (pieces[0].rung, pieces[-1].completion_tokens) == ("serving", 8)
        assert (await client.complete("m", "hi", max_tokens=8)).text == TEXT
        texts = [piece.text async for piece in client.complete_pieces("m", "hi")]
        assert "".join(texts) == TEXT
        assert [model.name for model in await client.models()] == ["m", "org/m"]


async def test_the_blocking_face_does_the_same(bench: Bench) -> None:
    await bench.ready("a")

    def work() -> None:
        with Client(bench.grpc) as client:
            assert client.models()[0] == Model("m", 1_700_000_000, 7)
            assert client.chat("m", HELLO).text == TEXT
            assert "".join(piece.text for piece in client.chat_pieces("m", HELLO)) == TEXT
            assert client.complete("m", "hi").text == TEXT
            assert "".join(piece.text for piece in client.complete_pieces("m", "hi")) == TEXT
            with pytest.raises(NotFound):
                client.chat("nobody", HELLO)
            with pytest.raises(NotFound):
                list(client.chat_pieces("nobody", HELLO))

    await asyncio.to_thread(work)


async def test_errors_are_those_of_the_gateway_with_the_time_to_come_back(bench: Bench) -> None:
    full = ResourceExhausted("NO_CAPACITY", "no node has room", retry_after_s=2.5)
    bench.scheduler.climbs["m"] = Climb(error=full)
    bench.scheduler.climbs["m"].finish.set()
    async with AsyncClient(bench.grpc) as client:
        with pytest.raises(ResourceExhausted) as refused:
            await client.chat("m", HELLO)
        assert (refused.value.reason, refused.value.retry_after_s) == ("NO_CAPACITY", 2.5)
    async with AsyncClient("127.0.0.1:1") as nowhere:
        with pytest.raises(Unavailable, match="the router does not answer"):
            await nowhere.models()


async def test_whoever_leaves_or_runs_out_of_time_ends_the_generation(bench: Bench) -> None:
    engine = await bench.ready("a")
    async with AsyncClient(bench.grpc, timeout_s=0.3) as client:
        with pytest.raises((DeadlineExceeded, Unavailable)):
            await client.chat("m", HELLO, simulate={"hold": True})
    await bench.until(lambda: engine.active == 0)
    async with AsyncClient(bench.grpc) as client:
        async for _ in client.chat_pieces(
            "m", HELLO, simulate={"tokens": 1000, "interval_s": 0.01}
        ):
            break
    await bench.until(lambda: engine.active == 0)


async def test_it_sends_its_key(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, auth="keys") as bench:
        await bench.ready("a")
        bench.catalog.events.put_nowait(TenantPut(ACME))
        bench.catalog.events.put_nowait(KeyPut(ACME_KEPT))
        await bench.until(lambda: bench.catalog.events.empty())
        async with AsyncClient(bench.grpc, ACME_KEY) as client:
            assert (await client.chat("m", HELLO)).text == TEXT
        async with AsyncClient(bench.grpc) as client:
            with pytest.raises(Unauthenticated):
                await client.chat("m", HELLO)
