"""Clients that want what is not theirs: other clients' turns, room and slots, or to be taken for somebody else."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from tests.memory.simulated_scheduler import Climb
from tests.service.router_bench import Bench
from tests.service.test_router import post

from woodfrog.api.router.v1 import chats_pb2, chats_pb2_grpc
from woodfrog.catalog import CatalogSnapshot
from woodfrog.model.tenant import Tenant, new_key

ANOTHER = "127.0.0.2"  # a peer beside the bench's own
BODY = b'{"model":"m","messages":[]}'
EOF: Any = vars(grpc.aio)["EOF"]  # its stubs have none
CHUNKED = b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n"
KEY, KEPT = new_key("acme", "", 0.0)


@pytest.fixture
async def locked(tmp_path: Path) -> AsyncIterator[Bench]:
    """Asks for keys."""
    async with Bench.open(tmp_path, auth="keys", head_bytes_max=8192) as bench:
        told = CatalogSnapshot((), (), (), (Tenant("acme"),), (KEPT,))
        bench.catalog.events.put_nowait(told)
        await bench.until(lambda: bench.catalog.events.empty())
        yield bench


async def connect(
    bench: Bench, host: str = "127.0.0.1"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    to, _, port = bench.http.partition(":")
    return await asyncio.open_connection(to, int(port), local_addr=(host, 0))


async def status_of(bench: Bench, request: bytes, host: str = "127.0.0.1") -> bytes:
    """Empty where the connection is closed without an answer."""
    reader, writer = await connect(bench, host)
    try:
        writer.write(request)
        async with asyncio.timeout(60):
            return (await reader.readline())[9:12]
    except ConnectionError:
        return b""
    finally:
        writer.close()


# --- whose request it is ---


async def test_a_trailer_is_no_header(locked: Bench) -> None:
    """A proxy that lets nobody in without a key, or sets it, has not seen it."""
    key = f"authorization: Bearer {KEY}\r\n".encode()
    assert await status_of(locked, HEAD + b"\r\n" + CHUNKED + key + b"\r\n") == b"401"
    assert await status_of(locked, HEAD + key + b"\r\n" + CHUNKED + b"x: y\r\n\r\n") == b"404"


async def test_two_keys_are_none(locked: Bench) -> None:
    mine, other = f"authorization: Bearer {KEY}", "authorization: Bearer none"
    assert await status_of(locked, post(BODY, mine)) == b"404"
    for two in ((mine, other), (other, mine), (mine, mine)):
        assert await status_of(locked, post(BODY, *two)) == b"401"
    async with grpc.aio.insecure_channel(locked.grpc) as channel:
        chats: Any = chats_pb2_grpc.ChatsStub(channel)  # type: ignore[no-untyped-call]
        for key in (KEY, "none"):
            metadata = (("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {key}"))
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await chats.Create(chats_pb2.CreateRequest(), metadata=metadata)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_trailers_without_end_are_cut_off(locked: Bench) -> None:
    key = f"authorization: Bearer {KEY}\r\n\r\n".encode()
    for endless in (b"x-y: z\r\n" * 100, b"y" * 800):
        reader, writer = await connect(locked)
        writer.write(HEAD + key + CHUNKED + b"x: ")
        sent = 0
        try:
            for _ in range(10_000):
                writer.write(endless)
                await writer.drain()
                await asyncio.sleep(0)  # the router has the same loop
                sent += len(endless)
        except ConnectionError:
            pass
        writer.close()
        assert sent < 4 << 20, "as far as the kernel's buffers take it"
        del reader


async def test_few_requests_may_follow_one_that_is_not_answered(tmp_path: Path) -> None:
    async with Bench.open(tmp_path) as bench:
        climb = bench.scheduler.climbs["m"] = Climb(await bench.replica("a"))
        asked = post(BODY).replace(b"connection: close\r\n", b"")
        for following, answered in ((16, True), (17, False)):
            reader, writer = await connect(bench)
            writer.write(asked + b"GET /health HTTP/1.1\r\n\r\n" * following)
            if not answered:
                async with asyncio.timeout(60):
                    assert await reader.read() == b""
                writer.close()
                continue
            await bench.scheduler.until(lambda s: s.waiting == 1)
            climb.finish.set()
            async with asyncio.timeout(60):
                for _ in range(1 + following):
                    await reader.readuntil(b"HTTP/1.1 200 ")
            writer.close()


async def test_no_page_of_another_site_spends_what_is_here(tmp_path: Path) -> None:
    """A browser lets any page send text to an address of its own machine, though not read the answer."""
    async with Bench.open(tmp_path) as bench:
        engine = await bench.ready("a")
        for site, status in (("cross-site", b"403"), ("same-site", b"200"), ("none", b"200")):
            asked = post(BODY, "content-type: text/plain", f"sec-fetch-site: {site}")
            assert await status_of(bench, asked) == status
        assert len(engine.requests) == 2


# --- what others have ---


async def test_nobody_takes_the_place_of_another_peers_request(tmp_path: Path) -> None:
    async with Bench.open(tmp_path) as bench:
        climb = bench.scheduler.climbs["m"] = Climb(await bench.replica("a"))
        retry = post(BODY, "x-stainless-retry-count: 9", "idempotency-key: k")
        first = asyncio.create_task(status_of(bench, post(BODY, "idempotency-key: k")))
        await bench.scheduler.until(lambda s: s.waiting == 1)
        second = asyncio.create_task(status_of(bench, retry, ANOTHER))
        await bench.scheduler.until(lambda s: s.waiting == 2)
        climb.finish.set()
        assert (await first, await second) == (b"200", b"200")


async def test_one_peer_leaves_requests_to_others(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, requests_max=4) as bench:
        engine = await bench.ready("a")
        held = post(BODY[:-1] + b',"simulate":{"hold":true}}')
        flood = [asyncio.create_task(status_of(bench, held)) for _ in range(2)]
        await engine.until_active(2)
        assert await status_of(bench, post(BODY)) == b"429"
        assert await status_of(bench, post(BODY), ANOTHER) == b"200"
        engine.let_go()
        assert await asyncio.gather(*flood) == [b"200"] * 2


async def test_one_peer_leaves_connections_to_others(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, connections_max=8) as bench:
        await bench.ready("a")
        opened = [await connect(bench) for _ in range(4)]
        assert await status_of(bench, post(BODY)) == b""
        assert await status_of(bench, post(BODY), ANOTHER) == b"200"
        for _, writer in opened:
            writer.close()
        async with asyncio.timeout(60):
            while await status_of(bench, post(BODY)) != b"200":
                pass


async def test_one_peer_leaves_room_for_bodies_to_others(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, bodies_bytes_max=1000) as bench:
        climb = bench.scheduler.climbs["m"] = Climb(await bench.replica("a"))
        large = post(BODY + b" " * 400)
        first = asyncio.create_task(status_of(bench, large))
        await bench.scheduler.until(lambda s: s.waiting == 1)
        assert await status_of(bench, large) == b"429"
        second = asyncio.create_task(status_of(bench, large, ANOTHER))
        await bench.scheduler.until(lambda s: s.waiting == 2)
        climb.finish.set()
        assert (await first, await second) == (b"200", b"200")


async def test_who_asks_too_much_is_told_before_the_body_is_read(locked: Bench) -> None:
    poor = Tenant("acme", requests_per_minute=1)
    told = CatalogSnapshot((), (), (), (poor,), (KEPT,))
    locked.catalog.events.put_nowait(told)
    await locked.until(lambda: locked.catalog.events.empty())
    head = post(b" " * 100, f"authorization: Bearer {KEY}")[:-100]
    assert await status_of(locked, head + b" " * 100) == b"400", "a bad request is one too"
    assert await status_of(locked, head) == b"429"


# --- gRPC ---


@asynccontextmanager
async def chats_of(bench: Bench) -> AsyncIterator[Any]:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(bench.grpc, options=options) as channel:
        yield chats_pb2_grpc.ChatsStub(channel)  # type: ignore[no-untyped-call]


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code()


async def test_grpc_messages_are_bounded_and_keys_come_first(locked: Bench) -> None:
    heavy = chats_pb2.CreateRequest()
    heavy.chat.messages.extend([chats_pb2.ChatMessage()] * 900_000)  # a second's work as JSON
    async with chats_of(locked) as chats:
        await code_of(chats.Create(chats_pb2.CreateRequest()))
        began = time.process_time()
        assert await code_of(chats.Create(heavy)) is grpc.StatusCode.UNAUTHENTICATED
        keyless_s = time.process_time() - began
        metadata = (("authorization", f"Bearer {KEY}"),)
        heavy.chat.model = "m"
        assert await code_of(chats.Create(heavy, metadata=metadata)) is grpc.StatusCode.NOT_FOUND
        large = chats_pb2.CreateRequest()
        large.chat.messages.add(content="x" * (3 << 20))
        assert await code_of(chats.Create(large)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    began = time.process_time()
    json_format.MessageToDict(heavy)
    assert keyless_s < (time.process_time() - began) / 2


async def test_grpc_bodies_have_the_same_room(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, bodies_bytes_max=3 << 20) as bench, chats_of(bench) as chats:
        climb = bench.scheduler.climbs["m"] = Climb(await bench.replica("a"))
        request = chats_pb2.CreateRequest()
        request.chat.model = "m"
        request.chat.messages.add(content="x" * (1 << 20))
        waiting = asyncio.create_task(answer(chats.Create(request)))
        await bench.scheduler.until(lambda s: s.waiting == 1)
        assert await code_of(chats.Create(request)) is grpc.StatusCode.RESOURCE_EXHAUSTED
        climb.finish.set()
        assert (await waiting).choices
        assert (await chats.Create(request)).choices


async def test_a_grpc_stream_that_is_left_unread_ends(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, unread_wait_s=0.3) as bench, chats_of(bench) as chats:
        engine = await bench.ready("a")
        request = chats_pb2.StreamRequest()
        request.chat.model = "m"
        request.chat.extra.update({"simulate": {"tokens": 1_000_000, "text": "frog" * 4096}})
        call = chats.Stream(request)
        await call.read()
        await engine.until_active(1)
        await engine.until_active(0)
        await bench.until(lambda: bench.replicas.active("a") == 0)
        async with asyncio.timeout(60):
            assert await code_of(drained(call)) is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_grpc_connections_are_bounded(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, connections_max=4) as bench:
        host, _, port = bench.grpc.partition(":")
        opened = [await asyncio.open_connection(host, int(port)) for _ in range(12)]
        ends = [asyncio.create_task(closed(reader)) for reader, _ in opened]
        async with asyncio.timeout(60):
            while sum(end.done() for end in ends) < 8:
                await asyncio.sleep(0.01)
        assert await status_of(bench, post(BODY[:-1])) == b"400", "HTTP has its own"
        for _, writer in opened:
            writer.close()
        async with asyncio.timeout(60):
            code = None
            while code is not grpc.StatusCode.INVALID_ARGUMENT:
                async with chats_of(bench) as chats:
                    code = await code_of(chats.Create(chats_pb2.CreateRequest()))
        await asyncio.wait(ends)


async def test_grpc_calls_without_a_message_are_bounded(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, requests_max=4) as bench:
        options = [("grpc.use_local_subchannel_pool", 1)]
        create = "/woodfrog.api.router.v1.Chats/Create"
        async with (
            grpc.aio.insecure_channel(bench.grpc, options=options) as one,
            grpc.aio.insecure_channel(bench.grpc, options=options) as two,
            chats_of(bench) as chats,
        ):
            opened: list[Any] = [one, two]
            silent = [each.stream_unary(create)() for each in opened for _ in range(20)]
            async with asyncio.timeout(60):
                while await code_of(chats.Create(chats_pb2.CreateRequest())) is not (
                    grpc.StatusCode.RESOURCE_EXHAUSTED
                ):
                    await asyncio.sleep(0.01)
            for call in silent:
                call.cancel()
            async with asyncio.timeout(60):
                while await code_of(chats.Create(chats_pb2.CreateRequest())) is not (
                    grpc.StatusCode.INVALID_ARGUMENT
                ):
                    await asyncio.sleep(0.01)


async def answer(call: Any) -> Any:
    return await call


async def drained(call: Any) -> None:
    while await call.read() is not EOF:
        pass


async def closed(reader: asyncio.StreamReader) -> None:
    with suppress(ConnectionError):
        await reader.read()
