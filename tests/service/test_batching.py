"""The batching manager with the real model: the same tokens as Transformers' own `generate`, and memory that goes."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.capabilities import MODEL, need

pytestmark = need("model")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from woodfrog.engine.batching import Batcher, Generation  # noqa: E402
from woodfrog.engine.loading import eos_tokens, load_model, prepare  # noqa: E402
from woodfrog.engine.request import GREEDY, Sampling  # noqa: E402
from woodfrog.engine.sampling import Sampler  # noqa: E402
from woodfrog.engine.settings import EngineArguments  # noqa: E402
from woodfrog.engine.tokenizer import Tokenizer  # noqa: E402
from woodfrog.errors import InvalidArgument, Unavailable  # noqa: E402

DEADLINE_S = 180.0
ARGUMENTS = EngineArguments(context_tokens=1024, slots=3, threads=1)


@pytest.fixture(scope="module")
def model() -> Any:
    prepare(threads=1)
    return load_model(MODEL)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(MODEL)


@pytest.fixture
async def batcher(model: Any) -> AsyncIterator[Batcher]:
    batcher = Batcher(model, eos_tokens(MODEL, model), ARGUMENTS)
    batcher.start()
    yield batcher
    batcher.stop()


async def collect(generation: Generation) -> list[int]:
    async with asyncio.timeout(DEADLINE_S):
        return [token async for tokens in generation.tokens() for token in tokens]


def generate(model: Any, prompt: list[int], count: int) -> list[int]:
    with torch.inference_mode():
        output = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False)
    return [int(token) for token in output[0][len(prompt) :]]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Once upon a time, there was a frog who", 12),
        (" frog" * 600, 3),  # read in three parts
        ("a", 3),
    ],
)
async def test_greedy_alone_is_what_generate_says(
    model: Any, tokenizer: Tokenizer, batcher: Batcher, text: str, count: int
) -> None:
    prompt = tokenizer.encode(text)
    expected = generate(model, prompt, count)
    assert await collect(batcher.submit(prompt, Sampler(GREEDY, prompt), count)) == expected
    # ... and when the choice is ours rather than the manager's.
    ours = Sampler(Sampling(temperature=0.0, logprobs=1), prompt)
    assert await collect(batcher.submit(prompt, ours, count)) == expected
    assert [entry.token for entry in ours.logprobs] == expected


async def test_eos_ends_a_sequence_unless_it_is_ignored(
    tokenizer: Tokenizer, batcher: Batcher
) -> None:
    prompt = tokenizer.encode("a b c")
    (eos,) = batcher.eos
    always = Sampling(temperature=0.0, logit_bias={eos: 100.0})
    assert await collect(batcher.submit(prompt, Sampler(always, prompt), 3)) == [eos]
    ignoring = batcher.submit(prompt, Sampler(always, prompt), 3, ignore_eos=True)
    assert await collect(ignoring) == [eos] * 3


async def test_a_cancelled_sequence_makes_room_and_says_nothing_more(
    tokenizer: Tokenizer, batcher: Batcher
) -> None:
    prompt = tokenizer.encode("a b c")
    endless = batcher.submit(prompt, Sampler(GREEDY, prompt), 900, ignore_eos=True)
    async with asyncio.timeout(DEADLINE_S):
        await anext(endless.tokens())
    endless.cancel()
    endless.cancel()
    assert len(await collect(batcher.submit(prompt, Sampler(GREEDY, prompt), 2))) == 2
    scheduler = batcher._manager.batch_processor.scheduler
    assert not scheduler.has_pending_requests()
    assert not batcher._manager.output_router.result_handlers


async def test_memory_reads_as_zero_goes_and_comes_back(
    tokenizer: Tokenizer, batcher: Batcher
) -> None:
    prompt = tokenizer.encode("Once upon a time")
    cache = batcher._manager.batch_processor.cache.cache_tensor
    before = await collect(batcher.submit(prompt, Sampler(GREEDY, prompt), 4))
    assert cache.count_nonzero() > 0
    batcher.clear()
    assert cache.count_nonzero() == 0
    batcher.release()
    batcher.regain()
    assert await collect(batcher.submit(prompt, Sampler(GREEDY, prompt), 4)) == before
    assert batcher.kv_bytes >= cache.nbytes


class _Poison(Sampler):
    def choose(self, logits: Any) -> int | None:
        raise RuntimeError("poisoned")


async def test_a_dead_thread_is_told_to_all(tokenizer: Tokenizer, batcher: Batcher) -> None:
    prompt = tokenizer.encode("a b c")
    waiting = batcher.submit(prompt, Sampler(GREEDY, prompt), 900, ignore_eos=True)
    assert batcher.failure() is None
    poisoned = batcher.submit(prompt, _Poison(GREEDY, prompt), 3)
    for generation in (poisoned, waiting):
        with pytest.raises(Unavailable) as refusal:
            await collect(generation)
        assert refusal.value.reason == "ENGINE_FAILED"
    async with asyncio.timeout(DEADLINE_S):
        while batcher.failure() is None:
            await asyncio.sleep(0.01)
    assert "poisoned" in (batcher.failure() or "")
    with pytest.raises(Unavailable):
        batcher.submit(prompt, Sampler(GREEDY, prompt), 1)


def logits(*values: float) -> Any:
    return torch.tensor(values, dtype=torch.float32)


def test_penalties_count_what_was_said() -> None:
    sampler = Sampler(Sampling(temperature=0.0, frequency_penalty=0.5), [])
    # 2.0 loses 0.5 at each use: three uses bring it below 1.0.
    assert [sampler.choose(logits(0.0, 2.0, 0.9)) for _ in range(4)] == [1, 1, 1, 2]
    once = Sampler(Sampling(temperature=0.0, presence_penalty=0.5), [])
    assert [once.choose(logits(0.0, 2.0, 1.4)) for _ in range(4)] == [1, 1, 1, 1]
    prompt = Sampler(Sampling(temperature=0.0, repetition_penalty=2.0), [1])
    assert [prompt.choose(logits(-3.0, 2.0, 1.5)) for _ in range(2)] == [2, 1]


def test_top_k_and_top_p_leave_only_the_likeliest() -> None:
    even = torch.zeros(1000)
    even[7], even[9] = 8.0, 7.9
    for sampling in (Sampling(top_k=2), Sampling(top_p=0.5), Sampling(top_k=500, top_p=0.6)):
        sampler = Sampler(sampling, [])
        assert {sampler.choose(even) for _ in range(40)} <= {7, 9}
    # Nucleus of a flat distribution: wider than the first look at the likeliest.
    drawn = Sampler(Sampling(top_p=0.9), [])
    assert len({drawn.choose(torch.zeros(1000)) for _ in range(60)}) > 20


def test_seeds_repeat_and_streams_of_one_seed_differ() -> None:
    def draw(seed: int | None, stream: int = 0) -> list[int | None]:
        sampler = Sampler(Sampling(seed=seed), [], stream)
        return [sampler.choose(torch.zeros(1000)) for _ in range(8)]

    assert draw(3) == draw(3)
    assert draw(-1) == draw(-1)
    assert len({tuple(draw(3)), tuple(draw(3, 1)), tuple(draw(4, 7)), tuple(draw(None))}) == 4


def test_sampling_follows_the_distribution() -> None:
    sampler = Sampler(Sampling(seed=1), [])
    share = sum(sampler.choose(logits(0.0, 1.0986)) == 1 for _ in range(2000)) / 2000
    assert 0.70 < share < 0.80  # e^1.0986 to 1 is 3 to 1


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Frog"]}))
    with pytest.raises(InvalidArgument, match="Frog"):
        load_model(tmp_path)


def test_bytes_of_tokens_are_their_own(tokenizer: Tokenizer) -> None:
    text = "Über 🐸\n"
    tokens = tokenizer.encode(text)
    assert b"".join(map(tokenizer.bytes_of, tokens)) == text.encode()
    assert tokenizer.bytes_of(2) == b"<|im_end|>"


def test_templates_are_those_of_transformers(tokenizer: Tokenizer) -> None:
    from transformers import AutoTokenizer

    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    theirs = AutoTokenizer.from_pretrained(MODEL).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert tokenizer.encode_chat(messages) == theirs
