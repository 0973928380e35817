"""Images by a tiny pipeline of Diffusers, against Diffusers itself; and what a request may say."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loadtest import shapes
from tests.memory.simulated_gpu import SimulatedDevice

from woodfrog.engine.drawing import Drawing
from woodfrog.engine.images import ImagesEngine
from woodfrog.engine.images_front import parse
from woodfrog.engine.kinds import Kind, kind_of
from woodfrog.engine.module_engine import Stop
from woodfrog.engine.settings import Settings, load
from woodfrog.errors import InvalidArgument
from woodfrog.node_agent.vault.arena import Arena
from woodfrog.node_agent.vault.vault import Vault
from woodfrog.replica.weights import WeightMemory

SIMULATED = "tests.memory.simulated_gpu:SimulatedMemory"
SIZE = (64, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "sdxl-tiny"
    shapes.make("sdxl-tiny", folder)
    return folder


def settings_of(folder: Path, memory: str) -> Settings:
    return load(
        {
            "WOODFROG_SOCKET": "unused",
            "WOODFROG_CONTROL": "unused",
            "WOODFROG_MODEL": str(folder),
            "WOODFROG_DEVICE_MEMORY": memory,
        }
    )


@pytest.fixture(scope="module")
def on_cpu(folder: Path) -> ImagesEngine:
    engine = ImagesEngine(settings_of(folder, ""))
    engine.load()
    return engine


def drawn(engine: ImagesEngine, drawing: Drawing) -> Any:
    with torch.inference_mode():
        return np.asarray(engine.draw(drawing, Stop()))


def test_an_image_is_what_diffusers_draws(folder: Path, on_cpu: ImagesEngine) -> None:
    import diffusers

    mine = drawn(on_cpu, Drawing("a frog", SIZE, steps=3, seed=5))
    pipeline: Any = diffusers.StableDiffusionXLPipeline
    theirs = pipeline.from_pretrained(folder, dtype=torch.float16)
    theirs.set_progress_bar_config(disable=True)
    image = theirs(
        prompt="a frog", width=64, height=64, num_inference_steps=3,
        generator=torch.Generator().manual_seed(5),
    ).images[0]  # fmt: skip
    assert mine.std() > 5
    assert np.abs(mine.astype(int) - np.asarray(image).astype(int)).max() <= 1


def test_shared_memory_gives_the_same_image_and_so_does_a_park(
    folder: Path, on_cpu: ImagesEngine
) -> None:
    vault = Vault(SimulatedDevice(), Arena(0, 1), 2)
    vault.load("w", folder, host=False)
    weights = WeightMemory()
    weights.give(vault.export("w")[0])
    engine = ImagesEngine(settings_of(folder, SIMULATED), weights)
    engine.load()
    drawing = Drawing("a frog", SIZE, steps=2, seed=7)
    expected = drawn(on_cpu, drawing)
    assert (drawn(engine, drawing) == expected).all()
    canary = engine.brief_canary()
    engine.clear()
    engine.release()
    weights.detach()
    weights.give(vault.export("w")[0])
    engine.regain()
    assert engine.brief_canary() == canary == on_cpu.brief_canary()
    assert (drawn(engine, drawing) == expected).all()


def test_seeds_choose_the_image(on_cpu: ImagesEngine) -> None:
    one, other, same = (
        drawn(on_cpu, Drawing("a frog", SIZE, steps=1, seed=seed)) for seed in (1, 2, 1)
    )
    assert (one == same).all()
    assert (one != other).any()
    assert (drawn(on_cpu, Drawing("a frog", SIZE, steps=1)) != one).any()


def test_a_drawing_that_nobody_wants_any_more_ends(on_cpu: ImagesEngine) -> None:
    with torch.inference_mode():
        assert on_cpu.draw(Drawing("a frog", SIZE, steps=200, seed=1), Stop(asked=True)) is None


def test_other_sizes_are_drawn(on_cpu: ImagesEngine) -> None:
    assert drawn(on_cpu, Drawing("a frog", (128, 64), steps=1, seed=1)).shape == (64, 128, 3)


def test_a_folder_of_diffusers_is_one_for_images(folder: Path) -> None:
    assert kind_of(folder) is Kind.IMAGES


def test_code_of_another_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionXLPipeline", "unet": ["my_code", "Unet"]}'
    )
    with pytest.raises(InvalidArgument, match="unet is code of my_code"):
        ImagesEngine(settings_of(tmp_path, "")).build()


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (["diffusers", "DiffusionPipeline"], "DiffusionPipeline"),
        (["diffusers", "StableDiffusionXLPipeline"], "StableDiffusionXLPipeline"),
        (["transformers", "AutoModel"], "AutoModel"),
        (["transformers", "pipeline"], "pipeline"),
    ],
)
def test_a_part_that_would_load_parts_of_its_own_is_refused(
    folder: Path, tmp_path: Path, entry: list[str], why: str
) -> None:
    shutil.copytree(folder, tmp_path / "p")
    index = json.loads((folder / "model_index.json").read_text())
    (tmp_path / "p" / "model_index.json").write_text(json.dumps({**index, "image_encoder": entry}))
    with pytest.raises(InvalidArgument, match=why):
        ImagesEngine(settings_of(tmp_path / "p", "")).build()


@pytest.mark.parametrize(
    "entry", [[None, None], ["stable_diffusion", "StableDiffusionSafetyChecker"]]
)
def test_an_optional_part_may_be_missing_or_be_code_that_is_not_run(
    folder: Path, tmp_path: Path, entry: list[Any]
) -> None:
    shutil.copytree(folder, tmp_path / "p")
    index = json.loads((folder / "model_index.json").read_text())
    (tmp_path / "p" / "model_index.json").write_text(json.dumps({**index, "image_encoder": entry}))
    engine = ImagesEngine(settings_of(tmp_path / "p", ""))
    engine.load()
    assert engine.pipeline.image_encoder is None
    engine.stop()


def test_a_name_that_leads_elsewhere_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "p")
    index = json.loads((folder / "model_index.json").read_text())
    index["../unet"] = ["diffusers", "UNet2DConditionModel"]
    (tmp_path / "p" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidArgument, match="no name of a part"):
        ImagesEngine(settings_of(tmp_path / "p", "")).build()


def test_what_a_request_says_is_taken() -> None:
    body = {
        "prompt": "a frog", "n": 2, "size": "512x256", "seed": 3, "num_inference_steps": 7,
        "guidance_scale": 2, "negative_prompt": "toad", "user": "x", "quality": "high",
    }  # fmt: skip
    assert parse(body, (512, 512)) == (Drawing("a frog", (512, 256), 7, 3, 2.0, "toad"), 2)
    assert parse({"prompt": "a frog", "size": "auto"}, SIZE) == (Drawing("a frog", SIZE), 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""), ("prompt", None), ("prompt", 7), ("prompt", "x" * 40_000),
        ("prompt", "\ud800"), ("negative_prompt", "\udfff"), ("negative_prompt", "x" * 40_000),
        ("n", 0), ("n", 11), ("n", True), ("n", "2"),
        ("size", "1024"), ("size", "63x64"), ("size", "100x100"), ("size", "99999x64"), ("size", "128x64"), ("size", 5),
        ("response_format", "url"), ("output_format", "webp"), ("stream", True),
        ("num_inference_steps", 0), ("num_inference_steps", 1e9), ("seed", -1), ("seed", 1 << 70),
        ("guidance_scale", -1), ("guidance_scale", float("nan")), ("negative_prompt", 5),
    ],
)  # fmt: skip
def test_a_field_that_is_wrong_is_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=f"'{field}'") as caught:
        parse({"prompt": "a frog", field: value}, SIZE)
    assert caught.value.metadata["param"] == field
