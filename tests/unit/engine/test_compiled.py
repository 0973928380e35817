"""Layers that inductor compiles: the same tokens, one compilation for all batches, and nothing left of the compiler."""

import asyncio
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.memory.simulated_gpu import SimulatedDevice, SimulatedMemory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the compiler is slow on a slow machine
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch._dynamo.utils import counters  # noqa: E402

from woodfrog.engine import compiled  # noqa: E402
from woodfrog.engine.__main__ import _engine  # noqa: E402
from woodfrog.engine.batching import Batcher  # noqa: E402
from woodfrog.engine.brief import BriefCanary  # noqa: E402
from woodfrog.engine.loading import load_model, load_onto  # noqa: E402
from woodfrog.engine.request import GREEDY  # noqa: E402
from woodfrog.engine.sampling import Sampler  # noqa: E402
from woodfrog.engine.settings import EngineArguments, Settings  # noqa: E402
from woodfrog.errors import FailedPrecondition, InvalidArgument  # noqa: E402
from woodfrog.node_agent.vault.arena import Arena  # noqa: E402
from woodfrog.node_agent.vault.vault import Vault  # noqa: E402
from woodfrog.replica import layout  # noqa: E402
from woodfrog.replica.weights import WeightMemory  # noqa: E402

WORDS = 97
LAYERS = 12  # more than dynamo would compile one by one
TOKENS = 10
DEADLINE_S = 180.0
_SHAPE = {
    "vocab_size": WORDS, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip


@dataclass
class Compiled:
    folder: Path
    batcher: Batcher
    brief: BriefCanary
    graphs: int  # of the batching manager that were compiled at the start
    left: tuple[set[str], set[str]]  # child processes and threads that there were not before


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compiled]:
    """With weights in memory of the vault's, as a GPU has them."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(5)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SHAPE)).save_pretrained(folder)
    vault = Vault(SimulatedDevice(), Arena(0, 1), 2)
    vault.load("w", folder, host=False)
    weights, memory = WeightMemory(), SimulatedMemory()
    weights.give(vault.export("w")[0])
    weights.open(memory, layout.of_folder(folder), 1.0)
    model = load_onto(folder, memory, weights)
    before = children(), threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("cache")))
        compiled.prepare()
    brief = BriefCanary(model, prompt(7))
    brief.compile()
    counted = counters["stats"]["unique_graphs"]
    batcher = Batcher(model, [1], EngineArguments(256, slots=4, threads=1, compile=1), memory)
    graphs = counters["stats"]["unique_graphs"] - counted
    left = children() - before[0], threads() - before[1]
    batcher.start()
    yield Compiled(folder, batcher, brief, graphs, left)
    batcher.stop()
    torch.compiler.set_stance("default")


def prompt(length: int) -> list[int]:
    return [2 + 7 * n * (1 + length) % 90 for n in range(length)]


def children() -> set[str]:
    tasks = Path("/proc/self/task").iterdir()
    return {pid for task in tasks for pid in (task / "children").read_text().split()}


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def expected(model: Any, tokens: list[int]) -> list[int]:
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([tokens]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=-1
        )
    return [int(token) for token in output[0][len(tokens) :]]


async def answered(batcher: Batcher, tokens: list[int]) -> list[int]:
    async with asyncio.timeout(DEADLINE_S):
        generation = batcher.submit(tokens, Sampler(GREEDY, tokens), TOKENS, ignore_eos=True)
        return [token async for new in generation.tokens() for token in new]


async def test_same_tokens_and_nothing_is_compiled_for_them(started: Compiled) -> None:
    model = load_model(started.folder)
    lengths = (1, 2, 3, 8, 9, 31, 64, 200)
    wanted = {length: expected(model, prompt(length)) for length in lengths}
    assert len({token for tokens in wanted.values() for token in tokens}) > TOKENS
    before = {name: dict(count) for name, count in counters.items()}
    for length in lengths:
        assert await answered(started.batcher, prompt(length)) == wanted[length], length
    for together in (lengths[:4], lengths[2:7], lengths):
        found = await asyncio.gather(*(answered(started.batcher, prompt(n)) for n in together))
        assert found == [wanted[length] for length in together]
    assert {name: dict(count) for name, count in counters.items()} == before


async def test_compiled_code_is_what_runs(started: Compiled) -> None:
    """Were its guards to refuse a batch, the layers would run as they are written, and nobody would see it."""
    torch.compiler.set_stance("fail_on_recompile")
    try:
        for length in (1, 2, 5, 100, 230):
            assert len(await answered(started.batcher, prompt(length))) == TOKENS
    finally:
        torch.compiler.set_stance("eager_on_recompile")


def test_all_layers_are_one_compilation(started: Compiled) -> None:
    assert (
        started.graphs <= 6
    )  # a layer, the last norm, the tables: with tokens from the cache and without


def test_nothing_is_left_of_the_compiler(started: Compiled) -> None:
    assert started.left == (set(), set())


async def test_memory_goes_and_comes_back(started: Compiled) -> None:
    batcher = started.batcher
    before = await answered(batcher, prompt(40))
    batcher.clear()
    batcher.release()
    batcher.regain()
    assert await answered(batcher, prompt(40)) == before


def test_the_brief_canary_says_what_it_says_without(started: Compiled) -> None:
    assert started.brief.tokens() == BriefCanary(load_model(started.folder), prompt(7)).tokens()


def test_without_a_compiler_the_start_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(FailedPrecondition, match=r"lacks a C\+\+ compiler .* without --compile"):
        compiled.prepare()


def test_a_model_without_layers_is_refused(started: Compiled) -> None:
    model = load_model(started.folder)
    model.config.num_hidden_layers = LAYERS + 1
    with pytest.raises(InvalidArgument, match="no list of 13 layers"):
        compiled.regions_of(model)


def test_it_is_for_models_that_write_text(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaModel"]}')
    where = Path("/nowhere")
    settings = Settings(where, where, tmp_path, "m", EngineArguments(compile=1))
    with pytest.raises(InvalidArgument, match="of kind embeddings; add it without --compile"):
        _engine(settings, None)
