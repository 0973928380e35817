"""Weight files of random bytes, written as fast as the page cache takes them.

Values are like normal(0, 0.02), norms are ones, biases zeros. Quantized ones are like it when they are multiplied by
their scales. A value depends on its tensor's name and place only, so the same names and shapes give the same bytes,
whatever the number of threads.
"""

import functools
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
_QUANTIZED_SCALE = 2.5  # of what fp8 and int4 hold; the scales beside them make up for it
_NOISE_VALUES = 16 << 20  # drawn once for each make; a piece is a stretch of it with other signs
_PIECE_VALUES = 4 << 20
SHARD_BYTES_MAX = 5 << 30  # as published models have it: SDXL's unet is one file
_THREADS = min(16, os.cpu_count() or 1)
_DTYPES = {
    torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3",
    torch.int32: "I32", torch.int64: "I64",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a weight file. Packed values of 4 bits are int32, eight in each."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    known: tuple[int, ...] = ()  #: all of its values, where they are not random

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * int(self.dtype.itemsize)

    @property
    def constant(self) -> float | None:
        """What norms and biases hold everywhere."""
        if len(self.shape) > 1:
            return None
        return 1.0 if self.name.endswith("weight") else 0.0

    @property
    def random(self) -> bool:
        return self.constant is None and not self.known

    @property
    def noise(self) -> "Noise":
        return _noise(self.dtype, self.name.endswith("_scale"))


class Noise:
    """Random values of one dtype, as their bits: a stretch of what was drawn, changed by a stretch of `flips`."""

    def __init__(self, drawn: np.ndarray[Any, Any], flips: np.ndarray[Any, Any]) -> None:
        self._drawn, self._flips = drawn, flips

    def fill(self, out: np.ndarray[Any, Any], *name: int) -> None:
        """The piece of that name; other names give other pieces."""
        last = _NOISE_VALUES - out.size
        values, flips = np.random.default_rng((_SEED, *name)).integers(0, last, 2, endpoint=True)
        chosen = self._flips[flips : flips + out.size]
        np.bitwise_xor(self._drawn[values : values + out.size], chosen, out=out)

    def buffer(self) -> np.ndarray[Any, Any]:
        return np.empty(_PIECE_VALUES, self._drawn.dtype)


@functools.lru_cache(maxsize=4)
def _noise(dtype: torch.dtype, scales: bool) -> Noise:
    """Like normal(0, 0.02), with other signs; scales are near to what quantized values have to be multiplied by."""
    rng = np.random.default_rng(_SEED)
    if dtype == torch.int32:
        return Noise(_packed_int4(rng), np.zeros(_NOISE_VALUES, np.uint32))
    width = dtype.itemsize * 8
    if scales:
        values = rng.uniform(0.5, 1.5, _NOISE_VALUES).astype(np.float32)
        drawn = bits(torch.from_numpy(values * (_SCALE / _QUANTIZED_SCALE)).to(dtype))
        return Noise(drawn, rng.integers(0, 4, _NOISE_VALUES, dtype=drawn.dtype))
    values = rng.standard_normal(_NOISE_VALUES, dtype=np.float32)
    values *= np.float32(_QUANTIZED_SCALE if width == 8 else _SCALE)
    drawn = bits(torch.from_numpy(values).to(dtype))
    signs = rng.integers(0, 2, _NOISE_VALUES, dtype=drawn.dtype) * drawn.dtype.type(1 << width - 1)
    return Noise(drawn, signs)


def _packed_int4(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Whole numbers of a normal distribution, -7 to 7 and 8 added, eight in a word."""
    normal = rng.standard_normal(1 << 16, dtype=np.float32) * np.float32(_QUANTIZED_SCALE)
    halves = (np.clip(np.rint(normal), -7, 7) + 8).astype(np.uint8)
    pairs = halves | np.roll(halves, 1) << 4
    chosen = rng.integers(0, 1 << 16, _NOISE_VALUES * 4, dtype=np.uint16)
    words: np.ndarray[Any, Any] = pairs[chosen].view(np.uint32)
    return words


def bits(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A tensor's values as unsigned integers of the same width; numpy has no bfloat16."""
    signed = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize]
    array: np.ndarray[Any, Any] = tensor.view(signed).numpy()
    return array.view(f"u{tensor.dtype.itemsize}")


def tensors_of(model: Any, dtype: torch.dtype) -> list[Tensor]:
    """What a file of `model` holds; weights that are tied come once, quantized ones stay as they are.

    Raises ValueError for other whole numbers that have no values yet.
    """
    found: dict[int, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        shape = tuple(value.shape)
        if value.is_floating_point():
            tensor = Tensor(name, shape, dtype if value.dtype.itemsize > 1 else value.dtype)
        elif name.endswith("weight_packed"):
            tensor = Tensor(name, shape, value.dtype)
        elif name.endswith("weight_shape"):
            tensor = Tensor(name, shape, value.dtype, tuple(value.tolist()))
        else:
            raise ValueError(f"{name} holds {value.dtype}, which cannot be random")
        found.setdefault(id(value), tensor)
    return list(found.values())


def write_weights(
    folder: Path,
    stem: str,
    tensors: list[Tensor],
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
        _write_shard(folder / name, shard)
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


def _write_shard(path: Path, tensors: list[Tensor]) -> None:
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
        for tensor in tensors:
            if tensor.random:
                _ = tensor.noise  # drawn by one thread
        with ThreadPoolExecutor(_THREADS) as pool:
            shares = [pieces[n::_THREADS] for n in range(_THREADS)]
            list(pool.map(lambda share: _write_pieces(file, share), shares))
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


def _write_pieces(file: int, pieces: list[_Piece]) -> None:
    buffers: dict[torch.dtype, np.ndarray[Any, Any]] = {}
    for tensor, first, count, at in pieces:
        if tensor.random:
            if tensor.dtype not in buffers:
                buffers[tensor.dtype] = tensor.noise.buffer()
            out = buffers[tensor.dtype][:count]
            tensor.noise.fill(out, zlib.crc32(tensor.name.encode()), first)
        else:
            values = tensor.known or (tensor.constant,) * count
            out = bits(torch.tensor(values, dtype=tensor.dtype))
        _write(file, out.tobytes() if out.nbytes < 64 else out.data, at)


def _write(file: int, data: bytes | memoryview, at: int) -> int:
    """Gives where the data end."""
    left = memoryview(data).cast("B")
    while left:
        done = os.pwrite(file, left, at)
        at, left = at + done, left[done:]
    return at
