"""Classes of texts and pictures by tiny models, against Transformers itself, one input at a time."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from tests.memory import tiny_classifiers
from tests.memory.simulated_gpu import SimulatedDevice
from tests.memory.tiny_classifiers import SIDE, data_url, picture
from tests.memory.tiny_encoders import CONTEXT_TOKENS

from woodfrog.clock import SystemClock
from woodfrog.engine.batches import ROWS
from woodfrog.engine.classifier import (
    PICTURES_MAX,
    ClassifierEngine,
    PictureClassifier,
    TextClassifier,
    engine_of,
    scale_of,
)
from woodfrog.engine.classifier_front import ClassifierFront, parse
from woodfrog.engine.kinds import Kind, kind_of
from woodfrog.engine.settings import load
from woodfrog.errors import InvalidArgument
from woodfrog.node_agent.vault.arena import Arena
from woodfrog.node_agent.vault.vault import Vault
from woodfrog.replica.weights import WeightMemory

SIMULATED = "tests.memory.simulated_gpu:SimulatedMemory"
VIT, RESNET = "ViTForImageClassification", "ResNetForImageClassification"
BERT, LLAMA = "BertForSequenceClassification", "LlamaForSequenceClassification"
PICTURES = [picture(seed, 20 + 7 * seed, 90 - 9 * seed) for seed in range(9)]
TEXTS = ["frog", "frog ice winter " * 20, "ice", "a b c d " * 12, *(letter for letter in "abcdefghij")]  # fmt: skip
WRONG_INPUTS: list[Any] = [None, 5, "", [], {}, True, [""], [5], [["a"]], [[1, 2]], [{"url": "a"}]]


def made(
    folder: Path, memory: str = "", weights: WeightMemory | None = None, graphs: Any = None
) -> Any:
    environ = {
        "WOODFROG_SOCKET": "unused",
        "WOODFROG_CONTROL": "unused",
        "WOODFROG_MODEL": str(folder),
        "WOODFROG_MODEL_NAME": "frog",
        "WOODFROG_DEVICE_MEMORY": memory,
        "WOODFROG_ENGINE_ARGS": '{"threads": 1}',
    }
    engine = engine_of(load(environ), weights)
    engine.graphs = graphs
    engine.load()
    return engine


def tiny(folder: Path, name: str) -> Path:
    if "Image" in name:
        return tiny_classifiers.of_pictures(folder, name)
    padding = {"pad_token_id": None} if name == LLAMA else {}
    return tiny_classifiers.of_texts(folder, name, **padding)


def inputs_of(engine: ClassifierEngine) -> list[str]:
    if isinstance(engine, TextClassifier):
        return TEXTS
    return [data_url(image) for image in PICTURES]


class Recorder:
    """Stands where graphs do, and notes the shapes that it would capture."""

    def __init__(self) -> None:
        self.shapes: list[tuple[str, ...]] = []

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        number = len(self.shapes)

        def call(*given: Any, **named: Any) -> Any:
            tensors = (*given, *named.values())
            self.shapes.append((str(number), *(str(tuple(each.shape)) for each in tensors)))
            return function(*given, **named)

        return call


async def classified(engine: ClassifierEngine, inputs: Sequence[str]) -> torch.Tensor:
    given, _ = await engine.read(inputs, ["input"] * len(inputs))
    return torch.tensor([json.loads(each) for each in await engine.classify(given, json.dumps)])


def expected(folder: Path, name: str) -> torch.Tensor:
    """Each input alone."""
    model = getattr(transformers, name).from_pretrained(folder, attn_implementation="eager")
    rows = []
    with torch.inference_mode():
        if "Image" in name:
            process = transformers.AutoImageProcessor.from_pretrained(folder)
            for image in PICTURES:
                rows.append(model(**process(image, return_tensors="pt")).logits[0])
        else:
            words = transformers.PreTrainedTokenizerFast(
                tokenizer_file=str(folder / "tokenizer.json")
            )
            for text in TEXTS:
                ids = words(text, truncation=False, padding=False, return_tensors="pt").input_ids
                rows.append(model(ids).logits[0])
    return torch.stack(rows).softmax(-1)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("name", [VIT, RESNET, BERT, LLAMA, "DistilBertForSequenceClassification"])
async def test_padding_changes_nothing(tmp_path: Path, name: str, graphs: bool) -> None:
    folder = tiny(tmp_path, name)
    engine = made(folder, graphs=Recorder() if graphs else None)
    scores = await classified(engine, inputs_of(engine))
    torch.testing.assert_close(scores, expected(folder, name), rtol=0, atol=2e-5)
    assert (scores[0] - scores[1]).abs().max() > 1e-3
    engine.stop()


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "JPEG"])
async def test_a_picture_of_any_form_is_what_pillow_reads(tmp_path: Path, form: str) -> None:
    from base64 import b64decode
    from io import BytesIO

    folder = tiny(tmp_path, VIT)
    engine = made(folder)
    url = data_url(PICTURES[3], form)
    image = Image.open(BytesIO(b64decode(url.partition(",")[2]))).convert("RGB")
    (found,) = await classified(engine, [url])
    process = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.ViTForImageClassification.from_pretrained(folder)
    with torch.inference_mode():
        wanted = model(**process(image, return_tensors="pt")).logits[0].softmax(-1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)
    engine.stop()


@pytest.mark.parametrize("name", [VIT, RESNET, BERT, LLAMA])
async def test_shared_memory_gives_the_same_and_so_does_a_park(tmp_path: Path, name: str) -> None:
    folder = tiny(tmp_path, name)
    vault = Vault(SimulatedDevice(), Arena(0, 1), 2)
    vault.load("w", folder, host=False)
    weights = WeightMemory()
    weights.give(vault.export("w")[0])
    on_cpu, engine = made(folder), made(folder, SIMULATED, weights)
    await engine.warm()
    scores = await classified(engine, inputs_of(engine))
    torch.testing.assert_close(scores, await classified(on_cpu, inputs_of(engine)), rtol=0, atol=1e-6)  # fmt: skip
    canaries = await engine.canary(), engine.brief_canary()
    assert canaries == (await on_cpu.canary(), on_cpu.brief_canary())
    engine.clear()
    engine.release()
    weights.detach()
    weights.give(vault.export("w")[0])
    engine.regain()
    assert torch.equal(await classified(engine, inputs_of(engine)), scores)
    assert canaries == (await engine.canary(), engine.brief_canary())
    engine.stop()
    on_cpu.stop()


@pytest.mark.parametrize(("name", "layers"), [(VIT, "vit.layers"), (BERT, "bert.encoder.layer")])  # fmt: skip
async def test_canaries_tell_other_weights(tmp_path: Path, name: str, layers: str) -> None:
    engine = made(tiny(tmp_path, name))
    full, brief = await engine.canary(), engine.brief_canary()
    model = engine._features.args[0]
    found = [module for path, module in model.named_modules() if path.startswith(layers)]
    last, second = (
        [m for m in found if isinstance(m, torch.nn.Linear)][place] for place in (-1, 2)
    )
    with torch.no_grad():
        last.weight.neg_()
    assert await engine.canary() != full
    assert engine.brief_canary() == brief  # of the first two layers
    with torch.no_grad():
        second.weight.neg_()
    assert engine.brief_canary() != brief
    engine.stop()


@pytest.mark.parametrize("name", [VIT, RESNET, BERT])
async def test_every_short_shape_is_captured_before_the_first_request(
    tmp_path: Path, name: str
) -> None:
    recorder = Recorder()
    engine = made(tiny(tmp_path, name), graphs=recorder)
    await engine.warm()
    warm = set(recorder.shapes)
    if name != BERT:
        assert {("0", str((rows, 3, SIDE, SIDE))) for rows in ROWS} <= warm
    inputs = inputs_of(engine)
    for count in (1, 2, len(inputs), 3 * len(inputs)):
        await classified(engine, (3 * inputs)[:count])
    await engine.canary()
    engine.brief_canary()
    assert set(recorder.shapes) == warm
    engine.stop()


@pytest.mark.parametrize("name", [VIT, BERT])
def test_it_can_be_described_before_it_has_loaded(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name]}))
    environ = {"WOODFROG_SOCKET": "u", "WOODFROG_CONTROL": "u", "WOODFROG_MODEL": str(tmp_path)}
    assert engine_of(load(environ), None).describe()["probe"]["path"] == "/v1/classify"


@pytest.mark.parametrize("name", [VIT, BERT])
async def test_the_probe_is_a_classify_request(tmp_path: Path, name: str) -> None:
    engine = made(tiny(tmp_path, name))
    probe = engine.describe()["probe"]
    assert probe["path"] in ClassifierFront(engine, SystemClock()).methods
    inputs, params = parse(probe["body"], 1)
    given, _ = await engine.read(inputs, params)
    assert len(await engine.classify(given, json.dumps)) == 1
    engine.stop()


async def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    engine = made(tiny(tmp_path, VIT))
    good = data_url(PICTURES[0])
    bomb = data_url(Image.new("1", (30_000, 1_000)))
    for bad in ("frog", "https://example.org/frog.png", good[:-40], bomb):
        inputs, params = parse({"input": [good, bad]}, PICTURES_MAX)
        with pytest.raises(InvalidArgument) as caught:
            await engine.read(inputs, params)
        assert caught.value.metadata["param"] == "input[1]"
    engine.stop()


async def test_texts_are_counted_and_never_cut(tmp_path: Path) -> None:
    engine = made(tiny(tmp_path, BERT))
    assert (await engine.read(["frog", "frog ice"], ["", ""]))[1] == 7
    with pytest.raises(InvalidArgument) as caught:
        await engine.read(["a " * CONTEXT_TOKENS], ["input"])
    assert caught.value.reason == "CONTEXT_LENGTH_EXCEEDED"
    engine.stop()


async def test_a_model_that_padding_confuses_is_refused(tmp_path: Path) -> None:
    folder = tiny_classifiers.of_texts(tmp_path, "FNetForSequenceClassification")
    engine = made(folder)
    with pytest.raises(InvalidArgument, match="what fills a batch up"):
        await engine.warm()
    engine.stop()


@pytest.mark.parametrize("name", ["BartForSequenceClassification", "T5ForSequenceClassification"])
def test_an_encoder_and_decoder_is_refused(tmp_path: Path, name: str) -> None:
    folder = tiny_classifiers.of_texts(
        tmp_path, name, d_model=8, encoder_layers=1, decoder_layers=1, d_ff=8, d_kv=4,
        encoder_attention_heads=1, decoder_attention_heads=1, encoder_ffn_dim=8, decoder_ffn_dim=8,
        num_heads=1, num_layers=1, eos_token_id=3, bos_token_id=2, decoder_start_token_id=2,
        forced_eos_token_id=3,
    )  # fmt: skip
    with pytest.raises(InvalidArgument, match=f"a {name}, which"):
        made(folder)


def test_pictures_of_sizes_of_their_own_are_refused(tmp_path: Path) -> None:
    folder = tiny_classifiers.of_pictures(tmp_path, do_resize=False)
    with pytest.raises(InvalidArgument, match="a size of its own"):
        made(folder)


@pytest.mark.parametrize("text", [None, '{"image_processor_type": "OfMyOwn"}', "{", "[1]"])
def test_an_unknown_processor_is_refused(tmp_path: Path, text: str | None) -> None:
    folder = tiny(tmp_path, RESNET)
    file = folder / "preprocessor_config.json"
    file.unlink()
    if text is not None:
        file.write_text(text)
    with pytest.raises(InvalidArgument) as caught:
        made(folder)
    assert caught.value.reason == "UNKNOWN_PROCESSOR"


def test_a_model_without_classes_is_refused(tmp_path: Path) -> None:
    folder = tiny(tmp_path, VIT)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {}, "label2id": {}}))
    with pytest.raises(InvalidArgument, match="names no classes"):
        made(folder)


def test_code_beside_a_processor_is_not_run(tmp_path: Path) -> None:
    folder = tiny_classifiers.of_pictures(
        tmp_path, image_processor_type=None, auto_map={"AutoImageProcessor": "code.Mine"}
    )
    (folder / "code.py").write_text("raise SystemExit('was run')\n")
    made(folder).stop()


@pytest.mark.parametrize(
    ("config", "scores"),
    [
        ({}, [0.1192, 0.8808]),
        ({"problem_type": "single_label_classification"}, [0.1192, 0.8808]),
        ({"problem_type": "multi_label_classification"}, [0.2689, 0.7311]),
        ({"problem_type": "regression"}, [-1.0, 1.0]),
        ({"num_labels": 1}, [0.2689, 0.7311]),
    ],
)
def test_scores_are_what_the_model_was_trained_for(
    config: dict[str, Any], scores: list[float]
) -> None:
    scale = scale_of(transformers.BertConfig(**config))
    assert scale(torch.tensor([[-1.0, 1.0]]))[0].tolist() == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize(
    ("names", "kind", "engine"),
    [
        ([VIT], Kind.CLASSIFIER, PictureClassifier),
        ([LLAMA], Kind.CLASSIFIER, TextClassifier),
        (["ViTModel"], Kind.EMBEDDINGS, None),
    ],
)
def test_the_kind_follows_from_the_folder(
    tmp_path: Path, names: list[str], kind: Kind, engine: Any
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": names}))
    assert kind_of(tmp_path) is kind
    environ = {"WOODFROG_SOCKET": "u", "WOODFROG_CONTROL": "u", "WOODFROG_MODEL": str(tmp_path)}
    if engine is not None:
        assert type(engine_of(load(environ), None)) is engine


@pytest.mark.parametrize(
    ("value", "inputs", "params"),
    [
        ("a", ["a"], ["input"]),
        (["a", "b"], ["a", "b"], ["input[0]", "input[1]"]),
    ],
)
def test_inputs_of_all_forms(value: Any, inputs: list[str], params: list[str]) -> None:
    assert parse({"input": value, "user": 5, "softmax": True}, 2) == (inputs, params)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        *(({"input": wrong}, "input") for wrong in WRONG_INPUTS),
        ({"input": ["a", 5]}, "input[1]"),
        ({"input": ["a"] * 5}, "input"),
        ({"input": "a", "softmax": False}, "softmax"),
        ({"input": "a", "use_activation": False}, "use_activation"),
        ({"input": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"input": "a", "add_special_tokens": False}, "add_special_tokens"),
    ],
)
def test_what_cannot_be_meant_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(body, 4)
    assert caught.value.metadata["param"].startswith(param)
