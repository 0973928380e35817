"""Folders of tiny classifiers with random weights, and pictures as clients send them."""

import io
import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tests.memory import tiny_encoders

SIDE = 32  # of the pictures that models compute with
LABELS = ["frog", "newt", "toad", "pond", 'a "quoted" one']
PROCESSOR: dict[str, Any] = {
    "image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE},
    "do_resize": True, "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7],
}  # fmt: skip
_OF_PICTURES: dict[str, dict[str, Any]] = {
    "ViTForImageClassification": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
        "image_size": SIDE, "patch_size": 8, "initializer_range": 0.3,
    },
    "ResNetForImageClassification": {
        "embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic",
    },
}  # fmt: skip


def of_pictures(folder: Path, name: str = "ViTForImageClassification", **processor: Any) -> Path:
    """`processor` changes what pictures become."""
    _save(folder, name, _OF_PICTURES[name])
    (folder / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **processor}))
    return folder


def of_texts(folder: Path, name: str = "BertForSequenceClassification", **config: Any) -> Path:
    _save(folder, name, {**tiny_encoders.SHAPE, **config})
    tiny_encoders.write_tokenizer(folder)
    return folder


def _save(folder: Path, name: str, config: dict[str, Any]) -> None:
    kind = getattr(transformers, name)
    torch.manual_seed(5)
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
    model = kind(kind.config_class(**{**names, **config})).eval()
    with torch.no_grad():  # as trained ones are: what a batch normalizes by is no one and zero
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    model.save_pretrained(folder)


def picture(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)


def data_url(image: Image.Image, form: str = "PNG") -> str:
    data = io.BytesIO()
    image.save(data, form)
    return f"data:image/{form.lower()};base64,{b64encode(data.getvalue()).decode()}"
