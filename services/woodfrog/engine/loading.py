"""The model from its folder, with weights mapped and never read into memory of our own."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
import transformers

from woodfrog.errors import InvalidArgument


def load_model(folder: Path) -> Any:
    """The concrete class that config.json names: Transformers' Auto classes would import all of them."""
    names = _read(folder / "config.json").get("architectures") or []
    listed = isinstance(names, list) and bool(names)
    kind = getattr(transformers, str(names[0]), None) if listed else None
    if kind is None or not hasattr(kind, "init_continuous_batching"):
        raise InvalidArgument(
            "UNKNOWN_ARCHITECTURE",
            f"{folder}/config.json names {names or 'no architecture'}, which is not a text model of"
            f" Transformers {transformers.__version__}",
        )
    # The dtype of the file: another one would copy the weights out of the mapping.
    model, found = kind.from_pretrained(
        folder,
        dtype="auto",
        local_files_only=True,
        attn_implementation="sdpa",
        output_loading_info=True,
    )
    if lost := [*found["missing_keys"], *found["mismatched_keys"], *found["error_msgs"]]:
        raise InvalidArgument(  # Transformers would go on with random numbers
            "WEIGHTS_MISSING",
            f"the weights lack {len(lost)} tensors of {names[0]}, e.g. {str(lost[0])[:100]}; give all of the"
            " model's files",
        )
    return model.eval()


def eos_tokens(folder: Path, model: Any) -> list[int]:
    config = _read(folder / "generation_config.json")
    eos = config.get("eos_token_id", model.config.eos_token_id)
    return list(eos) if isinstance(eos, list) else [] if eos is None else [eos]


def prepare(threads: int) -> None:
    """Threads for each computation; Transformers' messages to our own log."""
    torch.set_num_threads(threads)
    transformers.logging.disable_progress_bar()  # it starts a thread
    for name in ("transformers", "ContinuousBatchingLogger"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)


def versions() -> dict[str, str]:
    return {"torch": torch.__version__, "transformers": transformers.__version__}


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
