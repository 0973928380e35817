"""The embeddings engine as its users meet it: OpenAI's API on one socket, the control contract on the other."""

import asyncio
import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from tests.memory import tiny_encoders
from tests.service.engine_process import Engine, running

PATH = "/v1/embeddings"


@pytest.fixture(scope="module", params=["BertModel", "LlamaModel"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:  # fmt: skip
    folder = tmp_path_factory.mktemp("engine")
    model = tiny_encoders.make(folder / "model", request.param)
    with running(folder, model, PATH) as engine:
        yield engine


async def embed(engine: Engine, text: Any, **body: Any) -> dict[str, Any]:
    return await engine.ask(input=text, **body)


async def test_an_answer_has_openais_form(engine: Engine) -> None:
    answer = await embed(engine, "frog ice", model="whatever")
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
    answer = await embed(engine, texts)
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2]
    for text, entry in zip(texts, answer["data"], strict=True):
        (alone,) = (await embed(engine, text))["data"]
        assert entry["embedding"] == pytest.approx(alone["embedding"], abs=1e-5)
    frog = [2, tiny_encoders.WORDS.index("frog"), 3]
    tokens = await embed(engine, [frog, frog])
    for entry in tokens["data"]:
        expected = answer["data"][0]["embedding"]
        assert entry["embedding"] == pytest.approx(expected, abs=1e-5)
    assert tokens["usage"]["prompt_tokens"] == 6


async def test_base64_and_fewer_dimensions(engine: Engine) -> None:
    (entry,) = (await embed(engine, "frog"))["data"]
    (encoded,) = (await embed(engine, "frog", encoding_format="base64"))["data"]
    data = base64.b64decode(encoded["embedding"])
    assert list(struct.unpack(f"<{tiny_encoders.SIZE}f", data)) == entry["embedding"]
    (short,) = (await embed(engine, "frog", dimensions=5))["data"]
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
    answers = await asyncio.gather(*(embed(engine, ["frog", "ice"]) for _ in range(8)))
    assert all(answer == answers[0] for answer in answers)
    assert (await engine.call("describe"))["active"] == 0


async def test_the_probe_is_answered(engine: Engine) -> None:
    probe = (await engine.call("describe"))["probe"]
    status, answer = await engine.raw(json.dumps(probe["body"]).encode(), probe["path"])
    assert status == 200, answer


async def test_parked_and_thawed_it_says_the_same(engine: Engine) -> None:
    before, canary = await embed(engine, "frog ice"), await engine.call("canary")
    for verb in ("quiesce", "park"):
        assert (await engine.lowered_and_thawed(verb))["brief"] == canary["brief"]
        assert await embed(engine, "frog ice") == before
        assert await engine.call("canary") == canary
