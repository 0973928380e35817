"""The typed client for users, both faces, before a router with simulated engines."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.memory.simulated_answers import ARGUMENTS
from tests.memory.simulated_scheduler import Climb
from tests.service.router_bench import Bench
from tests.service.test_router import TEXT
from tests.service.test_tenants import ACME, ACME_KEPT, ACME_KEY

from woodfrog.catalog import KeyPut, TenantPut
from woodfrog.client import AsyncClient, Client, Message, Model, ToolCall
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


async def test_calls_of_functions_and_their_results(bench: Bench) -> None:
    engine = await bench.ready("a")
    tools = [{"type": "function", "function": {"name": "pond"}}]
    script = {"calls": ["pond", "frog"]}
    async with AsyncClient(bench.grpc) as client:
        answer = await client.chat("m", HELLO, tools=tools, simulate=script)
        assert (answer.text, answer.finish_reason) == ("", "tool_calls")
        assert answer.tool_calls[1] == ToolCall("call_1", "frog", ARGUMENTS)
        pieces = [piece async for piece in client.chat_pieces("m", HELLO, simulate=script)]
        told = [call for piece in pieces for call in piece.tool_calls]
        assert [call.name for call in told] == ["pond", "", "frog", ""]
        assert "".join(call.arguments for call in told if call.index == 1) == ARGUMENTS
        said = Message("assistant", tool_calls=answer.tool_calls)
        results = [Message("tool", "deep", tool_call_id=call.id) for call in answer.tool_calls]
        assert (await client.chat("m", [*HELLO, said, *results], tools=tools)).text == TEXT
    asked = engine.requests[-1].json
    assert asked["tools"] == tools
    roles = ["system", "user", "assistant", "tool", "tool"]
    assert [message["role"] for message in asked["messages"]] == roles
    assert asked["messages"][2]["tool_calls"][0]["function"]["name"] == "pond"


async def test_vectors_and_pictures(bench: Bench) -> None:
    engine = await bench.ready("a")
    async with AsyncClient(bench.grpc) as client:
        vectors = await client.embed("m", ["a", "b"], dimensions=4, user="me")
        assert vectors == ((0.5, -0.25, 0.125, 1.0),) * 2
        asked = engine.requests[-1].json
        assert (asked["input"], asked["dimensions"], asked["user"]) == (["a", "b"], 4, "me")
        (image,) = await client.images("m", "a frog", size="64x64", seed=7)
        assert image.startswith(b"\x89PNG")
        asked = engine.requests[-1].json
        assert (asked["prompt"], asked["size"], asked["seed"]) == ("a frog", "64x64", 7)
        with pytest.raises(NotFound):
            await client.embed("nobody", ["a"])

    def work() -> None:
        with Client(bench.grpc) as client:
            assert client.embed("m", ["a"]) == vectors[:1]
            assert client.images("m", "a frog") == (image,)

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
