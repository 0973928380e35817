"""Which kind of model lies in a folder."""

import json
from enum import Enum
from pathlib import Path
from typing import Any

from woodfrog.errors import InvalidArgument


class Kind(Enum):
    TEXT = "text"
    EMBEDDINGS = "embeddings"
    IMAGES = "images"


def kind_of(folder: Path) -> Kind:
    """Raises InvalidArgument when it is none that this engine serves."""
    if (folder / "model_index.json").is_file():
        return Kind.IMAGES
    names = _architectures(folder)
    if (
        folder / "modules.json"
    ).is_file():  # of sentence-transformers, whatever the model could do besides
        return Kind.EMBEDDINGS
    if any(name.endswith("ForCausalLM") for name in names):
        return Kind.TEXT
    if any(name.endswith("Model") for name in names):
        return Kind.EMBEDDINGS
    raise InvalidArgument(
        "UNKNOWN_ARCHITECTURE",
        f"{folder}/config.json names {names or 'no architecture'}: this engine serves ...ForCausalLM, "
        "...Model and sentence-transformers' folders (embeddings), and Diffusers folders with a model_index.json",
    )


def _architectures(folder: Path) -> list[str]:
    try:
        config: Any = json.loads((folder / "config.json").read_text())
        names = config.get("architectures") or []
    except (OSError, ValueError, AttributeError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []
