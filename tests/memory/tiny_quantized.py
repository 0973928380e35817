"""Folders of tiny Llamas that compressed-tensors has quantized, as it publishes them."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from compressed_tensors.compressors import compress_module
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from compressed_tensors.quantization.utils import calculate_qparams

from woodfrog.cli import tiling

WORDS = 97
_SHAPE = {
    "vocab_size": WORDS, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "initializer_range": 0.1, "tie_word_embeddings": False, "attention_bias": True,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
_FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
SCHEMES: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "int4": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 128}, None),
    "int4-groups-of-32": (
        "pack-quantized",
        {"num_bits": 4, "strategy": "group", "group_size": 32, "actorder": "weight"},
        None,
    ),
    "int4-channels": ("pack-quantized", {"num_bits": 4, "strategy": "channel"}, None),
    "fp8": (
        "float-quantized",
        {**_FP8, "strategy": "channel"},
        {**_FP8, "strategy": "token", "dynamic": True},
    ),
    "fp8-tensors": (
        "float-quantized",
        {**_FP8, "strategy": "tensor"},
        {**_FP8, "strategy": "tensor"},
    ),
    "fp8-blocks": (
        "float-quantized",
        {**_FP8, "strategy": "block", "block_structure": [128, 128]},
        {**_FP8, "strategy": "group", "group_size": 128, "dynamic": True},
    ),
    "fp8-weights": ("naive-quantized", {**_FP8, "strategy": "channel"}, None),
    "int8": (
        "int-quantized",
        {"num_bits": 8, "strategy": "channel"},
        {"num_bits": 8, "strategy": "token", "dynamic": True},
    ),
}


def make(folder: Path, name: str) -> Path:
    """A new folder, with the folders above it."""
    form, weights, inputs = SCHEMES[name]
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    said = {
        "quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"],
        "config_groups": {"group_0": group}, "quantization_status": "frozen", "version": "0.11.0",
        "global_compression_ratio": 1.9, "kv_cache_scheme": None, "sparsity_config": {}, "transform_config": {},
    }  # fmt: skip
    torch.manual_seed(3)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SHAPE)).to(torch.bfloat16)
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(value, std=0.1)
    apply_quantization_config(model, QuantizationConfig.model_validate(said))
    for module in model.modules():
        if hasattr(module, "quantization_scheme"):
            _calibrate(module)
            compress_module(module, form)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(quantization_config=said, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def tile(folder: Path, out: Path) -> Path:
    """As `models add` does it for a GPU."""
    names = [path.name for path in folder.iterdir()]
    tiling.tile(folder, names, tiling.layers_to_tile(folder), out)
    return out


def _calibrate(module: Any) -> None:
    """Scales of a linear layer, from the largest and the smallest of its weights."""
    args = module.quantization_scheme.weights
    scale = module.weight_scale
    rows, columns = scale.shape if scale.dim() == 2 else (1, 1)
    blocks = module.weight.data.unflatten(1, (columns, -1)).unflatten(0, (rows, -1))
    least, most = blocks.amin((1, 3)), blocks.amax((1, 3))
    scales, zeros = calculate_qparams(least, most, args)
    module.weight_scale.data = scales.reshape(scale.shape).to(scale.dtype)
    module.weight_zero_point.data = zeros.reshape(scale.shape).to(module.weight_zero_point.dtype)
    if hasattr(module, "input_scale"):
        module.input_scale.data.fill_(0.02)
