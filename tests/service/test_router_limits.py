"""What bounds the router: sizes, times and numbers; and what it does without its neighbours."""

import asyncio
import json
import re
import time
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client.openmetrics import parser
from tests.capabilities import need
from tests.memory.simulated_scheduler import Climb, SimulatedScheduler
from tests.service.etcd import EtcdServer
from tests.service.processes import ServiceProcess, free_addresses
from tests.service.router_bench import Bench, spec
from tests.service.test_router import error_of, post

from woodfrog.catalog import Catalog
from woodfrog.coordination import Session

parse: Any = parser.text_string_to_metric_families


async def read_json(bench: Bench, path: str) -> tuple[int, bytes]:
    request = f"GET {path} HTTP/1.1\r\nconnection: close\r\n\r\n"
    head, body = await bench.raw(request.encode())
    return int(head.split()[1]), body


async def test_large_body_passes_and_a_larger_one_is_refused(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, body_bytes_max=(1 << 20) + 200) as bench:
        engine = await bench.ready("a")
        await bench.ask("x" * (1 << 20))
        assert len(engine.requests[0].body) > 1 << 20
        with pytest.raises(openai.APIStatusError) as failure:
            await bench.ask("x" * (2 << 20))
        assert failure.value.status_code == 413
        assert failure.value.code == "request_too_large"
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        head = b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
        answer_head, body = await bench.raw(head + 40 * chunk + b"0\r\n\r\n")
        assert answer_head.startswith(b"HTTP/1.1 413"), "an undeclared length is counted"
        assert error_of(body)["code"] == "request_too_large"
        answer_head, body = await bench.raw(post(b" " * (8 << 20)))
        assert answer_head.startswith(b"HTTP/1.1 413"), "a connection that closes is read first"
        await bench.ask()
        assert len(engine.requests) == 2


async def test_numbers_of_any_length_in_headers(tmp_path: Path) -> None:
    async with Bench.open(tmp_path) as bench:
        await bench.ready("a")
        body = b'{"model": "m", "messages": []}'
        many = "0" * 5000
        padded = post(body).replace(b"content-length: ", b"content-length: " + many.encode())
        head, _ = await bench.raw(padded)
        assert head.startswith(b"HTTP/1.1 200")
        head, _ = await bench.raw(post(body, "x-stainless-retry-count: 1" + many))
        assert head.startswith(b"HTTP/1.1 200")


async def test_a_client_that_would_rather_speak_http2_keeps_its_body(tmp_path: Path) -> None:
    async with Bench.open(tmp_path) as bench:
        engine = await bench.ready("a")
        body = b'{"model": "m", "messages": ["\\r\\nUpgrade: x"]}'
        wishes = ("connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "http2-settings: AAMAAABk")
        head, _ = await bench.raw(post(body, *wishes))
        assert head.startswith(b"HTTP/1.1 200")
        assert engine.requests[0].body == body


async def test_slow_body_and_slow_head_end(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, body_wait_s=0.2) as bench:
        head, body = await bench.raw(post(b"{}")[:-1])
        assert head.startswith(b"HTTP/1.1 408")
        assert error_of(body)["code"] == "request_timeout"


async def test_head_is_bounded(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, head_bytes_max=8192) as bench:
        padding = [f"x-{n}: {'y' * 100}" for n in range(60)]
        head, _ = await bench.raw(post(b"{}", *padding))
        assert head.startswith(b"HTTP/1.1 400 "), "a long head that is allowed reaches the body"
        head, body = await bench.raw(post(b"{}", *padding, *padding))
        assert head.startswith(b"HTTP/1.1 431 ")
        assert error_of(body)["code"] == "head_too_large"
        endless = b"POST / HTTP/1.1\r\nx: " + b"y" * 9000
        head, _ = await bench.raw(endless)
        assert head.startswith(b"HTTP/1.1 431 "), "a header without end is not waited for"
        head, body = await bench.raw(b"\x16\x03\x01 not http\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert error_of(body)["code"] == "invalid_http"


async def test_requests_at_once_are_bounded(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, requests_max=4) as bench:
        engine = await bench.ready("a")
        script = {"simulate": {"hold": True}}
        held = [asyncio.create_task(bench.ask(extra_body=script)) for _ in range(2)]
        await engine.until_active(2)
        with pytest.raises(openai.RateLimitError) as failure:
            await bench.ask()
        assert failure.value.code == "router_full"
        engine.let_go()
        await asyncio.gather(*held)
        await bench.ask()


async def test_connections_are_bounded(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, connections_max=6) as bench:
        host, _, port = bench.http.partition(":")
        opened = [await asyncio.open_connection(host, int(port)) for _ in range(5)]
        async with asyncio.timeout(60):
            await asyncio.wait([asyncio.ensure_future(r.read()) for r, _ in opened[3:]])
        opened[0][1].write(b"GET /health HTTP/1.1\r\n\r\n")
        assert (await opened[0][0].readline()).startswith(b"HTTP/1.1 200")
        for _, writer in opened:
            writer.close()


async def test_client_that_does_not_read_is_cut_off(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, unread_wait_s=0.2) as bench:
        engine = await bench.ready("a")
        body = b'{"model":"m","stream":true,"simulate":{"tokens":200000}}'
        host, _, port = bench.http.partition(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1)
        writer.write(post(body))
        await engine.until_active(1)
        await engine.until_active(0)
        assert engine.cancelled == 1
        writer.close()


async def test_readiness_and_metrics(tmp_path: Path) -> None:
    async with Bench.open(tmp_path) as bench:
        await bench.ready("a")
        status, body = await read_json(bench, "/ready")
        assert (status, json.loads(body)) == (
            200,
            {"ready": True, "scheduler": True, "catalog": True},
        )
        await bench.ask()
        with pytest.raises(openai.NotFoundError):
            await bench.client.completions.create(model="nobody", prompt="hi")
        families = {f.name: f for f in parse(await bench.metrics())}
        counts = {
            (s.labels["route"], s.labels["model"], s.labels["status"]): s.value
            for s in families["woodfrog_router_requests"].samples
            if s.name.endswith("_total")
        }
        assert counts == {
            ("/v1/chat/completions", "m", "200"): 1,
            ("/v1/completions", "", "404"): 1,
        }
        assert families["woodfrog_router_active_requests"].samples[0].value == 0
        assert {"woodfrog_router_added_seconds", "woodfrog_router_wait_seconds"} <= families.keys()


async def test_not_ready_before_the_scheduler_was_heard(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, scheduler_away=True) as bench:
        status, body = await read_json(bench, "/ready")
        assert (status, json.loads(body)["scheduler"]) == (503, False)
        assert (await read_json(bench, "/health"))[0] == 200


async def test_lost_scheduler_leaves_known_replicas_in_use(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, wake_wait_s=20) as bench:
        await bench.ready("a")
        address = bench.scheduler.address
        await bench.scheduler.__aexit__()
        await bench.ask()
        waking = asyncio.create_task(bench.client.completions.create(model="org/m", prompt="hi"))
        again = SimulatedScheduler(address)
        climb = Climb(await bench.replica("b", "org/m"))
        climb.finish.set()
        again.climbs["org/m"] = climb
        async with again:
            assert (await waking).choices[0].text, "the wait outlived the scheduler"
            await again.until(lambda s: s.routers == 1)
            await bench.until(lambda: "a" not in bench.replicas.ids)


async def test_lost_scheduler_is_told_after_the_cap(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, wake_wait_s=0.3) as bench:
        await bench.scheduler.__aexit__()
        with pytest.raises(
            openai.InternalServerError, match="no scheduler can be reached"
        ) as failure:
            await bench.ask()
        assert failure.value.code == "scheduler_lost"
        assert "retry-after-ms" in failure.value.response.headers


async def test_answers_may_end_when_it_stops(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, drain_s=5) as bench:
        engine = await bench.ready("a")
        asking = asyncio.create_task(bench.ask(extra_body={"simulate": {"hold": True}}))
        await engine.until_active(1)
        asyncio.get_running_loop().call_later(0.1, engine.let_go)
    assert (await asking).choices[0].finish_reason == "stop"


async def test_what_has_not_ended_when_it_stops_is_told_to_try_again(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, drain_s=0) as bench:
        engine = await bench.ready("a")
        asking = asyncio.create_task(bench.ask(extra_body={"simulate": {"hold": True}}))
        await engine.until_active(1)
    with pytest.raises(openai.InternalServerError, match="the router stopped") as failure:
        await asking
    assert (failure.value.status_code, failure.value.code) == (503, "router_stops")


async def test_a_stream_that_has_not_ended_when_it_stops_says_so(tmp_path: Path) -> None:
    async with Bench.open(tmp_path, drain_s=0, wake_wait_s=60.0) as bench:
        engine = await bench.ready("a")
        held = {"simulate": {"hold": True}}
        chunks = await bench.ask(stream=True, extra_body=held)  # it begins as one that waits
        reading = asyncio.create_task(anext(aiter(chunks)))
        await engine.until_active(1)
    with pytest.raises(openai.APIError, match="the router stopped") as failure:
        await reading
    assert failure.value.code == "router_stops"


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


async def until_get(url: str, condition: str, *, status: int = 200) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        answer = await asyncio.to_thread(get, url)
        if answer[0] == status and re.search(condition, answer[1].decode()):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{url} says {answer}")


@need("etcd")
async def test_process_lives_on_without_etcd(tmp_path: Path) -> None:
    (address, http), folder = free_addresses(2), tmp_path / "etcd"
    async with SimulatedScheduler() as scheduler, EtcdServer(folder) as etcd:
        env = {
            "WOODFROG_ROUTER_LISTEN": http,
            "WOODFROG_ROUTER_GRPC_LISTEN": address,
            "WOODFROG_ROUTER_SCHEDULER": scheduler.address,
            "WOODFROG_ROUTER_ETCD": etcd.endpoint,
        }
        async with ServiceProcess("woodfrog.router", address, env, tmp_path) as router:
            await until_get(f"http://{http}/ready", '"ready": true')
            async with Session([etcd.endpoint]) as session:
                await Catalog(session).add_model(spec("org/added"))
            await until_get(f"http://{http}/v1/models", "org/added")
            etcd.kill9()
            await until_get(f"http://{http}/v1/models/org%2Fadded", '"id": "org/added"')
            await etcd.start()
            async with Session([etcd.endpoint]) as session:
                await Catalog(session).remove_model("org/added")
            await until_get(f"http://{http}/v1/models", '"data": \\[\\]')
            assert router.stop() == 0
