"""What is chosen from numbers that are none, or none that JSON knows."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.memory import tiny_texts

from woodfrog.engine.engine import TextEngine
from woodfrog.engine.request import GREEDY, Sampling
from woodfrog.engine.sampling import PerRequestSampling, Sampler
from woodfrog.engine.settings import load
from woodfrog.errors import Internal

WAYS = [GREEDY, Sampling(temperature=0.0, logprobs=3), Sampling(), Sampling(top_k=3, top_p=0.5)]


@pytest.mark.parametrize("sampling", WAYS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_answer_fails_and_its_company_goes_on(sampling: Sampling, value: float) -> None:
    samplers = [Sampler(sampling, [1]), Sampler(GREEDY, [1])]
    scores = torch.arange(10.0).repeat(2, 1)
    scores[0, 3] = value
    processor = PerRequestSampling()
    states = [SimpleNamespace(logit_processor_kwargs={"sampler": each}) for each in samplers]
    tensor = processor.prepare_tensor_args([SimpleNamespace(state=state) for state in states])
    assert int(processor(scores, tensor)[1].argmax()) == 9
    with pytest.raises(Internal, match="overflowed"):
        samplers[0].check()
    samplers[1].check()


def test_words_that_cannot_be_have_a_logarithm_in_json() -> None:
    logits = torch.full((8,), -torch.inf)
    logits[2] = 1.0
    sampler = Sampler(Sampling(logprobs=3), [1])
    assert sampler.choose(logits) == 2
    sampler.check()
    (entry,) = sampler.logprobs
    assert entry.top[0] == (2, 0.0)
    assert [value for _, value in entry.top[1:]] == [-9999.0] * 2
    json.dumps(entry.top, allow_nan=False)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    folder = tiny_texts.make(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.ln_f.weight"].fill_(torch.nan)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    environ = {
        "WOODFROG_SOCKET": "/nowhere", "WOODFROG_CONTROL": "/nowhere", "WOODFROG_MODEL": str(folder),
    }  # fmt: skip
    engine = TextEngine(load(environ))
    engine.load()
    try:
        with pytest.raises(Internal, match="overflowed"):
            asyncio.run(engine.warm())
    finally:
        engine.stop()
