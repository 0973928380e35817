"""Tiles against the kernel that PyTorch makes them with, and against the files' own order."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from hypothesis import given
from hypothesis import strategies as st
from tests.memory import simulated_int4

from woodfrog.replica import int4_tiles


def words(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Random bits: all int4 values, and all signs of the words that hold them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, columns // 8)
    return torch.randint(-(1 << 31), 1 << 31, shape, generator=generator).int()


WORDS = st.builds(
    words,
    st.integers(1, 5).map(lambda n: 8 * n),
    st.integers(1, 4).map(lambda n: 128 * n),
    st.integers(0, 1 << 32),
)


@given(WORDS)
def test_packing_gives_the_same_bytes_again(packed: torch.Tensor) -> None:
    tiles = int4_tiles.tiled(packed)
    assert (tiles.shape, tiles.dtype, tiles.is_contiguous()) == (packed.shape, torch.int32, True)
    assert torch.equal(int4_tiles.packed(tiles), packed)


@given(WORDS)
def test_tiles_are_those_of_the_kernel(packed: torch.Tensor) -> None:
    """Which takes of two values in a byte the high half first, where the files have it second."""
    of_bytes = packed.view(torch.uint8)
    expected = simulated_int4.convert(of_bytes << 4 | of_bytes >> 4, 8)
    assert torch.equal(int4_tiles.tiled(packed).view(expected.shape), expected)


def test_one_value_lies_where_the_tensor_core_looks_for_it() -> None:
    """Row 3, column 128 + 2 · 16 + 5: of the second tile lane 3 · 4 + 2, word 1, its first odd value."""
    values = torch.zeros(8, 256, dtype=torch.int32)
    values[3, 128 + 32 + 5] = 9
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    packed = (values.view(8, 32, 8) << shifts).sum(2).int()
    assert unpack_from_int32(packed, 4, values.shape)[3, 165] == 9 - 8
    tiles = int4_tiles.tiled(packed).view(1, 2, 32, 4)
    assert tiles[0, 1, 14, 1] == 9 << 16
    assert tiles.count_nonzero() == 1


@given(st.integers(1, 9), st.integers(1, 9))
def test_scales_lie_group_by_group(rows: int, groups: int) -> None:
    scales = torch.arange(rows * groups).view(rows, groups).bfloat16()
    turned = int4_tiles.by_group(scales)
    assert turned.shape == scales.shape
    assert turned.is_contiguous()
    assert torch.equal(turned.view(groups, rows).t(), scales)


@pytest.mark.parametrize(
    ("packed", "scales", "fits"),
    [
        ((8, 16), (8, 1), True),
        ((1024, 1024), (1024, 64), True),
        ((24, 48), (24, 12), True),
        ((8, 64), (8, 1), False),  # groups of 512
        ((8, 16), (8, 8), False),  # of 16
        ((12, 16), (12, 1), False),
        ((8, 24), (8, 6), False),  # 192 columns
        ((8, 48), (8, 5), False),
        ((8, 16), (4, 1), False),
        ((8, 16), (8, 0), False),
        ((0, 16), (0, 1), False),
        ((8, 0), (8, 1), False),
        ((8, 16), (8,), False),
        ((8,), (8, 1), False),
    ],
)
def test_which_layers_fit(packed: tuple[int, ...], scales: tuple[int, ...], fits: bool) -> None:
    assert int4_tiles.fits(packed, scales) is fits
