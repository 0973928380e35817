"""Int4 weights in the order in which a GPU's tensor cores take them, so that a product reads them as they lie.

Their files pack eight columns of a row into a word, the first one lowest. Here the same bytes hold tiles of 8 rows and
128 columns: for each of 32 lanes 4 words, each of these 8 columns out of 32. Scales lie group by group in place of row by
row. Names, shapes and sizes of tensors stay; that a folder is tiled is said by TILED in place of PACKED, as `format` of
config.json's `quantization_config`. Source of the order: PyTorch's aten/src/ATen/native/cuda/int4mm.cu, 8 inner tiles.
"""

from collections.abc import Sequence
from typing import Any

PACKED = "pack-quantized"  # of compressed-tensors
TILED = "pack-quantized-m16n8k16"
_GROUPS = (32, 64, 128, 256)  # columns that share a scale
ROWS, COLUMNS = 8, 128  # of a tile


def fits(packed: Sequence[int], scales: Sequence[int]) -> bool:
    """Whether a folder that says TILED has a layer tiled, by the shapes of its `weight_packed` and `weight_scale`."""
    if len(packed) != 2 or len(scales) != 2 or scales[0] != packed[0] or not all(scales):
        return False
    group, rest = divmod(packed[1] * 8, scales[1])
    whole = packed[0] % ROWS == 0 and packed[1] * 8 % COLUMNS == 0
    return whole and rest == 0 and group in _GROUPS


def tiled(packed: Any) -> Any:
    """packed (rows, columns / 8) int32, as in the files → the same shape, tiled."""
    import torch

    rows, words = packed.shape
    first, second, third, fourth = packed.view(rows // 8, 8, words // 16, 4, 4).unbind(4)
    # Of a lane's word the lower half are even columns of 4 words, the upper half the odd ones beside them.
    even_12, odd_12 = _crossed(first, second, 4)
    even_34, odd_34 = _crossed(third, fourth, 4)
    even_02, even_13 = _crossed(even_12, even_34, 8)
    odd_02, odd_13 = _crossed(odd_12, odd_34, 8)
    lanes = *_crossed(even_02, odd_02, 16), *_crossed(even_13, odd_13, 16)
    ordered = torch.stack([lanes[n] for n in (0, 2, 1, 3)], 3)
    return ordered.transpose(1, 2).reshape(rows, words)


def packed(tiles: Any) -> Any:
    """What `tiled` was given: its steps, which undo themselves, from the last to the first."""
    import torch

    rows, words = tiles.shape
    lanes = tiles.view(rows // 8, words // 16, 8, 4, 4).unbind(3)
    even_02, odd_02 = _crossed(lanes[0], lanes[2], 16)
    even_13, odd_13 = _crossed(lanes[1], lanes[3], 16)
    even_12, even_34 = _crossed(even_02, even_13, 8)
    odd_12, odd_34 = _crossed(odd_02, odd_13, 8)
    ordered = torch.stack((*_crossed(even_12, odd_12, 4), *_crossed(even_34, odd_34, 4)), 4)
    return ordered.transpose(1, 2).reshape(rows, words)


def by_group(scales: Any) -> Any:
    """scales (rows, groups), as in the files → the same shape, but the bytes of (groups, rows)."""
    return scales.t().contiguous().view(scales.shape)


def _crossed(low: Any, high: Any, bits: int) -> tuple[Any, Any]:
    """Two words after an exchange: of each 2 · `bits`, the upper half of `low` for the lower half of `high`."""
    lower = 0xFFFFFFFF // ((1 << bits) + 1)  # these halves
    return low & lower | (high & lower) << bits, low >> bits & lower | high & ~lower
