"""PyTorch's int4 kernels of a GPU, computed by the CPU. Source: aten/src/ATen/native/cuda/int4mm.cu."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_INNER_TILES = 8
_LANES = torch.arange(32)


@contextmanager
def kernels() -> Iterator[None]:
    """While active, tensors of the CPU may be given to them."""
    library = torch.library.Library("aten", "IMPL")
    try:
        library.impl("_convert_weight_to_int4pack", convert, "CPU")
        library.impl("_weight_int4pack_mm", multiply, "CPU")
        yield
    finally:
        library._destroy()


def convert(packed: Any, inner_tiles: int) -> Any:
    """packed (n, k / 2) uint8 → tiles (n / 8, k / 128, 32, 4) int32."""
    assert packed.dtype == torch.uint8
    assert packed.is_contiguous()
    assert inner_tiles == _INNER_TILES
    rows, columns = packed.shape
    assert rows % 8 == 0
    assert columns % 64 == 0
    tiles = packed.long().view(rows // 8, 8, columns // 64, 64).transpose(1, 2)
    return torch.stack([_words(tiles, inner) for inner in range(4)], dim=-1).int()


def _words(tiles: Any, inner: int) -> Any:
    """One int32 of each lane: its bytes' low halves above, their high halves below."""
    word = torch.zeros(*tiles.shape[:2], 32, dtype=torch.int64)
    for n, column in enumerate((0, 4, 8, 12)):
        byte = tiles[:, :, _LANES // 4, 16 * inner + column + _LANES % 4]
        word |= (byte >> 4) << 4 * n | (byte & 15) << 16 + 4 * n
    return (word + (1 << 31)) % (1 << 32) - (1 << 31)


def multiply(x: Any, tiles: Any, group: int, scales: Any) -> Any:
    """x (m, k) bfloat16, scales (k / group, n, 2): of each group its scale, and what is added."""
    assert x.dtype == scales.dtype == torch.bfloat16
    assert x.is_contiguous()
    assert scales.is_contiguous()
    count, across = tiles.shape[0] * 8, tiles.shape[1] * 128
    assert x.shape[1] == across
    assert scales.shape == (across // group, count, 2)
    values = torch.empty(tiles.shape[0], tiles.shape[1], 8, 128)
    for inner in range(4):
        word = tiles[..., inner].long() % (1 << 32)
        for n, column in enumerate((0, 4, 8, 12)):
            first = 2 * (16 * inner + column + _LANES % 4)
            values[:, :, _LANES // 4, first] = ((word >> 4 * n & 15) - 8).float()
            values[:, :, _LANES // 4, first + 1] = ((word >> 16 + 4 * n & 15) - 8).float()
    weights = values.transpose(1, 2).reshape(count, across).bfloat16()
    by_group = scales.repeat_interleave(group, dim=0)
    weights = weights * by_group[..., 0].t() + by_group[..., 1].t()
    return (x.float() @ weights.float().t()).bfloat16()
