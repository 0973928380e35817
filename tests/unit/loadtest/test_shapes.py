import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from loadtest import shapes
from loadtest.random_weights import Tensor, tensors_of, write_weights
from loadtest.shapes import SHAPES
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from woodfrog.engine.loading import load_model
from woodfrog.engine.quantized import layers_of

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
EOS = len(LETTERS)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Byte-level, with the 256 letters and an end of text."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = {word: token for token, word in enumerate([*LETTERS, "<end>"])}
    made = Tokenizer(models.BPE(words, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama-tiny"
    size = shapes.make("llama-tiny", folder, tokenizer)
    assert size == sum(tensor.nbytes for tensor in _weights(folder).values())
    return folder


def _weights(folder: Path) -> dict[str, Any]:
    return dict(load_file(folder / "model.safetensors"))


def test_transformers_finds_every_weight_and_computes_with_them(tiny: Path) -> None:
    model, found = transformers.AutoModelForCausalLM.from_pretrained(tiny, output_loading_info=True)
    assert {what: len(keys) for what, keys in found.items()} == dict.fromkeys(found, 0)
    assert {"missing_keys", "unexpected_keys", "mismatched_keys"} <= set(found)
    assert model.dtype == torch.bfloat16
    logits = model(torch.arange(16)[None]).logits
    assert logits.isfinite().all()
    assert logits.std() > 0.01


@pytest.mark.parametrize("name", ["llama-quantized-tiny", "llama-fp8-tiny"])
def test_quantized_weights_are_small_and_normal_times_their_scales(
    tmp_path: Path, tokenizer: Path, name: str
) -> None:
    size = shapes.make(name, tmp_path, tokenizer)
    assert size == sum(tensor.nbytes for tensor in _weights(tmp_path).values())
    model = load_model(tmp_path)
    unpacked = {name: layer.unpacked().float() for name, layer in layers_of(model).items()}
    assert len(unpacked) == 2 * 7
    for name, weights in unpacked.items():
        assert weights.std().item() == pytest.approx(0.02, rel=0.15), name
        assert abs(weights.mean().item()) < 0.001, name
    gates = [weights.flatten() for name, weights in unpacked.items() if "gate" in name]
    assert torch.corrcoef(torch.stack(gates))[0, 1].abs() < 0.02
    scales = [v for name, v in _weights(tmp_path).items() if name.endswith("_scale")]
    assert all(len(scale.unique()) > 20 for scale in scales)
    with torch.inference_mode():
        logits = model(torch.arange(16)[None]).logits
    assert logits.isfinite().all()
    assert logits.std() > 0.01


def test_the_same_name_gives_the_same_bytes(tiny: Path, tmp_path: Path, tokenizer: Path) -> None:
    shapes.make("llama-tiny", tmp_path / "again", tokenizer)
    names = {path.name for path in tiny.iterdir()}
    assert names == {path.name for path in (tmp_path / "again").iterdir()}
    assert all(
        (tiny / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names
    )


def test_weights_are_small_and_normal_and_norms_are_ones(tiny: Path) -> None:
    weights = _weights(tiny)
    norms = {name for name in weights if "norm" in name}
    assert len(norms) == 5
    assert all((weights[name] == 1).all() for name in norms)
    for name in weights.keys() - norms:
        values = weights[name].float()
        assert values.std().item() == pytest.approx(0.02, rel=0.05), name
        assert abs(values.mean().item()) < 0.001, name


def test_no_two_tensors_are_alike(tiny: Path) -> None:
    projections = [v for name, v in _weights(tiny).items() if name.endswith("gate_proj.weight")]
    projections += [v for name, v in _weights(tiny).items() if name.endswith("up_proj.weight")]
    flat = torch.stack([each.float().flatten() for each in projections])
    between = torch.corrcoef(flat) - torch.eye(len(projections))
    assert len(projections) == 4
    assert between.abs().max().item() < 0.02


def test_every_token_has_a_text_and_texts_keep_their_tokens(tiny: Path, tokenizer: Path) -> None:
    old = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    new = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    vocabulary = SHAPES["llama-tiny"].vocabulary
    assert new.get_vocab_size() == vocabulary
    assert all(new.decode([token]) for token in range(vocabulary) if token != EOS)
    text = "What a frog does in winter: é w300"
    assert new.encode(text).ids == old.encode(text).ids


def test_the_end_of_a_text_is_the_tokenizers(tiny: Path) -> None:
    assert json.loads((tiny / "generation_config.json").read_text())["eos_token_id"] == EOS
    assert json.loads((tiny / "config.json").read_text())["eos_token_id"] == EOS


@pytest.mark.parametrize(
    ("name", "size_gb"),
    [("llama-1b", 2.4716), ("llama-8b", 15.0098), ("vit", 1.2173), ("vlm", 1.0150), ("embeddings", 0.4379), ("llama-70b", 39.5004), ("llama-70b-fp8", 72.6698)],
)  # fmt: skip
def test_a_shape_has_its_true_size(name: str, size_gb: float) -> None:
    shape = SHAPES[name]
    config = shape.config(**({"vocab_size": shape.vocabulary} if shape.vocabulary else {}))
    model = shapes.hollow(shape, config)
    size = sum(tensor.size_bytes for tensor in tensors_of(model, shape.dtype))
    assert size / 1e9 == pytest.approx(size_gb, abs=1e-4)


def test_big_weights_come_in_shards_with_an_index(tmp_path: Path) -> None:
    tensors = [Tensor(f"layer.{n}.weight", (300, 100), torch.float16) for n in range(5)]
    total = write_weights(tmp_path, "model", tensors, shard_bytes_max=130_000)
    assert total == 5 * 60_000
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total
    assert index["weight_map"] == {
        f"layer.{n}.weight": f"model-0000{n // 2 + 1}-of-00003.safetensors" for n in range(5)
    }
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / file, framework="pt") as shard:
            assert shard.get_tensor(name).shape == (300, 100)


def test_a_tensor_of_many_pieces_is_whole_and_the_file_is_as_written_alone(tmp_path: Path) -> None:
    big = Tensor("big.weight", (3, 3 << 20), torch.float16)
    (tmp_path / "alone").mkdir()
    write_weights(tmp_path / "alone", "model", [big])
    other = Tensor("after.bias", (7,), torch.float16)
    write_weights(tmp_path, "model", [big, other])
    weights = _weights(tmp_path)
    assert torch.equal(weights["big.weight"], _weights(tmp_path / "alone")["big.weight"])
    assert weights["after.bias"].tolist() == [0.0] * 7
    assert (weights["big.weight"].float().std(dim=1) - 0.02).abs().max() < 0.001


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is none of llama-tiny"):
        shapes.make("llama-9b", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        shapes.make("llama-tiny", tmp_path)
    model = torch.nn.BatchNorm1d(4)  # it counts its batches
    with pytest.raises(ValueError, match="num_batches_tracked holds torch"):
        tensors_of(model, torch.float32)
