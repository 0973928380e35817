"""llama.cpp behind the replica contract, in a process that cannot import PyTorch."""

import asyncio
import contextlib
import json
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.capabilities import GGUF, need
from tests.memory import tiny_gguf
from tests.service.engine_process import DEADLINE_S, Engine, running

from woodfrog.errors import ResourceExhausted

pytestmark = need("llamacpp")

MODULE = "woodfrog.llamacpp"
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
STORY = "Once upon a time, there was a frog who"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
PICTURE = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
        ],
    }
]
TOOL = {"type": "function", "function": {"name": "jump", "parameters": {"type": "object"}}}
STREAMED = {
    "messages": [{"role": "user", "content": "Say what a frog does."}],
    "stream": True,
    "temperature": 0,
}
ENDLESS = {"prompt": STORY, "max_tokens": 1900, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the GGUF file, clean in the page cache."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copyfile(GGUF, folder / GGUF.name)
    with (folder / GGUF.name).open("rb") as file:
        os.fsync(file.fileno())
    return folder


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("engine")
    for name in ("torch", "transformers", "safetensors"):
        (folder / f"{name}.py").write_text(f'raise ImportError("{name} is not here")\n')
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    (folder / "inner.sock").touch()  # of a predecessor; llama.cpp alone does not start over it
    with running(folder, model, CHAT, MODULE, PYTHONPATH=path) as engine:
        yield engine


async def test_it_answers_as_openai_does(engine: Engine) -> None:
    body = {"messages": QUESTION, "temperature": 0, "max_tokens": 8, "logprobs": True}
    answer = await engine.ask(**body, model="something")
    (choice,) = answer["choices"]
    assert choice["message"]["content"]
    assert choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["content"]) == answer["usage"]["completion_tokens"] == 8
    assert answer["model"] == "frog"
    text = ""
    async for event in _events(engine, CHAT, {**body, "stream": True}):
        text += "".join(c["delta"].get("content") or "" for c in event["choices"])
    assert text == choice["message"]["content"]


async def test_what_llama_cpp_offers_is_passed_through(engine: Engine) -> None:
    status, tokens = await engine.raw(b'{"content": "hi there"}', "/tokenize")
    assert status == 200
    status, text = await engine.raw(json.dumps(tokens).encode(), "/detokenize")
    assert text == {"content": "hi there"}
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema}}
    answer = await engine.ask(messages=QUESTION, response_format=form, max_tokens=40, temperature=0)
    assert isinstance(json.loads(answer["choices"][0]["message"]["content"])["n"], int)
    status, response = await engine.raw(b'{"input": "hi", "max_output_tokens": 4}', "/v1/responses")
    assert (status, response["object"], response["status"]) == (200, "response", "incomplete")
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.fixture
def short(tmp_path: Path, model: Path) -> Iterator[Engine]:
    arguments = json.dumps({"slots": 1, "threads": 1, "context_tokens": 250})
    with running(tmp_path, model, CHAT, MODULE, WOODFROG_ENGINE_ARGS=arguments) as engine:
        yield engine


async def test_a_response_that_fills_its_context_is_incomplete(short: Engine) -> None:
    body = {"input": "frog " * 180, "temperature": 0, "ignore_eos": True}
    status, whole = await short.raw(json.dumps(body).encode(), "/v1/responses")
    assert status == 200
    *_, last = [event async for event in _events(short, "/v1/responses", {**body, "stream": True})]
    assert last["type"] == "response.incomplete"
    for response in (whole, last["response"]):
        assert response["usage"]["total_tokens"] == 256, "llama.cpp rounds up"
        assert response["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.mark.parametrize(
    ("path", "method", "data", "status", "code"),
    [
        (CHAT, "POST", b"{", 400, "invalid_json"),
        (CHAT, "POST", b'{"messages": 3}', 400, "invalid_value"),
        (TEXT, "POST", b'{"prompt": "a", "n": 3}', 400, "invalid_value"),
        (TEXT, "POST", b'{"prompt": ["a", "b", "c"]}', 400, "invalid_value"),
        (
            TEXT,
            "POST",
            json.dumps({"prompt": "frog " * 3000}).encode(),
            400,
            "context_length_exceeded",
        ),
        (CHAT, "POST", json.dumps({"messages": PICTURE}).encode(), 400, "invalid_value"),
        (
            CHAT,
            "POST",
            json.dumps({"messages": QUESTION, "tools": [TOOL], "tool_choice": "required"}).encode(),
            400,
            "unsupported_parameter",  # llama.cpp leaves them out where the template has none
        ),
        (TEXT, "POST", b'{"prompt": "a", "grammar": "root ::= x"}', 400, "unsupported_parameter"),
        (TEXT, "POST", b'{"prompt": "a", "n_probs": 49000}', 400, "invalid_value"),
        ("/detokenize", "POST", b'{"tokens": [-1]}', 400, "invalid_value"),
        ("/v1/embeddings", "POST", b'{"input": "a"}', 404, "unknown_url"),
        ("/slots", "GET", b"", 404, "unknown_url"),  # shows what others ask
        (CHAT, "GET", b"", 405, "method_not_allowed"),
    ],
)
async def test_errors_have_openais_form(
    engine: Engine, path: str, method: str, data: bytes, status: int, code: str
) -> None:
    got, body = await engine.raw(data, path, method)
    assert (got, body["error"]["code"]) == (status, code)
    assert set(body["error"]) == {"message", "type", "param", "code"}


async def test_no_request_has_more_sequences_than_slots(engine: Engine) -> None:
    """llama.cpp has a second name for n."""
    _, answer = await engine.raw(b'{"prompt": "a", "max_tokens": 1, "n_cmpl": 3}', TEXT)
    assert len(answer["choices"]) == 1


async def test_no_prompt_is_kept_for_the_next_request(engine: Engine) -> None:
    body = json.dumps({"prompt": STORY, "max_tokens": 1, "cache_prompt": True}).encode()
    for _ in range(3):
        _, answer = await engine.raw(body, TEXT)
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_seeds_repeat_and_differ(engine: Engine) -> None:
    async def told(**body: Any) -> str:
        asked = {"prompt": STORY, "max_tokens": 12, "temperature": 1.5, **body}
        _, answer = await engine.raw(json.dumps(asked).encode(), TEXT)
        return str(answer["choices"][0]["text"])

    first, again, other = [await told(seed=seed) for seed in (1, 1, 2)]
    assert first == again != other
    assert await told() != await told()


async def test_a_client_that_leaves_frees_its_slot(engine: Engine) -> None:
    async with contextlib.aclosing(_events(engine, TEXT, ENDLESS)) as events:
        await anext(events)
        assert (await engine.call("describe"))["active"] == 1
    await _until(engine, active=0)


async def test_a_full_queue_turns_away_with_the_time_to_come_back(engine: Engine) -> None:
    crowd = [asyncio.ensure_future(_listen(engine)) for _ in range(2 + 64)]
    try:
        await _until(engine, active=2, waiting=64)
        connector = aiohttp.UnixConnector(path=str(engine.socket))
        async with aiohttp.ClientSession("http://engine", connector=connector) as client:
            async with client.post(TEXT, json={"prompt": "a"}) as response:
                assert response.status == 429
                assert int(response.headers["retry-after-ms"]) > 0
                assert (await response.json())["error"]["code"] == "queue_full"
        with pytest.raises(ResourceExhausted) as refusal:
            await engine.call("quiesce", timeout_s=0.05)
        assert refusal.value.reason == "BUSY"
    finally:
        for one in crowd:
            one.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
    await _until(engine, active=0, waiting=0)


async def test_parked_it_holds_no_kv_no_connection_and_uses_no_cpu(engine: Engine) -> None:
    before = await engine.ask(messages=QUESTION, temperature=0, max_tokens=8)
    full = (await engine.call("canary"))["digest"]
    assert (await engine.call("describe"))["kv_bytes"] > 1 << 20
    held = _private_bytes(engine.pid)
    await engine.call("park", timeout_s=30)
    try:
        assert _private_bytes(engine.pid) < held
        assert await _asked_at_rest(engine) == ("parked", 503, "replica_not_serving")
        began = _cpu_s(engine.pid)
        await asyncio.sleep(1.0)
        assert _cpu_s(engine.pid) - began <= 0.02  # two ticks; one thread that spins uses a hundred
    finally:
        await _thaw(engine)
    assert (await engine.call("canary"))["digest"] == full
    after = await engine.ask(messages=QUESTION, temperature=0, max_tokens=8)
    assert after["choices"][0]["message"] == before["choices"][0]["message"]
    one, two = await engine.lowered_and_thawed("quiesce"), await engine.lowered_and_thawed("park")
    assert one["brief"] == two["brief"]


async def test_quiesced_its_kv_memory_reads_as_zero(engine: Engine) -> None:
    """It is looked at from outside, where no code of its own can be kind to it."""
    size = (await engine.call("describe"))["kv_bytes"]
    (area,) = [a for a in _areas(engine.pid) if size - 2 * mmap.PAGESIZE < a[1] - a[0] <= size]
    await engine.raw(b'{"prompt": "a b c", "max_tokens": 2}', TEXT)
    assert _written(engine.pid, area)
    await engine.call("quiesce", timeout_s=30)
    try:
        assert not _written(engine.pid, area)
    finally:
        await _thaw(engine)


async def test_nothing_leaves_while_the_gate_is_closed(engine: Engine) -> None:
    await engine.call("quiesce", timeout_s=30)
    await _thaw(engine, gate="closed")
    asked = asyncio.ensure_future(engine.ask(messages=QUESTION, max_tokens=2))
    await _until(engine, active=1)
    await _until(engine, active=1, gate="closed")
    done, _ = await asyncio.wait({asked}, timeout=0.5)
    assert not done
    await engine.call("open")
    assert (await asked)["choices"]


async def test_it_has_imported_no_torch_and_maps_its_weights_as_they_lie(
    engine: Engine, model: Path
) -> None:
    maps = Path(f"/proc/{engine.pid}/maps").read_text()
    assert "torch" not in maps
    assert "numpy" not in maps
    (line,) = [line for line in maps.splitlines() if line.endswith(".gguf")]
    assert line.split()[1] == "r--s"


def test_a_folder_without_a_model_is_one_sentence(tmp_path: Path) -> None:
    environ = {
        **os.environ,
        **dict.fromkeys(("WOODFROG_SOCKET", "WOODFROG_CONTROL"), str(tmp_path / "x.sock")),
        "WOODFROG_MODEL": str(tmp_path),
    }
    argv = [sys.executable, "-m", MODULE]
    ended = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=DEADLINE_S)
    assert ended.returncode == 2
    assert "has no .gguf file" in ended.stderr
    (tmp_path / "bad.gguf").write_bytes(b"GGUF\3\0\0\0")
    ended = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=DEADLINE_S)
    assert ended.returncode == 2
    assert "it ends too early" in ended.stderr.splitlines()[-1]
    (tmp_path / "bad.gguf").write_bytes(GGUF.read_bytes()[: 40 << 20])
    ended = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=DEADLINE_S)
    assert ended.returncode == 2
    assert "llama.cpp does not load bad.gguf" in ended.stderr.splitlines()[-1]


async def _asked_at_rest(engine: Engine) -> tuple[str, int, str]:
    connector = aiohttp.UnixConnector(path=str(engine.socket))
    async with aiohttp.ClientSession("http://engine", connector=connector) as client:
        async with client.post(TEXT, json={"prompt": "a"}) as response:
            code = (await response.json())["error"]["code"]
            return response.headers["x-woodfrog-state"], response.status, code


async def _thaw(engine: Engine, gate: str = "open") -> None:
    entropy = os.urandom(64).hex()
    await engine.call("thaw", replica_id=os.urandom(4).hex(), entropy=entropy, gate=gate)


async def _events(engine: Engine, path: str, body: dict[str, Any]) -> Any:
    connector = aiohttp.UnixConnector(path=str(engine.socket))
    async with aiohttp.ClientSession("http://engine", connector=connector) as client:
        async with client.post(path, json=body) as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            async for line in response.content:
                if line.startswith(b"data: {"):
                    yield json.loads(line.removeprefix(b"data: "))


async def _listen(engine: Engine) -> None:
    async for _ in _events(engine, TEXT, ENDLESS):
        pass


async def _until(engine: Engine, **expected: Any) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while (described := await engine.call("describe")) | expected != described:
            await asyncio.sleep(0.01)


def _private_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(x.split()[1]) << 10 for x in lines if x.startswith("Private_Dirty:"))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _areas(pid: int) -> list[tuple[int, int]]:
    """Private memory that can be written."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        area, access, *_ = line.split()
        if access == "rw-p":
            begin, end = (int(x, 16) for x in area.split("-"))
            found.append((begin, end))
    return found


def _written(pid: int, area: tuple[int, int]) -> bool:
    """Whether any byte of it is not zero."""
    with open(f"/proc/{pid}/pagemap", "rb") as map, open(f"/proc/{pid}/mem", "rb") as memory:
        map.seek(area[0] // mmap.PAGESIZE * 8)
        entries = map.read((area[1] - area[0]) // mmap.PAGESIZE * 8)
        for page in range(len(entries) // 8):
            if entries[8 * page + 7] & 0xC0:  # present or swapped
                memory.seek(area[0] + page * mmap.PAGESIZE)
                if any(memory.read(mmap.PAGESIZE)):
                    return True
    return False


@pytest.fixture
def embedder(tmp_path: Path) -> Iterator[Engine]:
    folder = tmp_path / "model"
    folder.mkdir()
    tiny_gguf.embedder(folder / "tiny.gguf")
    with running(tmp_path, folder, "/v1/embeddings", MODULE) as engine:
        yield engine


async def test_a_model_that_pools_answers_with_vectors(embedder: Engine) -> None:
    answer = await embedder.ask(input=["a b c", "d e", "a b c"])
    one, other, again = [entry["embedding"] for entry in answer["data"]]
    assert len(one) == tiny_gguf.WIDTH
    assert sum(number * number for number in one) == pytest.approx(1, abs=1e-3)
    assert one == pytest.approx(again, abs=1e-4)
    assert one != pytest.approx(other, abs=1e-2)
    canary = await embedder.call("canary")
    thawed = await embedder.lowered_and_thawed("park")
    assert thawed["brief"] == canary["brief"]
    after = (await embedder.ask(input="a b c"))["data"][0]["embedding"]
    assert after == pytest.approx(one, abs=1e-4)


async def test_what_a_model_that_pools_does_not_take_is_the_requests_fault(
    embedder: Engine,
) -> None:
    status, body = await embedder.raw(json.dumps({"messages": QUESTION}).encode(), CHAT)
    assert (status, body["error"]["code"]) == (404, "unknown_url")
    assert body["error"]["message"].endswith("it answers to /v1/embeddings, /v1/rerank")
    status, body = await embedder.raw(json.dumps({"input": "a " * 9000}).encode(), "/v1/embeddings")
    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")


async def test_a_stream_tells_the_router_its_tokens_though_its_client_did_not_ask(
    engine: Engine,
) -> None:
    connector = aiohttp.UnixConnector(path=str(engine.socket))
    body = {**STREAMED, "max_tokens": 7}
    async with aiohttp.ClientSession("http://engine", connector=connector) as client:
        whole = await (await client.post(CHAT, json={**body, "stream": False})).json()
        async with client.post(CHAT, json=body) as response:
            text = (await response.read()).decode()
    usage = whole["usage"]
    told = f": usage prompt_tokens={usage['prompt_tokens']} completion_tokens={usage['completion_tokens']}"
    assert text.endswith(f"\n\n{told}\n\ndata: [DONE]\n\n")


@pytest.mark.parametrize(
    ("path", "said", "most"),
    [("/v1/responses", "input", "max_output_tokens"), ("/v1/messages", "messages", "max_tokens")],
)
async def test_streams_without_done_tell_their_tokens_too(
    engine: Engine, path: str, said: str, most: str
) -> None:
    connector = aiohttp.UnixConnector(path=str(engine.socket))
    body = {said: [{"role": "user", "content": "hi"}], most: 7, "temperature": 0}
    async with aiohttp.ClientSession("http://engine", connector=connector) as client:
        whole = await (await client.post(path, json=body)).json()
        async with client.post(path, json={**body, "stream": True}) as response:
            text = (await response.read()).decode()
    read, written = (whole["usage"][name] for name in ("input_tokens", "output_tokens"))
    assert text.endswith(f"\n\n: usage prompt_tokens={read} completion_tokens={written}\n\n")
