"""Where each tensor of a weights folder lies in one block of memory. The same in whoever fills it and whoever maps it.

Pure but for reading headers. Source of the file format: safetensors' README, "Format".
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from woodfrog.errors import InvalidArgument

ALIGN_BYTES = 256  # what CUDA's own allocator promises, and kernels rely on
SIZE_BYTES = 2 << 20  # the block is a multiple of this: CUDA's granularity
HEADER_BYTES_MAX = 100 << 20
DIMENSIONS_MAX = 64
NUMBER_MAX = 1 << 50
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    dtype: str  # safetensors' name
    shape: tuple[int, ...]
    offset: int  # in the block
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of one file that lie in one piece in the block too."""

    path: str  # relative to the folder
    file_offset: int
    offset: int  # in the block
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    tensors: Mapping[str, Tensor]  # "name", or "folder/name" for a file in a folder of the folder
    extents: tuple[Extent, ...]  # all of the tensors' bytes, by offset
    size_bytes: int  # of the block, > 0


def of_folder(folder: Path) -> Layout:
    """Of all safetensors files under `folder`. Raises InvalidArgument naming the file that is wrong."""
    tensors: dict[str, Tensor] = {}
    extents: list[Extent] = []
    end = 0
    for path in sorted(path for path in folder.rglob("*.safetensors") if path.is_file()):
        relative = path.relative_to(folder)
        prefix = "" if relative.parent == Path(".") else f"{relative.parent}/"
        data_offset, entries = header_of(path)
        end = -(-end // ALIGN_BYTES) * ALIGN_BYTES
        run: Extent | None = None
        for name, dtype, shape, begin, size in entries:
            if prefix + name in tensors:
                raise InvalidArgument(
                    "WEIGHTS_AMBIGUOUS",
                    f"two files have tensor {prefix + name}; keep one variant of the weights",
                )
            at = data_offset + begin
            if run and (run.offset + at - run.file_offset) % ALIGN_BYTES == 0:
                offset = run.offset + at - run.file_offset
                run = Extent(run.path, run.file_offset, run.offset, offset + size - run.offset)
                extents[-1] = run
            elif size:
                offset = -(-end // ALIGN_BYTES) * ALIGN_BYTES
                run = Extent(str(relative), at, offset, size)
                extents.append(run)
            else:
                offset = -(-end // ALIGN_BYTES) * ALIGN_BYTES
            tensors[prefix + name] = Tensor(dtype, shape, offset, size)
            end = max(end, offset + size)
    if not end:
        raise InvalidArgument("WEIGHTS_MISSING", f"{folder} has no weights in *.safetensors")
    return Layout(tensors, tuple(extents), -(-end // SIZE_BYTES) * SIZE_BYTES)


Entry = tuple[str, str, tuple[int, ...], int, int]  # name, dtype, shape, begin, size


def header_of(path: Path) -> tuple[int, list[Entry]]:
    """Where a file's data begin, and its entries by where they begin in them. Raises InvalidArgument."""
    with path.open("rb") as file:
        size_bytes = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(HEADER_BYTES_MAX, size_bytes - 8):
            raise _malformed(path, f"its header has {length} bytes")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            header.pop("__metadata__", None)
            entries = [_entry(name, value) for name, value in header.items()]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _malformed(path, f"its header cannot be read: {error!r:.100}") from None
    entries.sort(key=lambda entry: (entry[3], entry[4]))
    done = 0
    for name, _, _, begin, size in entries:
        if begin < done or begin + size > size_bytes - 8 - length:
            raise _malformed(path, f"tensor {name} lies outside of it or over another one")
        done = begin + size
    return 8 + length, entries


def _entry(name: str, value: Any) -> Entry:
    dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(shape, list) or len(shape) > DIMENSIONS_MAX:
        raise ValueError(f"tensor {name} has no shape of at most {DIMENSIONS_MAX} dimensions")
    for number in (*shape, begin, end):
        if type(number) is not int or not 0 <= number <= NUMBER_MAX:
            raise ValueError(f"tensor {name} has a number that is no size")
    if math.prod(shape) * DTYPE_BITS[dtype] != (end - begin) * 8:
        raise ValueError(f"tensor {name} has {end - begin} bytes for {dtype} {shape}")
    return name, dtype, tuple(shape), begin, end - begin


def _malformed(path: Path, why: str) -> InvalidArgument:
    return InvalidArgument("WEIGHTS_MALFORMED", f"{path.name} is not safetensors: {why}")
