"""Chats with images by tiny models, against Transformers' own `generate` without padding; and what a request may bring."""

import asyncio
import base64
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import PIL.Image
import pytest
import torch
import transformers
from tests.memory import tiny_vision
from tests.memory.simulated_gpu import SimulatedDevice
from tests.memory.tiny_vision import CONTEXT_TOKENS, EOS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from woodfrog.clock import SystemClock
from woodfrog.engine.kinds import Kind, kind_of
from woodfrog.engine.module_engine import Stop
from woodfrog.engine.parse import chat_request
from woodfrog.engine.pictures import pattern
from woodfrog.engine.processing import Chats
from woodfrog.engine.request import GenerationRequest, Piece
from woodfrog.engine.settings import load
from woodfrog.engine.vision import IMAGES_MAX, VisionEngine
from woodfrog.engine.vision_front import VisionFront
from woodfrog.errors import Internal, InvalidArgument
from woodfrog.node_agent.vault.arena import Arena
from woodfrog.node_agent.vault.vault import Vault
from woodfrog.replica.app import Answer
from woodfrog.replica.weights import WeightMemory

SIMULATED = "tests.memory.simulated_gpu:SimulatedMemory"
NAMES = [f"{name}ForConditionalGeneration" for name in ("Idefics3", "Llava", "Qwen2VL")]
SIZES = [(100, 90), (40, 130), (16, 16)]


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision.make(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def idefics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision.make(tmp_path_factory.mktemp("models") / "m")


def engine_of(
    folder: Path, memory: str = "", weights: WeightMemory | None = None, graphs: Any = None
) -> VisionEngine:
    arguments = {"threads": 1, "slots": 2, "context_tokens": CONTEXT_TOKENS}
    environ = {
        "WOODFROG_SOCKET": "unused",
        "WOODFROG_CONTROL": "unused",
        "WOODFROG_MODEL": str(folder),
        "WOODFROG_MODEL_NAME": "frog",
        "WOODFROG_DEVICE_MEMORY": memory,
        "WOODFROG_ENGINE_ARGS": json.dumps(arguments),
    }
    engine = VisionEngine(load(environ), weights)
    engine.graphs = graphs
    engine.load()
    return engine


class Shared:
    """A vault with one model's weights, and an engine that has them."""

    def __init__(self, folder: Path, graphs: Any = None) -> None:
        self._vault = Vault(SimulatedDevice(), Arena(0, 1), 2)
        self._vault.load("w", folder, host=False)
        self.weights = WeightMemory()
        self.give()
        self.engine = engine_of(folder, SIMULATED, self.weights, graphs)

    def give(self) -> None:
        self.weights.give(self._vault.export("w")[0])


class Recorder:
    """Stands where graphs do. Notes what it would capture, and computes it once without values, as a capture does:
    what asks for a value fails.
    """

    def __init__(self) -> None:
        self.shapes: set[Any] = set()
        self.pool = SimpleNamespace(size_bytes=0)

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            given = (args, kwargs)
            leaves = pytree.tree_leaves(given)
            shapes = tuple(leaf.shape for leaf in leaves if isinstance(leaf, torch.Tensor))
            if (id(function), shapes) not in self.shapes:
                self.shapes.add((id(function), shapes))
                _without_values(function, given)
            return function(*args, **kwargs)

        return call


def _without_values(function: Callable[..., Any], given: Any) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    args, kwargs = pytree.tree_map_only(torch.Tensor, mode.from_tensor, given)
    with torch.inference_mode(False), torch.no_grad(), mode:
        function(*args, **kwargs)


def body_of(*images: str, text: str = "what?", **more: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": u}} for u in images]
    parts.append({"type": "text", "text": text})
    given = {"max_tokens": 12, "temperature": 0, "ignore_eos": True, **more}
    return {"messages": [{"role": "user", "content": parts}], **given}


def answered(engine: VisionEngine, body: dict[str, Any]) -> list[tuple[int, Piece]]:
    got: list[tuple[int, Piece]] = []

    def emit(index: int, piece: Piece) -> None:
        got.append((index, piece))

    asyncio.run(engine.compute(lambda: engine.answer(body, lambda _: None, emit, Stop())))
    return got


def tokens(engine: VisionEngine, body: dict[str, Any]) -> list[int]:
    pieces = answered(engine, {**body, "logprobs": True})
    return [entry.token for _, piece in pieces for entry in piece.logprobs]


def expected(folder: Path, count: int, text: str = "what?") -> list[int]:
    """By the library alone; its processor for Qwen2-VL wants torchvision, which videos need."""
    images = [picture(pattern(*size)) for size in SIZES[:count]]
    parts = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]  # fmt: skip
    if "Qwen" in str(folder):
        processor = Chats(folder)._processor
    else:
        processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, name).from_pretrained(folder)
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    words: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    return words


def picture(url: str) -> Any:
    data = base64.b64decode(url.partition(",")[2])
    return PIL.Image.open(io.BytesIO(data)).convert("RGB")


def data_url(image: Any, form: str = "PNG") -> str:
    data = io.BytesIO()
    image.save(data, form)
    return f"data:image/{form.lower()};base64," + base64.b64encode(data.getvalue()).decode()


def test_such_a_folder_is_one_for_chats_with_images(folder: Path, tmp_path: Path) -> None:
    assert kind_of(folder) is Kind.VISION
    config = json.loads((folder / "config.json").read_text())
    del config["vision_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidArgument, match="vision_config"):
        kind_of(tmp_path)


def test_tokens_are_those_of_transformers(folder: Path) -> None:
    on_cpu, shared = engine_of(folder), Shared(folder)
    different = set()
    for count in range(len(SIZES) + 1):
        body = body_of(*(pattern(*size) for size in SIZES[:count]))
        wanted = expected(folder, count)
        assert tokens(on_cpu, body) == wanted
        assert tokens(shared.engine, body) == wanted
        different.add(tuple(wanted))
    assert len(different) == len(SIZES) + 1  # the images change the answer
    on_cpu.stop()
    shared.engine.stop()


def test_padding_of_every_length_changes_nothing(idefics: Path) -> None:
    on_cpu, shared = engine_of(idefics), Shared(idefics)
    for length in (1, 105, 106, 107, 230, 240, 480):  # with the template 22 more; 128 is a length
        body = body_of(text="a b." * (length // 4) + "c" * (length % 4), max_tokens=5)
        assert tokens(on_cpu, body) == tokens(shared.engine, body)
    on_cpu.stop()
    shared.engine.stop()


async def test_a_park_changes_nothing_and_leaves_nothing(folder: Path) -> None:
    shared = Shared(folder)
    engine = shared.engine
    await engine.warm()
    on_cpu = engine_of(folder)
    canaries = await engine.canary(), engine.brief_canary()
    assert canaries == (await on_cpu.canary(), on_cpu.brief_canary())
    cache = engine._cache
    assert cache is not None
    assert cache.region.view().any()
    assert engine.describe()["kv_bytes"] >= cache.region.size_bytes
    parameters = [p for n, p in engine._model.named_parameters() if "of_the_cpu" not in n]
    assert all(shared.weights.holds(parameter) for parameter in parameters)
    engine.clear()
    assert not cache.region.view().any()
    assert await engine.canary() == canaries[0]
    engine.release()
    shared.weights.detach()
    shared.give()
    engine.regain()
    assert not cache.region.view().any()
    assert (await engine.canary(), engine.brief_canary()) == canaries
    engine.stop()
    on_cpu.stop()


@pytest.mark.parametrize("name", NAMES)
async def test_every_shape_is_captured_before_the_first_request(tmp_path: Path, name: str) -> None:
    recorder = Recorder()
    engine = Shared(tiny_vision.make(tmp_path / "m", name), recorder).engine
    await engine.warm()
    warm = set(recorder.shapes)

    def ask(body: dict[str, Any]) -> None:
        engine.answer(body, lambda _: None, lambda *_: None, Stop())

    for body in (
        body_of(),
        body_of(text="long " * 60),
        *(body_of(*[pattern(*size)] * count) for size in SIZES for count in (1, 2)),
    ):
        await engine.compute(lambda body=body: ask(body))  # type: ignore[misc]
    assert recorder.shapes == warm
    most = max(sum(key[0] == function for key in warm) for function in {key[0] for key in warm})
    assert most <= 16  # graphed.SHAPES_MAX
    engine.stop()


async def test_the_canary_sees(idefics: Path) -> None:
    engine = engine_of(idefics)
    full, brief = await engine.canary(), engine.brief_canary()
    with torch.no_grad():
        engine._model.get_encoder("image").encoder.layers[1].mlp.fc2.weight.neg_()
    assert await engine.canary() != full
    assert engine.brief_canary() == brief
    with torch.no_grad():
        engine._model.get_decoder().layers[1].mlp.down_proj.weight.neg_()
    assert engine.brief_canary() != brief
    engine.stop()


def test_seeds_choose_the_answers(idefics: Path) -> None:
    engine = engine_of(idefics)
    asked = body_of(pattern(40, 40), temperature=1.0, n=2, seed=3)

    def texts(body: dict[str, Any]) -> list[str]:
        pieces = answered(engine, body)
        return ["".join(p.text for i, p in pieces if i == index) for index in range(2)]

    first, second = texts(asked)
    assert first != second
    assert texts(asked) == [first, second]
    assert texts({**asked, "seed": 4}) != [first, second]
    engine.stop()


def test_without_a_seed_two_processes_that_never_slept_differ(idefics: Path) -> None:
    said = []
    for _ in range(2):
        torch.manual_seed(0)  # as PyTorch starts in every process
        engine = engine_of(idefics)
        said.append(tokens(engine, body_of(temperature=2.0)))
        engine.stop()
    assert said[0] != said[1]


def test_a_stop_string_and_the_models_own_end(idefics: Path) -> None:
    engine = engine_of(idefics)
    pieces = answered(engine, body_of(pattern(40, 40), text="hi", max_tokens=40))
    text = "".join(piece.text for _, piece in pieces)
    assert pieces[-1][1].finish_reason == "length"
    word = next(char for char in text[1:] if char.isascii() and char not in text[0])
    stopped = answered(engine, body_of(pattern(40, 40), text="hi", max_tokens=40, stop=word))
    assert "".join(piece.text for _, piece in stopped) == text[: text.index(word)]
    assert stopped[-1][1].finish_reason == "stop"
    ended = body_of(text="hi", ignore_eos=False, logit_bias={str(EOS): 100})
    ((_, piece),) = answered(engine, ended)
    assert (piece.text, piece.finish_reason, piece.token_count) == ("", "stop", 1)
    engine.stop()


def test_what_is_not_a_number_is_no_answer(idefics: Path) -> None:
    engine = engine_of(idefics)
    with torch.no_grad():
        engine._model.get_decoder().layers[2].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(Internal, match="overflowed"):
        answered(engine, body_of())
    engine.stop()


def bomb() -> str:
    """A picture that says it were 30,000 pixels wide and high."""
    data = bytearray(base64.b64decode(pattern(8, 8).partition(",")[2]))
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    return "data:image/png;base64," + base64.b64encode(data).decode()


SMALL = pattern(8, 8)
WRONG_URLS = {
    "http": "http://127.0.0.1/frog.png",
    "https": "https://example.org/frog.png",
    "file": "file:///etc/passwd",
    "path": "/etc/passwd",
    "no base64": "data:image/png;base64,????",
    "no picture": "data:image/png;base64," + base64.b64encode(b"frog" * 50).decode(),
    "another format": "data:image/bmp;base64," + data_url(PIL.Image.new("RGB", (8, 8)), "BMP")[22:],
    "cut off": SMALL[:-60],
    "bomb": bomb(),
    "empty": "",
}


@pytest.mark.parametrize("what", WRONG_URLS)
def test_a_picture_that_cannot_be_one_is_named(idefics: Path, what: str) -> None:
    chats = Chats(idefics)
    message = {"type": "image", "url": WRONG_URLS[what], "place": "messages[0].content[1].image_url"}  # fmt: skip
    with pytest.raises(InvalidArgument) as caught:
        chats.inputs([{"role": "user", "content": [message]}], CONTEXT_TOKENS)
    assert caught.value.reason == "INVALID_VALUE"
    assert caught.value.metadata["param"] == message["place"]


def test_all_pictures_together_are_bounded(idefics: Path) -> None:
    chats = Chats(idefics)
    url = data_url(PIL.Image.new("L", (4096, 2048)))
    part = {"type": "image", "url": url, "place": "here"}
    with pytest.raises(InvalidArgument, match="are left in this request"):
        chats.inputs([{"role": "user", "content": [part] * 3}], 1 << 20)


def test_a_jpeg_of_scans_without_end_is_refused(idefics: Path) -> None:
    data = io.BytesIO()
    PIL.Image.new("RGB", (64, 64)).save(data, "JPEG", progressive=True)
    head, scan, rest = data.getvalue().rpartition(b"\xff\xda")
    many = head + (scan + rest.removesuffix(b"\xff\xd9")) * 100 + b"\xff\xd9"
    url = "data:image/jpeg;base64," + base64.b64encode(many).decode()
    part = {"type": "image", "url": url, "place": "here"}
    with pytest.raises(InvalidArgument, match="scans"):
        Chats(idefics).inputs([{"role": "user", "content": [part]}], CONTEXT_TOKENS)


def test_a_processor_that_cannot_count_is_bounded_by_the_least(idefics: Path) -> None:
    chats = Chats(idefics)
    kind = type(chats._processor)
    count = chats._tokens([PIL.Image.new("RGB", (128, 32))])
    kind._get_num_multimodal_tokens = None
    part = {"type": "image", "url": SMALL, "place": "here"}
    with pytest.raises(InvalidArgument, match="the images alone make") as caught:
        chats.inputs([{"role": "user", "content": [part] * 16}], 16 * count - 1)
    assert caught.value.reason == "CONTEXT_LENGTH_EXCEEDED"
    assert abs(chats._tokens([None] * 16) - 16 * count) <= 16 * 2  # for the line that ends a row


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_pictures_of_openais_forms_are_read(idefics: Path, form: str) -> None:
    chats = Chats(idefics)
    part = {"type": "image", "url": data_url(PIL.Image.new("RGB", (9, 7)), form), "place": "here"}
    inputs = chats.inputs([{"role": "user", "content": [part]}], CONTEXT_TOKENS)
    assert inputs["pixel_values"].dim() == 5


@pytest.mark.parametrize(
    ("body", "reason", "param"),
    [
        (body_of(*[SMALL] * (IMAGES_MAX + 1)), "INVALID_VALUE", "messages"),
        (body_of(*[SMALL] * 5), "CONTEXT_LENGTH_EXCEEDED", "messages"),
        (body_of(text="x" * 600), "CONTEXT_LENGTH_EXCEEDED", "messages"),
        (body_of(SMALL, max_tokens=CONTEXT_TOKENS), "CONTEXT_LENGTH_EXCEEDED", "messages"),
        (body_of(text="an <image> without one"), "INVALID_TEXT", "messages"),
        (body_of(text="\ud800"), "INVALID_TEXT", None),
        (body_of(SMALL, n=3), "INVALID_VALUE", "n"),
        (body_of(SMALL, top_p=0), "INVALID_VALUE", "top_p"),
        ({"messages": []}, "INVALID_VALUE", "messages"),
    ],
)
def test_what_does_not_fit_is_refused(
    idefics: Path, body: dict[str, Any], reason: str, param: str | None
) -> None:
    engine = engine_of(idefics)
    with pytest.raises(InvalidArgument) as caught:
        answered(engine, body)
    assert caught.value.reason == reason
    assert caught.value.metadata.get("param") == param
    engine.stop()


class Client:
    """What an HTTP client would get."""

    def __init__(self) -> None:
        gate = asyncio.Event()
        gate.set()
        self.answer = Answer(self._take, gate)
        self.data = b""
        self.begun = asyncio.Event()

    async def _take(self, message: Any) -> None:
        self.data += message.get("body", b"")
        if self.data:
            self.begun.set()

    def events(self) -> list[Any]:
        lines = [line.removeprefix(b"data: ") for line in self.data.split(b"\n\n") if line]
        assert lines.pop() == b"[DONE]"
        told = [line for line in lines if line.startswith(b": usage prompt_tokens=")]
        first, last = told
        assert last.startswith(first + b" completion_tokens="), "at the beginning and at the end"
        return [json.loads(line) for line in lines if line not in told]


async def sent(front: VisionFront, body: dict[str, Any]) -> Client:
    client = Client()
    await front.handle("/v1/chat/completions", json.dumps(body).encode(), client.answer)
    return client


async def test_an_answer_and_a_stream_have_openais_form(idefics: Path) -> None:
    engine = engine_of(idefics)
    front = VisionFront(engine, SystemClock())
    whole = json.loads((await sent(front, body_of(SMALL, logprobs=True))).data)
    assert (whole["object"], whole["model"]) == ("chat.completion", "frog")
    (choice,) = whole["choices"]
    assert choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["content"]) == 12
    assert whole["usage"]["completion_tokens"] == 12
    assert whole["usage"]["prompt_tokens"] > 100  # the tiles
    streamed = body_of(SMALL, stream=True, stream_options={"include_usage": True})
    *chunks, last = (await sent(front, streamed)).events()
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == choice["message"]["content"]  # fmt: skip
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert last["usage"] == whole["usage"]
    with pytest.raises(InvalidArgument) as caught:
        await sent(front, body_of("https://example.org/frog.png"))
    assert caught.value.metadata["param"] == "messages[0].content[0].image_url"
    assert engine.admission.active == 0
    engine.stop()


async def test_a_client_that_leaves_ends_its_answer(idefics: Path) -> None:
    engine = engine_of(idefics)
    steps: list[None] = []
    engine._model.get_decoder().register_forward_hook(lambda *_: steps.append(None))
    body = body_of(SMALL, stream=True, max_tokens=350)
    client = Client()
    front = VisionFront(engine, SystemClock())
    raw = json.dumps(body).encode()
    talking = asyncio.ensure_future(front.handle("/v1/chat/completions", raw, client.answer))
    await client.begun.wait()
    talking.cancel()
    await asyncio.gather(talking, return_exceptions=True)
    await engine.compute(lambda: None)
    assert 0 < len(steps) < 350
    assert engine.admission.active == 0
    engine.stop()


async def test_an_answer_that_nobody_wants_any_more_is_not_begun(idefics: Path) -> None:
    engine = engine_of(idefics)
    began: list[GenerationRequest] = []
    await engine.compute(
        lambda: engine.answer(body_of(SMALL), began.append, lambda *_: None, Stop(asked=True))
    )
    assert not began
    engine.stop()


async def test_of_several_answers_none_is_begun_after_the_client_left(idefics: Path) -> None:
    engine = engine_of(idefics)
    stop = Stop()
    emitted: list[int] = []

    def emit(index: int, _: Piece) -> None:
        emitted.append(index)
        stop.asked = True

    body = body_of(SMALL, n=2)
    await engine.compute(lambda: engine.answer(body, lambda _: None, emit, stop))
    assert emitted == [0]
    engine.stop()


def test_the_probe_is_a_chat_with_a_picture(idefics: Path) -> None:
    engine = engine_of(idefics)
    probe = engine.describe()["probe"]
    assert probe["path"] in VisionFront(engine, SystemClock()).methods
    seen: list[Any] = []

    def encode(messages: list[dict[str, Any]]) -> list[int]:
        seen.extend(messages[0]["content"])
        return [1]

    assert chat_request(probe["body"], engine.limits, encode, images_max=1).stream
    assert [part["type"] for part in seen] == ["image", "text"]
    engine.stop()


def test_a_folder_that_cannot_be_served_is_refused(idefics: Path, tmp_path: Path) -> None:
    shutil.copytree(idefics, tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").unlink()
    with pytest.raises(InvalidArgument, match="has no chat template"):
        engine_of(tmp_path / "m")
    config = json.loads((idefics / "preprocessor_config.json").read_text())
    for name in ("Nothing", "pipeline", "AutoProcessor", "WhisperProcessor"):
        for file in ("preprocessor_config.json", "processor_config.json"):
            (tmp_path / "m" / file).write_text(json.dumps({**config, "processor_class": name}))
        with pytest.raises(InvalidArgument, match=f"names {name}"):
            engine_of(tmp_path / "m")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("preprocessor_config.json", None),
        ("preprocessor_config.json", "{"),
        ("preprocessor_config.json", "[1]"),
        ("processor_config.json", "[1]"),
        ("tokenizer.json", None),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "{"),
    ],
)
def test_a_broken_file_of_a_processor_is_told(
    idefics: Path, tmp_path: Path, file: str, text: str | None
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(idefics, folder)
    (folder / file).unlink()
    if text is not None:
        (folder / file).write_text(text)
    with pytest.raises(InvalidArgument, match=str(folder)) as caught:
        engine_of(folder)
    assert caught.value.reason == "UNKNOWN_PROCESSOR"
    assert "\n" not in caught.value.message
