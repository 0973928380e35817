"""The classifier engine as its users meet it: vLLM's form of /v1/classify on one socket, the control contract on the other."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from tests.memory import tiny_classifiers
from tests.memory.tiny_classifiers import LABELS, data_url, picture
from tests.service.engine_process import Engine, running

PATH = "/v1/classify"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("engine")
    with running(folder, tiny_classifiers.of_pictures(folder / "model"), PATH) as engine:
        yield engine


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("engine")
    with running(folder, tiny_classifiers.of_texts(folder / "model"), PATH) as engine:
        yield engine


@pytest.fixture(params=["pictures", "texts"])
def engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def inputs(engine: Engine, request: pytest.FixtureRequest) -> list[str]:
    if engine is request.getfixturevalue("texts"):
        return ["frog", "frog ice winter " * 20, "ice"]
    return [data_url(picture(seed, 30 + 9 * seed)) for seed in range(3)]


async def test_an_answer_has_vllms_form(engine: Engine, inputs: list[str]) -> None:
    answer = await engine.ask(input=inputs, model="whatever")
    assert answer.pop("id").startswith("classify-")
    assert answer.pop("created") > 1_700_000_000
    usage = answer.pop("usage")
    assert usage["prompt_tokens"] == usage["total_tokens"]
    assert usage["completion_tokens"] == 0
    data = answer.pop("data")
    assert answer == {"object": "list", "model": "frog"}
    assert [entry["index"] for entry in data] == [0, 1, 2]
    for entry, given in zip(data, inputs, strict=True):
        assert entry.keys() == {"index", "label", "probs", "num_classes"}
        assert entry["num_classes"] == len(entry["probs"]) == len(LABELS)
        assert sum(entry["probs"]) == pytest.approx(1, abs=1e-5)
        assert entry["label"] == LABELS[entry["probs"].index(max(entry["probs"]))]
        (alone,) = (await engine.ask(input=given))["data"]
        assert alone["probs"] == pytest.approx(entry["probs"], abs=1e-5)


async def test_texts_have_tokens_and_pictures_have_none(pictures: Engine, texts: Engine) -> None:
    assert (await texts.ask(input=["frog", "frog ice"]))["usage"]["total_tokens"] == 7
    assert (await pictures.ask(input=data_url(picture(1))))["usage"]["total_tokens"] == 0


GOOD = data_url(picture(1))
BOMB = data_url(Image.new("1", (30_000, 1_000)))
PICTURES: list[tuple[Any, str, str]] = [
    ("https://example.org/frog.png", "invalid_value", "input"),
    ([GOOD, "http://example.org/frog.png"], "invalid_value", "input[1]"),
    (GOOD[:-30], "invalid_value", "input"),
    ([BOMB], "invalid_value", "input[0]"),
    ([GOOD] * 33, "invalid_value", "input"),
]
TEXTS: list[tuple[Any, str, str]] = [
    ("", "invalid_value", "input"),
    (["frog", 5], "invalid_value", "input[1]"),
    ("a " * 200, "context_length_exceeded", "input"),
    (["a"] * 1025, "invalid_value", "input"),
]


@pytest.mark.parametrize(
    ("name", "given", "code", "param"),
    [("pictures", *case) for case in PICTURES] + [("texts", *case) for case in TEXTS],
    ids=range(len(PICTURES) + len(TEXTS)),
)
async def test_errors_have_openais_form(
    request: pytest.FixtureRequest, name: str, given: Any, code: str, param: str
) -> None:
    engine: Engine = request.getfixturevalue(name)
    status, body = await engine.raw(json.dumps({"input": given}).encode())
    assert status == 400
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["error"]["code"], body["error"]["param"]) == (code, param)


async def test_a_body_that_is_too_large_is_refused(pictures: Engine) -> None:
    status, body = await pictures.raw(b'{"input": "' + b"A" * (9 << 20) + b'"}')
    assert (status, body["error"]["code"]) == (400, "body_too_large")


async def test_more_requests_than_slots_all_get_their_answer(
    engine: Engine, inputs: list[str]
) -> None:
    answers = await asyncio.gather(*(engine.ask(input=inputs) for _ in range(8)))
    assert all(answer["data"] == answers[0]["data"] for answer in answers)
    assert (await engine.call("describe"))["active"] == 0


async def test_the_probe_is_answered(engine: Engine) -> None:
    probe = (await engine.call("describe"))["probe"]
    status, answer = await engine.raw(json.dumps(probe["body"]).encode(), probe["path"])
    assert status == 200, answer


async def test_parked_and_thawed_it_says_the_same(engine: Engine, inputs: list[str]) -> None:
    before, canary = await engine.ask(input=inputs), await engine.call("canary")
    for verb in ("quiesce", "park"):
        assert (await engine.lowered_and_thawed(verb))["brief"] == canary["brief"]
        assert (await engine.ask(input=inputs))["data"] == before["data"]
        assert await engine.call("canary") == canary
