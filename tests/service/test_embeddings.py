"""The embeddings engine as its users meet it: OpenAI's API on one socket, the control contract on the other."""

import asyncio
import base64
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.memory import tiny_encoders

from woodfrog.errors import WoodfrogError
from woodfrog.replica.client import ControlClient

DEADLINE_S = 60.0
PATH = "/v1/embeddings"


@dataclass
class Engine:
    socket: Path
    control: ControlClient

    async def call(self, verb: str, **fields: Any) -> dict[str, Any]:
        return await self.control.call(verb, DEADLINE_S, **fields)

    async def raw(self, data: bytes, path: str = PATH, method: str = "POST") -> tuple[int, Any]:
        connector = aiohttp.UnixConnector(path=str(self.socket))
        async with aiohttp.ClientSession("http://engine", connector=connector) as client:
            async with client.request(method, path, data=data) as response:
                return response.status, await response.json()

    async def embed(self, text: Any, **body: Any) -> dict[str, Any]:
        status, answer = await self.raw(json.dumps({"input": text, **body}).encode())
        assert status == 200, answer
        return dict(answer)


@pytest.fixture(scope="module", params=["BertModel", "LlamaModel"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:  # fmt: skip
    folder = tmp_path_factory.mktemp("engine")
    environ = {
        **os.environ,
        "WOODFROG_SOCKET": str(folder / "engine.sock"),
        "WOODFROG_CONTROL": str(folder / "control.sock"),
        "WOODFROG_MODEL": str(tiny_encoders.make(folder / "model", request.param)),
        "WOODFROG_MODEL_NAME": "frog",
        "WOODFROG_ENGINE_ARGS": json.dumps({"slots": 2, "threads": 1}),
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "woodfrog.engine"], env=environ, stdout=log, stderr=log
        )
    try:
        engine = Engine(folder / "engine.sock", ControlClient(folder / "control.sock"))
        asyncio.run(_serving(engine, process))
        yield engine
        process.terminate()
        process.wait(DEADLINE_S)
    finally:
        process.kill()
        process.wait()


async def _serving(engine: Engine, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if (await engine.call("describe"))["state"] == "serving":
                return
        except WoodfrogError:
            await asyncio.sleep(0.02)  # there is no socket yet
    raise AssertionError("the engine did not start")


async def test_an_answer_has_openais_form(engine: Engine) -> None:
    answer = await engine.embed("frog ice", model="whatever")
    (entry,) = answer.pop("data")
    assert answer == {
        "object": "list",
        "model": "frog",
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
    assert (entry["object"], entry["index"]) == ("embedding", 0)
    assert len(entry["embedding"]) == tiny_encoders.SIZE
    assert sum(number**2 for number in entry["embedding"]) == pytest.approx(1, abs=1e-5)


async def test_texts_and_tokens_in_their_order(engine: Engine) -> None:
    texts = ["frog", "frog ice winter " * 20, "ice"]
    answer = await engine.embed(texts)
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2]
    for text, entry in zip(texts, answer["data"], strict=True):
        (alone,) = (await engine.embed(text))["data"]
        assert entry["embedding"] == pytest.approx(alone["embedding"], abs=1e-5)
    frog = [2, tiny_encoders.WORDS.index("frog"), 3]
    tokens = await engine.embed([frog, frog])
    for entry in tokens["data"]:
        expected = answer["data"][0]["embedding"]
        assert entry["embedding"] == pytest.approx(expected, abs=1e-5)
    assert tokens["usage"]["prompt_tokens"] == 6


async def test_base64_and_fewer_dimensions(engine: Engine) -> None:
    (entry,) = (await engine.embed("frog"))["data"]
    (encoded,) = (await engine.embed("frog", encoding_format="base64"))["data"]
    data = base64.b64decode(encoded["embedding"])
    assert list(struct.unpack(f"<{tiny_encoders.SIZE}f", data)) == entry["embedding"]
    (short,) = (await engine.embed("frog", dimensions=5))["data"]
    length = sum(number**2 for number in entry["embedding"][:5]) ** 0.5
    expected = [number / length for number in entry["embedding"][:5]]
    assert short["embedding"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("data", "status", "code", "param"),
    [
        (b"{", 400, "invalid_json", None),
        (b'{"input": ""}', 400, "invalid_value", "input"),
        (b'{"input": "\\ud800"}', 400, "invalid_text", None),
        (b'{"input": [4000]}', 400, "invalid_value", "input"),
        (b'{"input": "' + b"a " * 200 + b'"}', 400, "context_length_exceeded", "input"),
        (b'{"input": "a", "dimensions": 33}', 400, "invalid_value", "dimensions"),
        (b'{"input": "' + b" " * (5 << 20) + b'"}', 400, "body_too_large", None),
    ],
)
async def test_errors_have_openais_form(
    engine: Engine, data: bytes, status: int, code: str, param: str | None
) -> None:
    got, body = await engine.raw(data)
    assert got == status
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["error"]["code"], body["error"]["param"]) == (code, param)


async def test_it_answers_to_nothing_else(engine: Engine) -> None:
    status, answer = await engine.raw(b"{}", "/v1/chat/completions")
    assert (status, answer["error"]["code"]) == (404, "unknown_url")
    assert (await engine.raw(b"", method="GET"))[0] == 405


async def test_more_requests_than_slots_all_get_their_answer(engine: Engine) -> None:
    answers = await asyncio.gather(*(engine.embed(["frog", "ice"]) for _ in range(8)))
    assert all(answer == answers[0] for answer in answers)
    assert (await engine.call("describe"))["active"] == 0


async def test_the_probe_is_answered(engine: Engine) -> None:
    probe = (await engine.call("describe"))["probe"]
    status, answer = await engine.raw(json.dumps(probe["body"]).encode(), probe["path"])
    assert status == 200, answer


async def test_parked_and_thawed_it_says_the_same(engine: Engine) -> None:
    before, canary = await engine.embed("frog ice"), await engine.call("canary")
    for verb in ("quiesce", "park"):
        await engine.call(verb)
        thawed = await engine.call(
            "thaw", replica_id=verb, entropy=os.urandom(64).hex(), canary=True
        )
        assert thawed["brief"] == canary["brief"]
        assert await engine.embed("frog ice") == before
        assert await engine.call("canary") == canary
