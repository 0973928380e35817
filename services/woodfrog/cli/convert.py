"""A model's folder with its weights in another floating-point type, made once when it is added and not at each load."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from woodfrog.errors import FailedPrecondition, InvalidArgument

DTYPES = ("bfloat16", "float16", "float32")
_FLOATS = (*DTYPES, "float64")


def convert(folder: Path, names: Sequence[str], dtype: str, out: Path) -> None:
    """Fills the new folder `out` with the files `names` of `folder`; tensors in one of DTYPES or float64 become `dtype`.

    One file of weights is in memory at a time. Raises InvalidArgument for quantized weights and for numbers that
    `dtype` has no room for, FailedPrecondition without PyTorch or room on the disk.
    """
    fill(
        folder,
        names,
        out,
        lambda source, target: _weights(source, target, dtype),
        lambda path: _config(path, dtype),
    )


def fill(
    folder: Path,
    names: Sequence[str],
    out: Path,
    weights: Callable[[Path, Path], None],
    config: Callable[[Path], str],
) -> None:
    """Fills the new folder `out` with the files `names` of `folder`.

    `weights` writes one of them to another path, `config` gives the text of a config.json; the others stay as they are.
    Raises FailedPrecondition NO_ROOM.
    """
    try:
        for name in names:
            target = out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.suffix == ".safetensors":
                weights(folder / name, target)
            elif target.name == "config.json":
                target.write_text(config(folder / name))
            else:
                shutil.copyfile(folder / name, target)
    except OSError as error:
        raise FailedPrecondition(
            "NO_ROOM",
            f"the weights cannot be converted in {out.parent}: {error.strerror}; set TMPDIR to a folder with room",
        ) from None


def pytorch() -> Any:
    """The module torch. Raises FailedPrecondition ENGINE_NOT_INSTALLED."""
    try:
        import torch
    except ImportError as error:
        raise FailedPrecondition(
            "ENGINE_NOT_INSTALLED",
            f"weights cannot be converted: {error}; run `pip install 'woodfrog[engine]'`",
        ) from None
    return torch


def _weights(source: Path, target: Path, dtype: str) -> None:
    torch = pytorch()
    from safetensors.torch import save_file

    wanted: Any = getattr(torch, dtype)
    floats = {getattr(torch, name) for name in _FLOATS}
    tensors = {}
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
        for name in file.keys():  # noqa: SIM118 - it is no dict
            tensor = file.get_tensor(name)
            if tensor.dtype in floats and tensor.dtype != wanted:
                converted = tensor.to(wanted)
                if tensor.isfinite().all() and not converted.isfinite().all():
                    raise InvalidArgument(
                        "DTYPE_TOO_NARROW",
                        f"{source.name}: {name} has numbers beyond those of {dtype}; take bfloat16 or float32",
                    )
                tensor = converted
            tensors[name] = tensor
    save_file(tensors, target, metadata)
    target.chmod(0o644)


def _config(path: Path, dtype: str) -> str:
    """With `dtype` wherever it, or one of its parts, says one."""
    config = read_config(path)
    if isinstance(config, dict):
        if config.get("quantization_config"):
            raise InvalidArgument(
                "QUANTIZED", f"{path} says that the weights are quantized; add them without --dtype"
            )
        for part in (config, *(value for value in config.values() if isinstance(value, dict))):
            for key in ("dtype", "torch_dtype"):
                if key in part:
                    part[key] = dtype
    return config_text(config)


def read_config(path: Path) -> Any:
    """Raises InvalidArgument BAD_CONFIG."""
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError):
        raise InvalidArgument("BAD_CONFIG", f"{path} is not JSON; fetch it again") from None


def config_text(config: Any) -> str:
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"
