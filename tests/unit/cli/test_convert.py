"""Weights are converted when a model is added: what the folder then holds, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from woodfrog.cli.convert import convert
from woodfrog.errors import InvalidArgument, WoodfrogError

NAMES = ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "given"
    folder.mkdir()
    tensors = {
        "wide": torch.linspace(-3, 3, 64, dtype=torch.float64),
        "plain": torch.linspace(-3, 3, 64),
        "narrow": torch.linspace(-3, 3, 64, dtype=torch.float16),
        "ids": torch.arange(64),
        "packed": torch.zeros(8, dtype=torch.int8),
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {"architectures": ["X"], "torch_dtype": "float32", "text_config": {"dtype": "float32"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_floats_are_converted_and_nothing_else(folder: Path, tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "out"
    convert(folder, NAMES, dtype, out)
    before, after = load_file(folder / "model.safetensors"), load_file(out / "model.safetensors")
    wanted = getattr(torch, dtype)
    for name in ("wide", "plain", "narrow"):
        assert torch.equal(after[name], before[name].to(wanted)), name
        assert after[name].dtype == wanted
    for name in ("ids", "packed"):
        assert torch.equal(after[name], before[name])
        assert after[name].dtype == before[name].dtype
    config = json.loads((out / "config.json").read_text())
    assert (config["torch_dtype"], config["text_config"]["dtype"]) == (dtype, dtype)
    assert config["architectures"] == ["X"]
    assert (out / "tokenizer.json").read_text() == "{}"


def test_numbers_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    save_file({"large": torch.tensor([1e6])}, folder / "model.safetensors")
    with pytest.raises(InvalidArgument, match="large has numbers beyond"):
        convert(folder, NAMES, "float16", tmp_path / "half")
    convert(folder, NAMES, "bfloat16", tmp_path / "out")


def test_infinity_stays_infinity(folder: Path, tmp_path: Path) -> None:
    save_file({"mask": torch.tensor([float("-inf"), 0.0])}, folder / "model.safetensors")
    convert(folder, NAMES, "float16", tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")["mask"].tolist() == [-torch.inf, 0.0]


def test_quantized_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "x"}}))
    with pytest.raises(InvalidArgument, match="without --dtype"):
        convert(folder, NAMES, "bfloat16", tmp_path / "out")


def test_a_full_disk_has_its_sentence(folder: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(WoodfrogError, match="TMPDIR"):
        convert(folder, NAMES, "bfloat16", blocked / "out")
