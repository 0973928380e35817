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
    CLASSIFIER = "classifier"
    VISION = "vision"
    """Text from text and images."""


_PICTURE_CLASSIFIER = "ForImageClassification"


def kind_of(folder: Path) -> Kind:
    """Raises InvalidArgument when it is none that this engine serves."""
    if (folder / "model_index.json").is_file():
        return Kind.IMAGES
    config = _config(folder)
    names = _architectures(config)
    if any(name.endswith(("ForSequenceClassification", _PICTURE_CLASSIFIER)) for name in names):
        return Kind.CLASSIFIER
    if (
        folder / "modules.json"
    ).is_file():  # of sentence-transformers, whatever the model could do besides
        return Kind.EMBEDDINGS
    if any(name.endswith("ForCausalLM") for name in names):
        return Kind.TEXT
    sees = isinstance(config.get("vision_config"), dict)
    if sees and any(name.endswith("ForConditionalGeneration") for name in names):
        return Kind.VISION
    if any(name.endswith("Model") for name in names):
        return Kind.EMBEDDINGS
    raise InvalidArgument(
        "UNKNOWN_ARCHITECTURE",
        f"{folder}/config.json names {names or 'no architecture'}: this engine serves ...ForCausalLM, "
        "...ForConditionalGeneration with a vision_config, ...Model and sentence-transformers' folders (embeddings),"
        " ...ForSequenceClassification and ...ForImageClassification, and Diffusers folders with a model_index.json",
    )


def classifies_pictures(folder: Path) -> bool:
    """Of a folder of the kind CLASSIFIER: whether its inputs are pictures, not texts."""
    return any(name.endswith(_PICTURE_CLASSIFIER) for name in _architectures(_config(folder)))


def _config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _architectures(config: dict[str, Any]) -> list[str]:
    names = config.get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []
