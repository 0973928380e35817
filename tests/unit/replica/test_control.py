"""The control contract over a real socket, with an engine that only remembers."""

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from woodfrog.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    WoodfrogError,
)
from woodfrog.replica.client import ControlClient
from woodfrog.replica.control import ControlServer
from woodfrog.replica.logs import LogRing
from woodfrog.replica.replica import Replica

ENTROPY = "00" * 64
TIMEOUT_S = 10.0


class MemoryEngine:
    """Does nothing but what the contract asks."""

    def __init__(self) -> None:
        self.idle = asyncio.Event()
        self.idle.set()
        self.calls: list[str] = []
        self.broken: str | None = None

    def describe(self) -> dict[str, Any]:
        return {"model": "frog", "active": 0 if self.idle.is_set() else 1}

    def failure(self) -> str | None:
        return self.broken

    async def drain(self) -> None:
        await self.idle.wait()

    def clear(self) -> None:
        self.calls.append("clear")

    def release(self) -> None:
        self.calls.append("release")

    def regain(self) -> None:
        self.calls.append("regain")

    async def canary(self) -> list[int]:
        return [1, 2]

    def brief_canary(self) -> list[int]:
        return [1]


class Harness:
    def __init__(self, path: Path) -> None:
        self.engine = MemoryEngine()
        self.ring = LogRing()
        self.replica = Replica(self.engine, self.ring)
        self.path = path
        self.client = ControlClient(path)

    async def call(self, verb: str, **fields: Any) -> dict[str, Any]:
        return await self.client.call(verb, TIMEOUT_S, **fields)

    async def state(self) -> str:
        return str((await self.call("describe"))["state"])


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    harness = Harness(tmp_path / "control.sock")
    async with ControlServer(harness.replica.verbs, harness.path):
        yield harness


@pytest.fixture
async def serving(harness: Harness) -> Harness:
    harness.replica.loaded()
    return harness


async def test_a_loading_replica_answers_but_does_not_serve(harness: Harness) -> None:
    assert await harness.state() == "loading"
    for verb in ("quiesce", "park", "canary", "open"):
        with pytest.raises(FailedPrecondition) as refusal:
            await harness.call(verb)
        assert refusal.value.reason == "WRONG_STATE"


async def test_there_and_back(serving: Harness) -> None:
    await serving.call("quiesce")
    assert await serving.state() == "quiesced"
    await serving.call("park")
    assert await serving.state() == "parked"
    await serving.call("thaw", replica_id="r1", entropy=ENTROPY, gate="closed")
    described = await serving.call("describe")
    assert (described["state"], described["replica_id"]) == ("serving", "r1")
    assert described["gate"] == "closed"
    await serving.call("open")
    assert serving.replica.gate.is_set()
    assert serving.engine.calls == ["clear", "release", "regain"]


async def test_a_call_may_wait_until_no_connection_is_left(serving: Harness) -> None:
    """CRIU cannot dump one that comes from outside of the sandbox."""
    await serving.call("quiesce", until_closed=True)
    assert "control.talk" not in {task.get_name() for task in asyncio.all_tasks()}
    await serving.call("thaw", replica_id="r1", entropy=ENTROPY)
    with pytest.raises(FailedPrecondition):
        await serving.call("thaw", replica_id="r2", entropy=ENTROPY, until_closed=True)


async def test_park_quiesces_first(serving: Harness) -> None:
    await serving.call("park", timeout_s=1)
    assert serving.engine.calls == ["clear", "release"]


async def test_verbs_may_be_repeated_when_their_answer_was_lost(serving: Harness) -> None:
    await serving.call("quiesce")
    await serving.call("quiesce")
    await serving.call("park")
    await serving.call("park")
    await serving.call("thaw", replica_id="r1", entropy=ENTROPY)
    await serving.call("thaw", replica_id="r1", entropy=ENTROPY)
    with pytest.raises(FailedPrecondition):
        await serving.call("thaw", replica_id="r2", entropy=ENTROPY)
    assert serving.engine.calls == ["clear", "release", "regain"]


async def test_a_busy_replica_serves_on(serving: Harness) -> None:
    serving.engine.idle.clear()
    with pytest.raises(ResourceExhausted) as refusal:
        await serving.call("quiesce", timeout_s=0.01)
    assert refusal.value.reason == "BUSY"
    assert await serving.state() == "serving"


async def test_a_draining_replica_says_so_and_finishes(serving: Harness) -> None:
    serving.engine.idle.clear()
    quiescing = asyncio.ensure_future(serving.call("quiesce", timeout_s=TIMEOUT_S))
    while await serving.state() != "draining":
        pass
    with pytest.raises(FailedPrecondition):
        await serving.call("quiesce")
    serving.engine.idle.set()
    await quiescing
    assert await serving.state() == "quiesced"


async def test_a_dead_engine_is_failed_for_ever(serving: Harness) -> None:
    serving.engine.broken = "RuntimeError: out of frogs"
    assert await serving.state() == "failed"
    with pytest.raises(Internal) as refusal:
        await serving.call("quiesce")
    assert refusal.value.reason == "ENGINE_FAILED"
    assert "out of frogs" in refusal.value.message


async def test_canary_and_draw_and_logs(serving: Harness) -> None:
    canary = await serving.call("canary")
    assert canary["tokens"] == [1, 2]
    assert canary["digest"].startswith("sha256:")
    assert canary["brief"] not in ("", canary["digest"])
    assert (await serving.call("draw"))["random"] != (await serving.call("draw"))["random"]
    assert isinstance((await serving.call("logs"))["lines"], list)


async def test_many_long_log_lines_fit_an_answer(serving: Harness) -> None:
    for number in range(200):
        serving.ring.handle(logging.makeLogRecord({"msg": f"{number} " + "x" * 5000}))
    assert len((await serving.call("logs"))["lines"]) == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"entropy": ENTROPY},
        {"replica_id": "", "entropy": ENTROPY},
        {"replica_id": "r", "entropy": "00"},
        {"replica_id": "r", "entropy": "zz" * 64},
        {"replica_id": "r"},
        {"replica_id": "r", "entropy": ENTROPY, "gate": "ajar"},
    ],
)
async def test_thaw_checks_before_it_changes_anything(
    serving: Harness, fields: dict[str, Any]
) -> None:
    await serving.call("quiesce")
    with pytest.raises(InvalidArgument):
        await serving.call("thaw", **fields)
    assert await serving.state() == "quiesced"


@pytest.mark.parametrize("line", [b"nonsense\n", b"[]\n", b'{"verb": "dance"}\n', b"{}\n"])
async def test_what_is_not_a_request_gets_an_answer(serving: Harness, line: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(serving.path)
    for message in (line, b'{"verb": "describe"}\n'):  # the connection goes on
        writer.write(message)
        reply = json.loads(await reader.readline())
    assert reply["ok"]
    writer.close()


async def test_refusals_carry_reason_and_message(serving: Harness) -> None:
    reader, writer = await asyncio.open_unix_connection(serving.path)
    writer.write(b'{"verb": "quiesce", "timeout_s": -1}\n')
    reply = json.loads(await reader.readline())
    assert (reply["ok"], reply["reason"]) == (False, "BAD_FIELD")
    assert "timeout_s" in reply["message"]
    writer.close()


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as refusal:
        await ControlClient(tmp_path / "nobody.sock").call("describe", TIMEOUT_S)
    assert refusal.value.reason == "REPLICA_UNREACHABLE"


async def test_a_silent_replica(serving: Harness) -> None:
    serving.engine.idle.clear()
    with pytest.raises(DeadlineExceeded) as refusal:
        await serving.client.call("quiesce", 0.05, timeout_s=0.2)
    assert refusal.value.reason == "REPLICA_SILENT"
    serving.engine.idle.set()


@contextlib.asynccontextmanager
async def liar(path: Path, answer: bytes, descriptors: int) -> AsyncIterator[None]:
    """Answers whatever is asked with the same bytes, and descriptors with them."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    listener.setblocking(False)

    async def lie() -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listener)
            with connection:
                await loop.sock_recv(connection, 65536)
                socket.send_fds(connection, [answer], [0] * descriptors)

    lying = asyncio.create_task(lie())
    try:
        yield
    finally:
        lying.cancel()
        await asyncio.gather(lying, return_exceptions=True)
        listener.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "answer",
    [
        b"\n",
        b"5\n",
        b"[]\n",
        b'{"ok": true}\n',
        b'{"ok": false}\n',
        b"{",
        b'{"ok": 1, "fds": [7]}\n',
    ],
)
async def test_a_replica_that_lies_costs_no_descriptor_and_no_other_error(
    tmp_path: Path, answer: bytes
) -> None:
    path = tmp_path / "control.sock"
    async with liar(path, answer, 200):
        before = open_descriptors()
        for _ in range(3):
            with contextlib.suppress(WoodfrogError):
                reply = await ControlClient(path).call("describe", TIMEOUT_S)
                assert isinstance(reply, dict)
            with pytest.raises(WoodfrogError):
                await ControlClient(path).call("describe", TIMEOUT_S, fds_wanted=201)
        await asyncio.sleep(0.05)
        assert open_descriptors() <= before + 1


async def test_descriptors_that_are_wanted_arrive_and_others_are_closed(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    async with liar(path, b'{"ok": true}\n', 3):
        before = open_descriptors()
        reply = await ControlClient(path).call("load", TIMEOUT_S, fds_wanted=1)
        assert open_descriptors() == before + 1
        os.close(*reply["fds"])


async def test_a_peer_that_never_stops_sending_holds_nobody_up(harness: Harness) -> None:
    async def flood() -> None:
        _, writer = await asyncio.open_unix_connection(harness.path)
        while True:
            writer.write(b"x" * 1000)
            await writer.drain()

    flooding = asyncio.create_task(flood())
    try:
        for _ in range(20):
            await asyncio.wait_for(harness.call("describe"), 5)
    finally:
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)
