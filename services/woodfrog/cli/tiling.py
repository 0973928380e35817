"""A model's folder with its int4 weights tiled, made once when it is added for a GPU, which then multiplies them as they lie."""

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from woodfrog.cli.convert import config_text, fill, pytorch, read_config
from woodfrog.replica import int4_tiles, layout

_PIECE_BYTES = 4 << 20


def layers_to_tile(folder: Path) -> frozenset[str]:
    """Names of the weights that a GPU multiplies packed once they are tiled, "…weight". Raises InvalidArgument.

    Empty where none fits, and where they are tiled already.
    """
    path = folder / "config.json"
    if not path.is_file() or not _packed_int4(read_config(path)):
        return frozenset()
    tensors = layout.of_folder(folder).tensors
    found = {}
    for name, packed in tensors.items():
        stem, _, kind = name.rpartition("_")
        scales = tensors.get(f"{stem}_scale")
        if kind != "packed" or packed.dtype != "I32" or scales is None:
            continue
        if int4_tiles.fits(packed.shape, scales.shape):
            found[stem] = scales.dtype
    # The kernel takes no other scales, and the engine finds the tiled layers by their shapes.
    return frozenset(found) if set(found.values()) == {"BF16"} else frozenset()


def tile(folder: Path, names: Sequence[str], layers: Collection[str], out: Path) -> None:
    """Fills the new folder `out` with the files `names` of `folder`, whose `layers` it tiles; files of weights keep their size.

    A piece of a tensor is in memory at a time. Raises FailedPrecondition without PyTorch or room on the disk.
    """
    fill(folder, names, out, lambda source, target: _weights(source, target, layers), _config)


def _packed_int4(config: Any) -> bool:
    said = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(said, dict) or said.get("format") != int4_tiles.PACKED:
        return False
    groups = said.get("config_groups")
    weights = [
        group.get("weights") if isinstance(group, dict) else None
        for group in (groups.values() if isinstance(groups, dict) else ())
    ]
    return all(isinstance(each, dict) and each.get("num_bits") == 4 for each in weights)


def _weights(source: Path, target: Path, layers: Collection[str]) -> None:
    data_offset, entries = layout.header_of(source)
    with source.open("rb") as given, target.open("wb") as out:
        for name, _, shape, begin, size_bytes in entries:
            stem, _, kind = name.rpartition("_")
            if stem in layers and kind in ("packed", "scale"):
                _copy(given, out, data_offset + begin - given.tell())
                change = _tiled if kind == "packed" else _by_group
                change(given, out, shape[0], size_bytes // shape[0])
        shutil.copyfileobj(given, out, _PIECE_BYTES)


def _copy(given: BinaryIO, out: BinaryIO, size_bytes: int) -> None:
    for at in range(0, size_bytes, _PIECE_BYTES):
        out.write(given.read(min(_PIECE_BYTES, size_bytes - at)))


def _tiled(given: BinaryIO, out: BinaryIO, rows: int, row_bytes: int) -> None:
    """By some rows of tiles at a time, which are a tensor of their own."""
    torch = pytorch()
    step = max(1, _PIECE_BYTES // row_bytes // int4_tiles.ROWS) * int4_tiles.ROWS
    for at in range(0, rows, step):
        data = bytearray(given.read(min(step, rows - at) * row_bytes))
        packed = torch.frombuffer(data, dtype=torch.int32).view(-1, row_bytes // 4)
        out.write(int4_tiles.tiled(packed).numpy())


def _by_group(given: BinaryIO, out: BinaryIO, rows: int, row_bytes: int) -> None:
    torch = pytorch()
    data = bytearray(given.read(rows * row_bytes))
    scales = torch.frombuffer(data, dtype=torch.int16).view(rows, -1)  # numpy has no bfloat16
    out.write(int4_tiles.by_group(scales).numpy())


def _config(path: Path) -> str:
    config = read_config(path)
    if _packed_int4(config):  # and no config of a part
        config["quantization_config"]["format"] = int4_tiles.TILED
    return config_text(config)
