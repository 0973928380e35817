"""Weight files of random bytes, written as fast as the page cache takes them.

Values are like normal(0, 0.02), norms are ones, biases zeros. A value depends on its tensor's name and place only, so
the same names and shapes give the same bytes, whatever the number of threads.
"""

import json
import math
import os
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

_SEED = 7
_SCALE = 0.02
_NOISE_VALUES = 16 << 20  # drawn once for each make; a piece is a stretch of it with other signs
_PIECE_VALUES = 4 << 20
SHARD_BYTES_MAX = 5 << 30  # as published models have it: SDXL's unet is one file
_THREADS = min(16, os.cpu_count() or 1)
_DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a weight file."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * int(self.dtype.itemsize)

    @property
    def constant(self) -> float | None:
        """What norms and biases hold everywhere."""
        if len(self.shape) > 1:
            return None
        return 1.0 if self.name.endswith("weight") else 0.0


class Noise:
    """Values like normal(0, 0.02) of one dtype, as their bits."""

    def __init__(self, dtype: torch.dtype) -> None:
        drawn = np.random.default_rng(_SEED)
        values = drawn.standard_normal(_NOISE_VALUES, dtype=np.float32) * np.float32(_SCALE)
        self._bits = bits(torch.from_numpy(values).to(dtype))
        top = self._bits.dtype.type(1 << (dtype.itemsize * 8 - 1))
        self._signs = drawn.integers(0, 2, _NOISE_VALUES, dtype=self._bits.dtype) * top

    def fill(self, out: np.ndarray[Any, Any], *name: int) -> None:
        """The piece of that name; other names give other pieces."""
        last = _NOISE_VALUES - out.size
        values, signs = np.random.default_rng((_SEED, *name)).integers(0, last, 2, endpoint=True)
        chosen = self._signs[signs : signs + out.size]
        np.bitwise_xor(self._bits[values : values + out.size], chosen, out=out)

    def buffer(self) -> np.ndarray[Any, Any]:
        return np.empty(_PIECE_VALUES, self._bits.dtype)


def bits(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A tensor's values as unsigned integers of the same width; numpy has no bfloat16."""
    signed = {2: torch.int16, 4: torch.int32}[tensor.dtype.itemsize]
    array: np.ndarray[Any, Any] = tensor.view(signed).numpy()
    return array.view(f"u{tensor.dtype.itemsize}")


def tensors_of(model: Any, dtype: torch.dtype) -> list[Tensor]:
    """What a file of `model` holds; weights that are tied come once. Raises ValueError for what is no float."""
    found: dict[int, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not value.is_floating_point():
            raise ValueError(f"{name} holds {value.dtype}, which cannot be random")
        found.setdefault(id(value), Tensor(name, tuple(value.shape), dtype))
    return list(found.values())


def write_weights(
    folder: Path,
    stem: str,
    tensors: list[Tensor],
    noise: Noise,
    shard_bytes_max: int = SHARD_BYTES_MAX,
) -> int:
    """One safetensors file, or shards and their index when they are too big for one. Gives the bytes of all tensors."""
    shards = _shards(tensors, shard_bytes_max)
    many = len(shards) > 1
    names = [
        f"{stem}-{n:05}-of-{len(shards):05}.safetensors" if many else f"{stem}.safetensors"
        for n in range(1, len(shards) + 1)
    ]
    for name, shard in zip(names, shards, strict=True):
        _write_shard(folder / name, shard, noise)
    total = sum(tensor.size_bytes for tensor in tensors)
    if many:
        placed = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        path = folder / f"{stem}.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n")
    return total


def _shards(tensors: list[Tensor], bytes_max: int) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if filled + tensor.size_bytes > bytes_max and shards[-1]:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.size_bytes
    return shards


def _write_shard(path: Path, tensors: list[Tensor], noise: Noise) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    placed: list[tuple[Tensor, int]] = []
    offset = 0
    for tensor in sorted(tensors, key=lambda t: t.name):
        placed.append((tensor, offset))
        header[tensor.name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.size_bytes],
        }
        offset += tensor.size_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
    try:
        start = _write(file, struct.pack("<Q", len(text)) + text, 0)
        os.truncate(file, start + offset)
        pieces = list(_pieces(placed, start))
        with ThreadPoolExecutor(_THREADS) as pool:
            shares = [pieces[n::_THREADS] for n in range(_THREADS)]
            list(pool.map(lambda share: _write_pieces(file, share, noise), shares))
    finally:
        os.close(file)


_Piece = tuple[
    Tensor, int, int, int
]  # of a tensor: first value, count of values, place in the file


def _pieces(placed: list[tuple[Tensor, int]], start: int) -> Iterator[_Piece]:
    for tensor, offset in placed:
        width = tensor.dtype.itemsize
        count = tensor.size_bytes // width
        for first in range(0, count, _PIECE_VALUES):
            at = start + offset + first * width
            yield tensor, first, min(_PIECE_VALUES, count - first), at


def _write_pieces(file: int, pieces: list[_Piece], noise: Noise) -> None:
    buffer = noise.buffer()
    for tensor, first, count, at in pieces:
        out = buffer[:count]
        if tensor.constant is None:
            noise.fill(out, zlib.crc32(tensor.name.encode()), first)
        else:
            out[:] = bits(torch.full((1,), tensor.constant, dtype=tensor.dtype))
        _write(file, out.tobytes() if out.nbytes < 64 else out.data, at)


def _write(file: int, data: bytes | memoryview, at: int) -> int:
    """Gives where the data end."""
    left = memoryview(data).cast("B")
    while left:
        done = os.pwrite(file, left, at)
        at, left = at + done, left[done:]
    return at
