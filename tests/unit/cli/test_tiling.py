"""Int4 weights are tiled when a model is added for a GPU: what the folder then holds, and which are left alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from loadtest import random_weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.memory import tiny_quantized

from woodfrog.cli import models
from woodfrog.cli.models import check_folder
from woodfrog.cli.tiling import layers_to_tile, tile
from woodfrog.errors import FailedPrecondition
from woodfrog.replica import int4_tiles


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return given(tmp_path, "int4")


def given(tmp_path: Path, name: str) -> Path:
    folder = tiny_quantized.make(tmp_path / name, name)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def quantization(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text())["quantization_config"])


def say(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def added(folder: Path, *, on_gpu: bool = True) -> tuple[Path, list[str]]:
    """The folder that is ingested, and what was said."""
    said: list[str] = []
    out = folder.parent / "out"
    return models.changed(folder, out, said.append, None, on_gpu), said


def test_a_gpus_model_is_tiled_and_says_so(folder: Path) -> None:
    found, said = added(folder)
    assert found != folder
    assert said == ["tiling the int4 weights of 21 layers, so that a GPU takes them as they lie"]
    assert sorted(path.name for path in found.iterdir()) == check_folder(folder)
    before, after = quantization(folder), quantization(found)
    assert after == {**before, "format": "pack-quantized-m16n8k16"}
    assert before["format"] == "pack-quantized"


def test_every_byte_is_where_it_belongs(folder: Path) -> None:
    found, _ = added(folder)
    old, new = folder / "model.safetensors", found / "model.safetensors"
    assert new.stat().st_size == old.stat().st_size
    before, after = load_file(old), load_file(new)
    assert before.keys() == after.keys()
    changed = 0
    for name, tensor in before.items():
        expected = tensor
        if name.endswith("weight_packed"):
            expected, changed = int4_tiles.tiled(tensor), changed + 1
            assert not torch.equal(expected, tensor)
        elif name.endswith("weight_scale"):
            expected = int4_tiles.by_group(tensor)
        assert torch.equal(after[name], expected), name
        assert after[name].dtype == tensor.dtype
    assert changed == 21
    with safe_open(old, "pt") as one, safe_open(new, "pt") as other:
        assert one.metadata() == other.metadata()


def test_scales_may_lie_in_another_file(folder: Path) -> None:
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for kind, name in ((True, "b"), (False, "a")):
        part = {n: t for n, t in whole.items() if n.endswith("_packed") is kind}
        save_file(part, folder / f"{name}.safetensors")
    found, _ = added(folder)
    after = load_file(found / "a.safetensors") | load_file(found / "b.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(after[name + "_packed"], int4_tiles.tiled(whole[name + "_packed"]))
    assert torch.equal(after[name + "_scale"], int4_tiles.by_group(whole[name + "_scale"]))


@pytest.mark.parametrize("name", ["fp8", "fp8-weights", "int8"])
def test_other_formats_stay_as_they_are(tmp_path: Path, name: str) -> None:
    folder = given(tmp_path, name)
    assert added(folder) == (folder, [])


def test_a_model_on_the_cpu_and_one_that_is_tiled_stay_as_they_are(folder: Path) -> None:
    assert added(folder, on_gpu=False) == (folder, [])
    found, _ = added(folder)
    assert layers_to_tile(found) == frozenset()


def test_layers_that_do_not_fit_stay_packed(tmp_path: Path) -> None:
    folder = given(tmp_path, "int4-channels")  # one scale for 256 columns, or for 512
    found, said = added(folder)
    assert "of 18 layers" in said[0]
    before, after = (load_file(each / "model.safetensors") for each in (folder, found))
    for name, tensor in before.items():
        same = not name.endswith("weight_packed") or "down_proj" in name
        assert torch.equal(after[name], tensor) is same, name


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "int-quantized"},
        {"format": None},
        {"config_groups": {"a": {"weights": {"num_bits": 8}}}},
        {"config_groups": {"a": 5}},
    ],
)
def test_what_the_engine_would_refuse_is_left_alone(folder: Path, changes: dict[str, Any]) -> None:
    say(folder, **changes)
    assert layers_to_tile(folder) == frozenset()


def test_scales_that_the_kernel_does_not_take_are_left_alone(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight_scale"
    save_file({**tensors, name: tensors[name].half()}, folder / "model.safetensors")
    assert layers_to_tile(folder) == frozenset()


def test_a_model_that_is_not_quantized_is_left_alone(folder: Path) -> None:
    for text in ('{"architectures": ["X"]}', '{"quantization_config": 5}', "5"):
        (folder / "config.json").write_text(text)
        assert layers_to_tile(folder) == frozenset()
    (folder / "config.json").unlink()
    assert layers_to_tile(folder) == frozenset()


def test_no_room_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match="set TMPDIR to a folder with room") as caught:
        tile(folder, check_folder(folder), layers_to_tile(folder), tmp_path / "file" / "out")
    assert caught.value.reason == "NO_ROOM"


def test_a_piece_of_a_tensor_is_in_memory_at_a_time(folder: Path, tmp_path: Path) -> None:
    """With all that it is computed in, a quarter of a file of 32 tensors of 8 MiB."""
    name = "model.layers.{}.mlp.up_proj.weight"
    tensors = [
        tensor
        for n in range(32)
        for tensor in (
            random_weights.Tensor(name.format(n) + "_packed", (1032, 2048), torch.int32),
            random_weights.Tensor(name.format(n) + "_scale", (1032, 128), torch.bfloat16),
        )
    ]
    random_weights.write_weights(folder, "model", tensors)
    tile(folder, ["model.safetensors"], [], tmp_path / "warm")
    layers = layers_to_tile(folder)
    assert len(layers) == 32
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is there now
    before = _memory_bytes("VmRSS")
    tile(folder, check_folder(folder), layers, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 256 << 20
    assert _memory_bytes("VmHWM") - before < 64 << 20
    name = name.format(31) + "_packed"
    packed, tiles = (
        load_file(each / "model.safetensors")[name] for each in (folder, tmp_path / "out")
    )
    assert torch.equal(tiles, int4_tiles.tiled(packed))


def _memory_bytes(name: str) -> int:
    """Of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) << 10
