"""Clients that mean no good, or are broken: the router's memory stays bounded and others are served."""

import asyncio
import json
import random
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from tests.capabilities import need
from tests.memory.simulated_scheduler import Climb
from tests.service import router_process
from tests.service.router_bench import Bench
from tests.service.router_process import RouterProcess, idle, resident_bytes, slow_readers
from tests.service.test_router import error_of, post

from woodfrog.api.router.v1 import chats_pb2, chats_pb2_grpc

MIB = 1 << 20
SLOW_READERS = 100  # loadtest.slow_readers has thousands
READER_BYTES_MAX = MIB // 2  # a fifth was seen
KERNEL_BYTES_MAX = (
    96 << 10
)  # of one of them; 46,000 were seen, and 205,000 where nothing bounds what is not sent yet


@pytest.fixture
async def router(tmp_path: Path) -> AsyncIterator[RouterProcess]:
    async with router_process.opened(tmp_path, "m", slots=4096) as router:
        await served(router, 20)
        yield router


async def served(router: RouterProcess, count: int) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"http://{router.http}/v1", api_key="k", max_retries=0, timeout=30
    ) as client:
        for _ in range(count):
            answer = await client.completions.create(model="m", prompt="hi")
            assert answer.choices[0].text


async def connect(router: RouterProcess) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = router.http.partition(":")
    return await asyncio.open_connection(host, int(port), limit=MIB)


@need("etcd")
async def test_readers_that_do_not_read(router: RouterProcess) -> None:
    before = resident_bytes(router.pid)
    async with slow_readers(router.http, "m", SLOW_READERS):
        await served(router, 5)
        await idle(router.engine_pid)
        grown = resident_bytes(router.pid) - before
        assert grown < SLOW_READERS * READER_BYTES_MAX, f"{grown / SLOW_READERS:.0f} bytes each"
        held = unsent_bytes(router.http)
        assert len(held) >= SLOW_READERS
        assert 0 < max(held) < KERNEL_BYTES_MAX
        await served(router, 5)
    await served(router, 5)


def unsent_bytes(address: str) -> list[int]:
    """What the kernel holds of answers, for each connection to the address."""
    command = ["ss", "-Htmn", "state", "established", f"sport = :{address.rpartition(':')[2]}"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [int(each) for each in re.findall(r"skmem:\(.*?,w(\d+),", told)]


@need("etcd")
@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_of_a_gibibyte(router: RouterProcess, declared: bool) -> None:
    before = resident_bytes(router.pid)
    reader, writer = await connect(router)
    size = f"content-length: {1 << 30}" if declared else "transfer-encoding: chunked"
    writer.write(f"POST /v1/completions HTTP/1.1\r\nhost: h\r\n{size}\r\n\r\n".encode())
    head = asyncio.create_task(
        reader.readuntil(b"\r\n\r\n")
    )  # what came is lost with the connection
    part = b" " * MIB if declared else b"100000\r\n" + b" " * MIB + b"\r\n"
    sent = 0
    try:
        for _ in range(1024):
            writer.write(part)
            await writer.drain()
            sent += 1
    except ConnectionError:
        pass
    assert sent < 200, "the connection is closed before all of it was sent"
    assert (await head).startswith(b"HTTP/1.1 413")
    writer.close()
    assert resident_bytes(router.pid) - before < 64 * MIB
    await served(router, 5)


@need("etcd")
async def test_a_flood_of_headers(router: RouterProcess) -> None:
    before = resident_bytes(router.pid)
    flood = b"".join(b"x-%d: %b\r\n" % (n, b"y" * 1000) for n in range(1000))
    statuses = []
    for _ in range(50):
        reader, writer = await connect(router)
        try:
            writer.write(b"POST /v1/completions HTTP/1.1\r\n" + flood)
            statuses.append((await reader.readline())[9:12])
        finally:
            writer.close()
    assert set(statuses) == {b"431"}
    endless = [await connect(router) for _ in range(200)]  # heads that never end
    for _, writer in endless:
        writer.write(b"POST /v1/completions HTTP/1.1\r\nx: " + b"y" * 30_000)
    await served(router, 20)
    assert resident_bytes(router.pid) - before < 64 * MIB
    for _, writer in endless:
        writer.close()


async def test_bodies_that_wait_have_a_limit_together(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, bodies_bytes_max=6 * MIB) as bench:
        climb = bench.scheduler.climbs["m"] = Climb(await bench.replica("a"))
        waiting = [asyncio.create_task(bench.ask("x" * (MIB + MIB // 3))) for _ in range(2)]
        await bench.scheduler.until(lambda s: s.waiting == 2)
        with pytest.raises(openai.RateLimitError) as failure:
            await bench.ask("x" * MIB)
        assert failure.value.code == "router_full"
        assert failure.value.response.headers["retry-after-ms"] == "1000"
        small = asyncio.create_task(bench.ask("hi"))
        await bench.scheduler.until(lambda s: s.waiting == 3)
        climb.finish.set()
        await asyncio.gather(*waiting, small)
        await bench.ask("x" * MIB)
        with pytest.raises(openai.APIStatusError):
            await bench.ask("x" * (3 * MIB))
        for _ in range(4):  # what was refused is given back too
            await bench.ask("x" * MIB)


async def test_bodies_by_grpc_count_with_the_others_and_a_huge_one_is_not_read(
    tmp_path: Path,
) -> None:
    def asked(size: int) -> chats_pb2.CreateRequest:
        message = chats_pb2.ChatMessage(role="user", content="x" * size)
        return chats_pb2.CreateRequest(chat=chats_pb2.ChatRequest(model="m", messages=[message]))

    async def code(size: int) -> grpc.StatusCode:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Create(asked(size))
        return raised.value.code()

    async with (
        Bench.open(tmp_path, bodies_bytes_max=5 * MIB, body_bytes_max=2 * MIB) as bench,
        grpc.aio.insecure_channel(bench.grpc) as channel,
    ):
        stub = chats_pb2_grpc.ChatsStub(channel)  # type: ignore[no-untyped-call]
        climb = bench.scheduler.climbs["m"] = Climb(await bench.replica("a"))
        waiting = [asyncio.ensure_future(stub.Create(asked(MIB + MIB // 3))) for _ in range(2)]
        await bench.scheduler.until(lambda s: s.waiting == 2)
        assert await code(MIB) is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(openai.RateLimitError):
            await bench.ask("x" * MIB)
        climb.finish.set()
        await asyncio.gather(*waiting)
        assert await code(2 * MIB) is grpc.StatusCode.INVALID_ARGUMENT
        assert await code(5 * MIB) is grpc.StatusCode.RESOURCE_EXHAUSTED
        for _ in range(4):  # all is given back
            await stub.Create(asked(MIB))


async def test_malformed_json(tmp_path: Path) -> None:
    chance = random.Random(0)
    good = b'{"model": "m", "messages": [{"role": "user", "content": "\xc3\xa9"}], "n": 1}'
    broken = [good[: chance.randrange(len(good))] for _ in range(50)]
    broken += [chance.randbytes(chance.randrange(1, 100)) for _ in range(50)]
    broken += [
        b'{"model": ' + b"1" * 5000 + b"}",
        b'{"a":' * 5000,
        b'"m"',
        b"null",
        b"\xef\xbb\xbf{}",
    ]
    async with Bench.open(tmp_path) as bench:
        engine = await bench.ready("a")
        for body in broken:
            head, answer = await bench.raw(post(body))
            assert head.startswith(b"HTTP/1.1 400"), body
            assert error_of(answer)["code"] in ("invalid_json", "missing_model")
        head, answer = await bench.raw(post(b'{"model": "\\ud800\\u0000"}'))
        assert head.startswith(b"HTTP/1.1 404"), "half a character is no model"
        assert error_of(answer)["param"] == "model"
        assert not engine.requests
        await bench.ask()


async def test_characters_torn_between_chunks(tmp_path: Path) -> None:
    text = "frög 🐸 \u2028 終"
    async with Bench.open(tmp_path) as bench:
        await bench.ready("a")
        torn: Any = {"simulate": {"tokens": 2, "text": text, "torn": True}}
        stream = await bench.ask(stream=True, extra_body=torn)
        got = [
            c.choices[0].delta.content async for c in stream if c.choices[0].finish_reason is None
        ]
        assert got == [text, text]
        # An engine that dies with an event whole, however its bytes came, leaves a stream that says so.
        stream = await bench.ask(
            stream=True, extra_body={"simulate": {"text": text, "torn": True, "die": 2}}
        )
        with pytest.raises(openai.APIError, match="in the middle"):
            _ = [chunk async for chunk in stream]


async def test_a_hundred_clients_that_leave_during_a_climb(tmp_path: Path) -> None:
    """One climb, no waiter and no generation left."""
    async with Bench.open(tmp_path) as bench:
        climb = bench.scheduler.climbs["m"] = Climb(await bench.replica("a"))
        body = b'{"model":"m","messages":[],"stream":true}'
        opened = []
        host, _, port = bench.http.partition(":")
        for _ in range(100):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(post(body))
            opened.append(writer)
        await bench.scheduler.until(lambda s: s.waiting == 100)
        for writer in opened:
            writer.transport.abort()
        await bench.scheduler.until(lambda s: s.waiting == 0 and s.cancelled == 100)
        climb.finish.set()
        assert (await bench.ask()).choices[0].message.content
        assert len(bench.engines["a"].requests) == 1
        assert "woodfrog_router_active_requests 0.0" in await bench.metrics()
        assert json.loads(bench.engines["a"].requests[0].body)["model"] == "m"
