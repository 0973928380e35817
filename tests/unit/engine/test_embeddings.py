"""Embeddings by tiny models, against Transformers itself without padding."""

import asyncio
import json
import struct
import threading
from base64 import b64decode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tests.memory import tiny_encoders
from tests.memory.simulated_gpu import SimulatedDevice
from tests.memory.tiny_encoders import CONTEXT_TOKENS, SIZE, WORDS

from woodfrog.clock import SystemClock
from woodfrog.engine.batches import ROWS, plan
from woodfrog.engine.embeddings import EmbeddingsEngine, Pooling, pooling_of
from woodfrog.engine.embeddings_front import INPUTS_MAX, EmbeddingsFront, parse
from woodfrog.engine.kinds import Kind, kind_of
from woodfrog.engine.settings import load
from woodfrog.engine.texts import CAPTURED_LENGTH_MAX, LENGTH_MIN, padded_length
from woodfrog.errors import InvalidArgument
from woodfrog.node_agent.vault.arena import Arena
from woodfrog.node_agent.vault.vault import Vault
from woodfrog.replica.weights import WeightMemory

SIMULATED = "tests.memory.simulated_gpu:SimulatedMemory"
# Lengths on both sides of the padded ones, and more than one batch.
TEXTS = [[4 + (n * k) % 29 for k in range(length)] for n, length in enumerate([1, 31, 32, 33, 64, 65, 160, 5, 5, 5])]  # fmt: skip
WRONG_INPUTS: list[Any] = [None, 5, "", [], {}, [""], ["a", ""], [[]], [[1], []], ["a", [1]], ["a", 1], [True], [1.0], [[["a"]]]]  # fmt: skip
WRONG_DIMENSIONS: list[Any] = [0, -1, 9, 2.0, "2", True]
MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


def engine_of(
    folder: Path, memory: str = "", weights: WeightMemory | None = None, graphs: Any = None
) -> EmbeddingsEngine:
    engine = EmbeddingsEngine(
        load(
            {
                "WOODFROG_SOCKET": "unused",
                "WOODFROG_CONTROL": "unused",
                "WOODFROG_MODEL": str(folder),
                "WOODFROG_MODEL_NAME": "frog",
                "WOODFROG_DEVICE_MEMORY": memory,
                "WOODFROG_ENGINE_ARGS": '{"threads": 1}',
            }
        ),
        weights,
    )
    engine.graphs = graphs
    engine.load()
    return engine


class Recorder:
    """Stands where graphs do, and notes the shapes that it would capture."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int]] = []

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(ids: Any, mask: Any) -> Any:
            self.shapes.append(tuple(ids.shape))
            return function(ids, mask)

        return call


async def embedded(engine: EmbeddingsEngine, texts: Sequence[list[int]]) -> torch.Tensor:
    return torch.tensor(await engine.embed(texts, list))


def expected(folder: Path, pooling: Pooling) -> torch.Tensor:
    """Each text alone."""
    names = json.loads((folder / "config.json").read_text())["architectures"]
    model = getattr(transformers, names[0]).from_pretrained(folder, attn_implementation="eager")
    rows = []
    with torch.inference_mode():
        for text in TEXTS:
            hidden = model(torch.tensor([text])).last_hidden_state[0]
            pooled = {
                Pooling.MEAN: hidden.mean(0), Pooling.FIRST: hidden[0], Pooling.LAST: hidden[-1]
            }[pooling]  # fmt: skip
            rows.append(pooled / pooled.norm())
    return torch.stack(rows)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize(
    ("name", "file", "pooling"),
    [
        ("BertModel", None, Pooling.MEAN),
        ("BertModel", {"pooling_mode": "cls"}, Pooling.FIRST),
        ("LlamaModel", None, Pooling.LAST),
        ("LlamaModel", MEAN, Pooling.MEAN),
    ],
)
async def test_padding_changes_nothing(
    tmp_path: Path, name: str, file: dict[str, Any] | None, pooling: Pooling, graphs: bool
) -> None:
    folder = tiny_encoders.make(tmp_path, name, file)
    engine = engine_of(folder, graphs=Recorder() if graphs else None)
    vectors = await embedded(engine, TEXTS)
    torch.testing.assert_close(vectors, expected(folder, pooling), rtol=0, atol=2e-5)
    assert (vectors[0] - vectors[1]).abs().max() > 0.05
    engine.stop()


async def test_a_roberta_counts_its_positions_from_its_padding_on(tmp_path: Path) -> None:
    engine = engine_of(tiny_encoders.make(tmp_path, "RobertaModel"))
    assert engine.limits.context_tokens == CONTEXT_TOKENS - 1
    (vector,) = await embedded(engine, [[4] * engine.limits.context_tokens])
    assert abs(float(vector.norm()) - 1) < 1e-5
    engine.stop()


@pytest.mark.parametrize("name", ["BertModel", "LlamaModel"])
async def test_shared_memory_gives_the_same_and_so_does_a_park(tmp_path: Path, name: str) -> None:
    folder = tiny_encoders.make(tmp_path, name)
    vault = Vault(SimulatedDevice(), Arena(0, 1), 2)
    vault.load("w", folder, host=False)
    weights = WeightMemory()
    weights.give(vault.export("w")[0])
    on_cpu, engine = engine_of(folder), engine_of(folder, SIMULATED, weights)
    await engine.warm()
    assert all(weights.holds(parameter) for parameter in engine._encode._model.parameters())
    vectors = await embedded(engine, TEXTS)
    torch.testing.assert_close(vectors, await embedded(on_cpu, TEXTS), rtol=0, atol=1e-6)
    canaries = await engine.canary(), engine.brief_canary()
    assert canaries == (await on_cpu.canary(), on_cpu.brief_canary())
    engine.clear()
    engine.release()
    weights.detach()
    weights.give(vault.export("w")[0])
    engine.regain()
    assert torch.equal(await embedded(engine, TEXTS), vectors)
    assert canaries == (await engine.canary(), engine.brief_canary())
    engine.stop()
    on_cpu.stop()


async def test_canaries_tell_other_weights(tmp_path: Path) -> None:
    engine = engine_of(tiny_encoders.make(tmp_path))
    full, brief = await engine.canary(), engine.brief_canary()
    layers = engine._encode._model.encoder.layer
    with torch.no_grad():
        layers[2].output.dense.weight.neg_()
    assert await engine.canary() != full
    assert engine.brief_canary() == brief  # of the first two
    with torch.no_grad():
        layers[1].output.dense.weight.neg_()
    assert engine.brief_canary() != brief
    engine.stop()


async def test_every_short_shape_is_captured_before_the_first_request(tmp_path: Path) -> None:
    recorder = Recorder()
    engine = engine_of(tiny_encoders.make(tmp_path), graphs=recorder)
    await engine.warm()
    warm = set(recorder.shapes)
    lengths = (32, 64, 128, CONTEXT_TOKENS)
    brief = (1, engine._canary_ids.shape[1])
    assert warm == {(rows, length) for rows in ROWS for length in lengths} | {brief}
    await embedded(engine, [*TEXTS, *TEXTS, *TEXTS])
    engine.brief_canary()
    assert set(recorder.shapes) == warm
    engine.stop()


@given(
    st.lists(st.integers(1, 4096), min_size=1, max_size=80), st.integers(64, 20000), st.booleans()
)
def test_a_plan_holds_every_text_once(lengths: list[int], tokens_max: int, padded: bool) -> None:
    rounded = [padded_length(length, 4096) for length in lengths]
    assert all(length <= longer < max(2 * length, LENGTH_MIN + 1) for length, longer in zip(lengths, rounded, strict=True))  # fmt: skip
    batches = plan(rounded, tokens_max, padded=padded)
    assert sorted(text for batch in batches for text in batch.members) == list(range(len(lengths)))
    for batch in batches:
        assert {rounded[text] for text in batch.members} == {batch.length}
        assert len(batch.members) <= batch.rows <= 3 * len(batch.members)
        assert batch.rows == 1 or batch.rows * batch.length <= tokens_max
        assert batch.rows in ROWS if padded else batch.rows == len(batch.members) <= ROWS[-1]


def test_there_are_no_more_shapes_than_graphs_are_kept() -> None:
    from woodfrog.engine.graphed import SHAPES_MAX

    lengths = {padded_length(count, 8192) for count in range(1, CAPTURED_LENGTH_MAX + 1)}
    assert len(lengths) * len(ROWS) <= SHAPES_MAX


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, Pooling.FIRST),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, Pooling.LAST),
        ({"pooling_mode": "mean"}, Pooling.MEAN),
    ],
)
def test_pooling_is_read_from_its_file(
    tmp_path: Path, config: dict[str, Any], pooling: Pooling
) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert pooling_of(tmp_path, decoder=True) is pooling
    assert pooling_of(tmp_path, decoder=False) is pooling


@pytest.mark.parametrize(
    ("modules", "config", "words"),
    [
        (None, {"pooling_mode_max_tokens": True}, "max_tokens"),
        (None, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "and"),
        (["Transformer", "Pooling", "Dense"], MEAN, "Dense"),
        (["Transformer", "Pooling"], None, "lacks 1_Pooling"),
    ],
)
def test_a_pooling_that_is_not_known_is_refused(
    tmp_path: Path, modules: list[str] | None, config: dict[str, Any] | None, words: str
) -> None:
    if config is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    if modules is not None:
        entries = [
            {"type": f"sentence_transformers.models.{name}", "path": f"{number}_{name}"}
            for number, name in enumerate(modules)
        ]
        (tmp_path / "modules.json").write_text(json.dumps(entries))
    with pytest.raises(InvalidArgument, match=words) as caught:
        pooling_of(tmp_path, decoder=False)
    assert caught.value.reason == "UNKNOWN_POOLING"


@pytest.mark.parametrize("name", ["T5Model", "CLIPVisionModel"])
def test_a_model_without_hidden_states_of_a_text_is_refused(tmp_path: Path, name: str) -> None:
    kind = getattr(transformers, name)
    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "image_size": 32} if "CLIP" in name else {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_heads": 1, "vocab_size": 8}  # fmt: skip
    kind(kind.config_class(**small, num_hidden_layers=1)).save_pretrained(tmp_path)
    with pytest.raises(InvalidArgument, match=f"a {name}, which"):
        engine_of(tmp_path)


def test_the_probe_is_an_embeddings_request(tmp_path: Path) -> None:
    engine = engine_of(tiny_encoders.make(tmp_path))
    probe = engine.describe()["probe"]
    assert probe["path"] in EmbeddingsFront(engine, SystemClock()).methods
    assert parse(probe["body"], SIZE).inputs == ["a b c"]
    engine.stop()


async def test_texts_become_whole_tokens_or_are_refused(tmp_path: Path) -> None:
    engine = engine_of(tiny_encoders.make(tmp_path))
    front = EmbeddingsFront(engine, SystemClock())
    longest = " ".join("a" * (CONTEXT_TOKENS - 2))
    words = [WORDS.index(word) for word in ("[CLS]", "frog", "ice", "[SEP]")]
    request = parse({"input": ["frog ice", longest]}, SIZE)
    texts = front._texts(request)
    assert texts[0] == words
    assert len(texts[1]) == CONTEXT_TOKENS
    for given_, reason in [
        (longest + " a", "CONTEXT_LENGTH_EXCEEDED"),
        ([4] * (CONTEXT_TOKENS + 1), "CONTEXT_LENGTH_EXCEEDED"),
        ([len(WORDS)], "INVALID_VALUE"),
        ([-1], "INVALID_VALUE"),
        ([[4] * CONTEXT_TOKENS] * 1876, "MAX_TOKENS_PER_REQUEST"),
    ]:
        with pytest.raises(InvalidArgument) as caught:
            front._texts(parse({"input": given_}, SIZE))
        assert caught.value.reason == reason
        assert caught.value.metadata["param"] == "input"
    engine.stop()


@pytest.mark.parametrize(
    ("value", "inputs"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_inputs_of_all_forms(value: Any, inputs: Any) -> None:
    request = parse({"input": value, "user": 5, "colour": "green"}, 8)
    assert (request.inputs, request.base64, request.dimensions) == (inputs, False, 8)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        *(({"input": wrong}, "input") for wrong in WRONG_INPUTS),
        ({"input": ["a"] * (INPUTS_MAX + 1)}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "encoding_format": []}, "encoding_format"),
        *(({"input": "a", "dimensions": wrong}, "dimensions") for wrong in WRONG_DIMENSIONS),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(body, 8)
    assert caught.value.metadata["param"] == param


def test_forms_of_a_vector() -> None:
    vector = [0.48, 0.64, 0.6, 0.0]
    body = {"input": "a"}
    assert json.loads(parse(body, 4).render(vector)) == vector
    short = json.loads(parse({**body, "dimensions": 2}, 4).render(vector))
    assert short == pytest.approx([0.6, 0.8])
    text = json.loads(parse({**body, "encoding_format": "base64"}, 4).render(vector))
    assert struct.unpack("<4f", b64decode(text)) == pytest.approx(vector)
    assert json.loads(parse({**body, "dimensions": 1}, 4).render([0.0, 1.0])) == [0.0]


async def test_drained_means_that_nothing_computes(tmp_path: Path) -> None:
    engine = engine_of(tiny_encoders.make(tmp_path))

    async def no_connections() -> None:
        pass

    engine.close_connections = no_connections
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> bool:
        begun.set()
        return go_on.wait(30)

    work = asyncio.ensure_future(engine.compute(wait))
    while not begun.is_set():
        await asyncio.sleep(0)
    work.cancel()
    draining = asyncio.ensure_future(engine.drain())
    done, _ = await asyncio.wait({draining}, timeout=0.05)
    assert not done
    go_on.set()
    await asyncio.wait_for(draining, 30)
    engine.stop()


@pytest.mark.parametrize("memory", ["", SIMULATED])
async def test_a_text_model_of_sentence_transformers_gives_embeddings(
    tmp_path: Path, memory: str
) -> None:
    """Published folders name the class that writes text; what counts is what it computes before its words."""
    folder = tiny_encoders.make(tmp_path / "m", "LlamaForCausalLM")
    assert kind_of(folder) is Kind.TEXT
    (folder / "modules.json").write_text("[]")
    assert kind_of(folder) is Kind.EMBEDDINGS
    weights = None
    if memory:
        vault = Vault(SimulatedDevice(), Arena(0, 1), 2)
        vault.load("w", folder, host=False)
        weights = WeightMemory()
        weights.give(vault.export("w")[0])
    engine = engine_of(folder, memory, weights)
    model = transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager").model
    with torch.inference_mode():
        last = model(torch.tensor([TEXTS[3]])).last_hidden_state[0, -1]
    found = await embedded(engine, [TEXTS[3]])
    assert torch.allclose(found[0], last / last.norm(), atol=1e-5)
    engine.stop()
