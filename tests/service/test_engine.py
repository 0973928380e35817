"""The text engine as its users meet it: OpenAI's API on one socket, the control contract on the other."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.capabilities import MODEL, need

from woodfrog.errors import ResourceExhausted, WoodfrogError
from woodfrog.replica.client import ControlClient

pytestmark = need("model")

DEADLINE_S = 180.0
SLOTS = 4
WAITING_MAX = 64
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
STORY = "Once upon a time, there was a frog who"


@dataclass
class Engine:
    pid: int
    socket: Path
    control: ControlClient
    thaws: list[str] = field(default_factory=list)

    async def call(self, verb: str, **fields: Any) -> dict[str, Any]:
        return await self.control.call(verb, DEADLINE_S, **fields)

    async def thaw(self, gate: str = "open") -> None:
        self.thaws.append(f"r{len(self.thaws)}")
        await self.call("thaw", replica_id=self.thaws[-1], entropy=os.urandom(64).hex(), gate=gate)

    async def wait_until(self, **expected: Any) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while (described := await self.call("describe")) | expected != described:
                assert described["state"] != "failed"

    def client(self) -> aiohttp.ClientSession:
        connector = aiohttp.UnixConnector(path=str(self.socket))
        return aiohttp.ClientSession("http://engine", connector=connector)

    async def post(self, path: str, **body: Any) -> dict[str, Any]:
        status, _, answer = await self.raw(path, json.dumps(body).encode())
        assert status == 200, answer
        return dict(answer)

    async def raw(self, path: str, data: bytes, method: str = "POST") -> tuple[int, Any, Any]:
        async with self.client() as client, client.request(method, path, data=data) as response:
            return response.status, response.headers, await response.json()

    async def complete(self, **body: Any) -> str:
        answer = await self.post(TEXT, **{"prompt": STORY, "max_tokens": 12, **body})
        return str(answer["choices"][0]["text"])

    @asynccontextmanager
    async def stream(self, path: str, **body: Any) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        async with self.client() as client:
            async with client.post(path, json={"stream": True, **body}) as response:
                assert response.status == 200
                assert response.content_type == "text/event-stream"
                yield _events(response)

    async def streamed(self, path: str, **body: Any) -> list[dict[str, Any]]:
        async with self.stream(path, **body) as events:
            return [event async for event in events]


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """Each stream tells the router its tokens before [DONE], as its last event does where it is asked for them."""
    done = False
    told, usage = "", None
    async for line in response.content:
        text = line.decode().rstrip("\n")
        if not text:
            continue
        assert not done, "something came after [DONE]"
        if text.startswith(": usage "):
            told = text
            continue
        assert text.startswith("data: ")
        done = text == "data: [DONE]"
        if not done:
            event = json.loads(text.removeprefix("data: "))
            usage = event.get("usage") or usage
            yield event
    assert done
    assert re.fullmatch(r": usage prompt_tokens=\d+ completion_tokens=\d+", told)
    if usage is not None:
        expected = "prompt_tokens={prompt_tokens} completion_tokens={completion_tokens}"
        assert told == ": usage " + expected.format(**usage)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("engine")
    environ = {
        **os.environ,
        "WOODFROG_SOCKET": str(folder / "engine.sock"),
        "WOODFROG_CONTROL": str(folder / "control.sock"),
        "WOODFROG_MODEL": str(MODEL),
        "WOODFROG_MODEL_NAME": "frog",
        "WOODFROG_ENGINE_ARGS": json.dumps({"slots": SLOTS, "threads": 1}),
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "woodfrog.engine"], env=environ, stdout=log, stderr=log
        )
    try:
        engine = Engine(process.pid, folder / "engine.sock", ControlClient(folder / "control.sock"))
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


async def test_chat_answers(engine: Engine) -> None:
    answer = await engine.post(CHAT, messages=QUESTION, temperature=0, max_tokens=20, model="frog")
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == "The capital of France is Paris."
    assert choice["finish_reason"] == "stop"
    assert answer["model"] == "frog"
    assert answer["system_fingerprint"].startswith("fp_")
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize(
    ("path", "body"),
    [(CHAT, {"messages": QUESTION, "logprobs": True}), (TEXT, {"prompt": STORY, "logprobs": 1})],
)
async def test_a_stream_says_the_same_as_a_whole_answer(
    engine: Engine, path: str, body: dict[str, Any]
) -> None:
    body = {**body, "temperature": 0.8, "seed": 5, "max_tokens": 12, "n": 2}
    whole = await engine.post(path, **body)
    events = await engine.streamed(path, **body, stream_options={"include_usage": True})
    texts, tokens = ["", ""], [0, 0]
    for event in events[:-1]:
        assert event["id"] == events[0]["id"]
        (choice,) = event["choices"]
        texts[choice["index"]] += (
            choice["delta"].get("content", "") if path == CHAT else choice["text"]
        )
        tokens[choice["index"]] += len(choice["logprobs"]["content" if path == CHAT else "tokens"])
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        index = choice["index"]
        assert texts[index] == (choice["message"]["content"] if path == CHAT else choice["text"])
        assert tokens[index] == len(choice["logprobs"]["content" if path == CHAT else "tokens"])
    assert texts[0] != texts[1]


async def test_a_stop_string_across_tokens_never_shows(engine: Engine) -> None:
    full = await engine.complete(temperature=0)
    stop = full[9:17]
    body = {"prompt": STORY, "max_tokens": 12, "temperature": 0, "stop": ["never said", stop]}
    events = await engine.streamed(TEXT, **body, logprobs=0)
    text = "".join(event["choices"][0]["text"] for event in events)
    assert text == full[: full.index(stop)]
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    shown = "".join(t for event in events for t in event["choices"][0]["logprobs"]["tokens"])
    assert stop not in shown


async def test_the_end_of_the_limit_is_named_length(engine: Engine) -> None:
    answer = await engine.post(TEXT, prompt=STORY, max_tokens=3, temperature=0)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 3


async def test_seeds_repeat_and_differ(engine: Engine) -> None:
    body = {"temperature": 1.2, "top_p": 0.95, "top_k": 400}
    first, again, other = [await engine.complete(seed=seed, **body) for seed in (1, 1, 2)]
    assert first == again != other
    assert await engine.complete() != await engine.complete()


@pytest.mark.parametrize(
    "penalty",
    [{"frequency_penalty": 2.0}, {"presence_penalty": 2.0}, {"repetition_penalty": 1.5}],
)
async def test_penalties_change_the_answer(engine: Engine, penalty: dict[str, float]) -> None:
    body = {"prompt": "1 2 1 2 1 2 1 2 1 2", "temperature": 0, "max_tokens": 8}
    assert await engine.complete(**body, **penalty) != await engine.complete(**body)


async def test_logit_bias_decides(engine: Engine) -> None:
    logprobs = (await engine.post(TEXT, prompt=[1, 2], max_tokens=1, logprobs=1))["choices"][0]
    assert logprobs["logprobs"]["tokens"]
    assert await engine.complete(max_tokens=3, logit_bias={"33": 100}) == "111"


@pytest.mark.parametrize("penalty", [0.0, 0.001])  # chosen by the manager, chosen by us
async def test_logprobs_of_the_likeliest(engine: Engine, penalty: float) -> None:
    answer = await engine.post(
        CHAT,
        messages=QUESTION,
        temperature=0,
        max_tokens=6,
        logprobs=True,
        top_logprobs=3,
        presence_penalty=penalty,
    )
    (choice,) = answer["choices"]
    content = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == choice["message"]["content"]
    for entry in content:
        top = entry["top_logprobs"]
        assert len(top) == 3
        assert [t["logprob"] for t in top] == sorted((t["logprob"] for t in top), reverse=True)
        assert (entry["token"], entry["logprob"]) == (top[0]["token"], top[0]["logprob"])
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert entry["logprob"] <= 0


async def test_prompts_of_all_forms(engine: Engine) -> None:
    answer = await engine.post(TEXT, prompt=["a b c", "1 2 3"], max_tokens=2, temperature=0)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    again = await engine.post(TEXT, prompt=[[1, 2, 3], [4, 5]], max_tokens=1)
    assert again["usage"]["prompt_tokens"] == 5


async def test_models_and_health(engine: Engine) -> None:
    status, _, models = await engine.raw("/v1/models", b"", "GET")
    assert status == 200
    assert [model["id"] for model in models["data"]] == ["frog"]
    assert (await engine.raw("/health", b"", "GET"))[0] == 200


@pytest.mark.parametrize(
    ("path", "method", "data", "status", "code", "param"),
    [
        (CHAT, "POST", b"{", 400, "invalid_json", None),
        (CHAT, "POST", b"[]", 400, "invalid_json", None),
        (CHAT, "POST", b'{"messages": []}', 400, "invalid_value", "messages"),
        (TEXT, "POST", b'{"prompt": "a", "n": -1}', 400, "invalid_value", "n"),
        (TEXT, "POST", b'{"prompt": "\\ud800"}', 400, "invalid_text", None),
        (
            TEXT,
            "POST",
            json.dumps({"prompt": "frog " * 2100}).encode(),
            400,
            "context_length_exceeded",
            "prompt",
        ),
        (TEXT, "POST", b'"' + b" " * (2 << 20) + b'"', 400, "body_too_large", None),
        ("/v1/embeddings", "POST", b"{}", 404, "unknown_url", None),
        (CHAT, "GET", b"", 405, "method_not_allowed", None),
    ],
)
async def test_errors_have_openai_form(
    engine: Engine, path: str, method: str, data: bytes, status: int, code: str, param: str | None
) -> None:
    got, _, body = await engine.raw(path, data, method)
    assert got == status
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["error"]["code"], body["error"]["param"]) == (code, param)


ENDLESS = {"prompt": STORY, "max_tokens": 1900, "ignore_eos": True}


async def test_a_client_that_leaves_frees_its_slots(engine: Engine) -> None:
    async with engine.stream(TEXT, **ENDLESS, n=2) as events:
        await anext(events)
        assert (await engine.call("describe"))["active"] == 2
    await engine.wait_until(active=0, waiting=0)


async def test_the_queue_has_an_end(engine: Engine) -> None:
    rounds = (SLOTS + WAITING_MAX) // SLOTS
    body = json.dumps({**ENDLESS, "n": SLOTS}).encode()
    crowd = [asyncio.ensure_future(engine.raw(TEXT, body)) for _ in range(rounds)]
    try:
        await engine.wait_until(active=SLOTS, waiting=WAITING_MAX)
        status, headers, answer = await engine.raw(TEXT, b'{"prompt": "a"}')
        assert status == 429
        assert answer["error"]["code"] == "queue_full"
        assert int(headers["retry-after-ms"]) > 0
    finally:
        for one in crowd:
            one.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
    await engine.wait_until(active=0, waiting=0)


async def test_a_busy_replica_refuses_to_quiesce_and_serves_on(engine: Engine) -> None:
    async with engine.stream(TEXT, **ENDLESS) as events:
        await anext(events)
        with pytest.raises(ResourceExhausted) as refusal:
            await engine.call("quiesce", timeout_s=0.05)
        assert refusal.value.reason == "BUSY"
        assert (await engine.call("describe"))["state"] == "serving"
        await anext(events)


async def test_quiesced_means_silent(engine: Engine) -> None:
    """No connection is left, so that a checkpoint finds none, and nothing but unix sockets."""
    reader, writer = await asyncio.open_unix_connection(engine.socket)
    writer.write(b"GET /health HTTP/1.1\r\nhost: engine\r\n\r\n")
    assert b"200" in await reader.readline()
    await engine.call("quiesce", timeout_s=10)
    try:
        assert not await asyncio.wait_for(_rest(reader), DEADLINE_S)
        status, headers, answer = await engine.raw(TEXT, b'{"prompt": "a"}')
        assert status == 503
        assert headers["x-woodfrog-state"] == "quiesced"
        assert answer["error"]["code"] == "replica_not_serving"
        await _until_two_listeners_only(engine.pid)
        assert not _sockets(engine.pid) & _inodes("tcp", "tcp6", "udp", "udp6")
    finally:
        writer.close()
        await engine.thaw()


async def _rest(reader: asyncio.StreamReader) -> bytes:
    """What comes after the first answer, up to the end of the connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"content-length" in head
    return (await reader.read()).partition(b"}")[2]


async def _until_two_listeners_only(pid: int) -> None:
    """Both ends of the event loop's own pair are inside the process; a checkpoint takes them along."""
    async with asyncio.timeout(DEADLINE_S):
        while len(_sockets(pid)) != 4:
            await asyncio.sleep(0.01)
    listening = [
        line
        for line in Path("/proc/net/unix").read_text().splitlines()[1:]
        if line.split()[6] in _sockets(pid) and line.split()[5] == "01"
    ]
    assert len(listening) == 2


def _sockets(pid: int) -> set[str]:
    links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    return {link[8:-1] for link in links if link.startswith("socket:[")}


def _inodes(*tables: str) -> set[str]:
    lines = [line for t in tables for line in Path(f"/proc/net/{t}").read_text().splitlines()[1:]]
    return {line.split()[9] for line in lines}


async def test_parked_and_thawed_it_says_the_same(engine: Engine) -> None:
    before, canary = await engine.complete(temperature=0), await engine.call("canary")
    for verb in ("quiesce", "park"):
        await engine.call(verb)
        await engine.thaw()
        assert await engine.complete(temperature=0) == before
        assert await engine.call("canary") == canary
    described = await engine.call("describe")
    assert described["replica_id"] == engine.thaws[-1]
    assert described["kv_bytes"] > 0
    assert {"import_s", "weights_s", "warm_s"} <= described["load_stages"].keys()


async def test_the_gate_holds_every_byte(engine: Engine) -> None:
    await engine.call("park")
    await engine.thaw(gate="closed")
    reader, writer = await asyncio.open_unix_connection(engine.socket)
    body = json.dumps({"prompt": STORY, "max_tokens": 2, "stream": True}).encode()
    head = f"POST {TEXT} HTTP/1.1\r\nhost: engine\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    first = asyncio.ensure_future(reader.readline())
    await engine.wait_until(active=1)
    canary = await engine.call("canary")
    assert canary["tokens"]
    assert (await asyncio.wait([first], timeout=0.2))[0] == set()
    await engine.call("open")
    assert b"200" in await asyncio.wait_for(first, DEADLINE_S)
    writer.close()
    assert await engine.call("canary") == canary
    await engine.wait_until(active=0)


async def test_draws_go_on_after_thaw(engine: Engine) -> None:
    before = await engine.call("draw")
    await engine.call("park")
    await engine.thaw()
    after = await engine.call("draw")
    for name in ("openssl", "random", "numpy", "torch", "urandom"):
        assert before[name] != after[name]


def test_weights_stay_a_clean_mapping_of_their_file(engine: Engine) -> None:
    """What a checkpoint may leave out: mapped privately from the model's file and never written."""
    mapped = dirty = 0
    inside = False
    for line in Path(f"/proc/{engine.pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            inside = words[-1] == str((MODEL / "model.safetensors").resolve())
        elif inside and words[0] == "Size:":
            mapped += int(words[1]) * 1024
        elif inside and words[0] in ("Private_Dirty:", "Shared_Dirty:", "Anonymous:", "Swap:"):
            dirty += int(words[1])
    assert mapped >= (MODEL / "model.safetensors").stat().st_size
    assert dirty == 0


def test_nothing_heavy_is_loaded_without_need(engine: Engine) -> None:
    maps = Path(f"/proc/{engine.pid}/maps").read_text()
    for package in ("scipy", "sklearn", "pandas", "torchvision", "grpc", "uvloop", "pydantic_core"):
        assert f"/{package}/" not in maps
    assert len(list(Path(f"/proc/{engine.pid}/task").iterdir())) <= 2 + (os.cpu_count() or 1)
