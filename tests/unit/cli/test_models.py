"""What is no model is refused before anything is ingested."""

import json
import os
import struct
from pathlib import Path

import pytest

from woodfrog.cli.models import check_folder
from woodfrog.errors import InvalidArgument, NotFound, WoodfrogError


def safetensors(size_bytes: int = 8) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size_bytes)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(safetensors())
    (tmp_path / "config.json").write_text('{"architectures": ["X"]}')
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "training_args.bin").write_bytes(b"\x80\x04N.")
    return tmp_path


def test_a_whole_model_passes_and_its_pickles_stay_out(folder: Path) -> None:
    assert check_folder(folder) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_the_pooling_of_an_embeddings_model_comes_along(folder: Path) -> None:
    for name in ("1_Pooling", "other"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    assert check_folder(folder) == [
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_a_model_of_pictures_has_a_processor_in_place_of_a_tokenizer(folder: Path) -> None:
    (folder / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    with pytest.raises(InvalidArgument, match="preprocessor_config") as caught:
        check_folder(folder)
    assert caught.value.reason == "NO_PROCESSOR"
    (folder / "tokenizer.json").rename(folder / "preprocessor_config.json")
    assert check_folder(folder) == ["config.json", "model.safetensors", "preprocessor_config.json"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "PICKLE_REFUSED"),
        (lambda f: [(f / "model.safetensors").unlink(), (f / "training_args.bin").unlink()], "NO_WEIGHTS"),
        (lambda f: (f / "model.safetensors").write_bytes(safetensors(4)), "WEIGHTS_DAMAGED"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "WEIGHTS_DAMAGED"),
        (lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62)), "WEIGHTS_DAMAGED"),
        (lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}"), "NO_WEIGHTS"),
        (lambda f: (f / "config.json").unlink(), "NO_CONFIG"),
        (lambda f: _fifo(f / "config.json"), "NO_CONFIG"),
        (lambda f: [(f / "config.json").unlink(), (f / "config.json").mkdir()], "NO_CONFIG"),
        (lambda f: (f / "config.json").write_text("[" * 200_000), "BAD_CONFIG"),
        (lambda f: (f / "config.json").write_text('{"architectures": [null]}'), "BAD_CONFIG"),
        (lambda f: (f / "secret.json").symlink_to("/etc/shadow"), "LINK_REFUSED"),
        (lambda f: _fifo(f / "tokenizer.json"), "NO_TOKENIZER"),
        (lambda f: (f / "config.json").write_text("{"), "BAD_CONFIG"),
        (lambda f: (f / "config.json").write_text("[]"), "BAD_CONFIG"),
        (lambda f: (f / "tokenizer.json").unlink(), "NO_TOKENIZER"),
    ],
)  # fmt: skip
def test_each_defect_has_its_sentence(folder: Path, change: object, reason: str) -> None:
    assert callable(change)
    change(folder)
    with pytest.raises(InvalidArgument) as caught:
        check_folder(folder)
    assert caught.value.reason == reason
    assert "\n" not in caught.value.message


def test_a_path_that_is_not_there_or_no_folder_says_so(folder: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        check_folder(folder / "nowhere")
    with pytest.raises(WoodfrogError, match="not a folder"):
        check_folder(folder / "config.json")


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """Of Diffusers, with two parts."""
    (tmp_path / "model_index.json").write_text('{"_class_name": "X", "unet": ["diffusers", "U"]}')
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text("{}")
        (tmp_path / part / "diffusion_pytorch_model.safetensors").write_bytes(safetensors())
    return tmp_path


def test_a_pipeline_comes_with_its_parts(pipeline: Path) -> None:
    assert check_folder(pipeline) == [
        "model_index.json",
        *(f"{part}/{name}" for part in ("unet", "vae") for name in ("config.json", "diffusion_pytorch_model.safetensors")),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").rename(f / "vae" / "model.bin"), "PICKLE_REFUSED"),
        (lambda f: (f / "unet" / "fp16.safetensors").write_bytes(safetensors()), "WEIGHTS_AMBIGUOUS"),
        (lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(safetensors(4)), "WEIGHTS_DAMAGED"),
        (lambda f: (f / "etc").symlink_to("/etc"), "LINK_REFUSED"),
        (lambda f: (f / "vae" / "secret.json").symlink_to("/etc/shadow"), "LINK_REFUSED"),
    ],
)  # fmt: skip
def test_each_defect_of_a_pipeline_has_its_sentence(
    pipeline: Path, change: object, reason: str
) -> None:
    assert callable(change)
    change(pipeline)
    with pytest.raises(InvalidArgument) as caught:
        check_folder(pipeline)
    assert caught.value.reason == reason


def test_what_only_looks_like_weights_is_left_out(pipeline: Path) -> None:
    (pipeline / "unet" / "folder.safetensors").mkdir()
    (pipeline / "unet" / "pipe.safetensors").write_bytes(b"")
    _fifo(pipeline / "unet" / "pipe.safetensors")
    assert len(check_folder(pipeline)) == 5
