"""What the bench of quantized layers checks on a GPU before it measures, here on a simulated kernel."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from loadtest import quantized_layers
from tests.memory import simulated_int4

from woodfrog.replica import int4_tiles


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    with simulated_int4.kernels(), torch.inference_mode():
        yield


@pytest.mark.parametrize("shape", quantized_layers.TILED[:3])
def test_right_tiles_pass(shape: tuple[int, int]) -> None:
    quantized_layers.check_tiles(*shape, device="cpu")


@pytest.mark.parametrize("group", quantized_layers.GROUPS)
def test_layers_of_all_groups_agree(group: int) -> None:
    quantized_layers.check_group(group, device="cpu")


def test_wrong_tiles_are_told(monkeypatch: Any) -> None:
    monkeypatch.setattr(int4_tiles, "tiled", lambda packed: packed)
    with pytest.raises(AssertionError, match="24 × 384: other tiles"):
        quantized_layers.check_tiles(24, 384, "cpu")


def test_scales_in_the_wrong_place_are_told(monkeypatch: Any) -> None:
    monkeypatch.setattr(int4_tiles, "by_group", lambda scales: scales)
    with pytest.raises(AssertionError, match="groups of 64: other weights"):
        quantized_layers.check_group(64, "cpu")
