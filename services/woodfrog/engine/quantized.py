"""Quantized language models: linear layers that compute from the weights as they lie in the files.

Files, configuration and unpacking are the library's, compressed-tensors. By itself Transformers would unpack the whole
model at its first forward pass, into memory of the process; here a layer is unpacked while it computes, and two formats
have kernels of PyTorch that take what is packed:

- int4 in groups, on a GPU and for few rows, where the weights were tiled when the model was added (`int4_tiles`);
- fp8 on a GPU that multiplies it: activations are quantized too, row by row, as the files' own configuration says.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear
from tqdm import tqdm

from woodfrog.errors import InvalidArgument
from woodfrog.replica import int4_tiles

METHOD = "compressed-tensors"
FORMATS = (int4_tiles.PACKED, "float-quantized", "int-quantized", "naive-quantized")
INT4_ROWS_MAX = 128  # measured by loadtest.quantized_layers: of more rows, unpacking costs less
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True)
class Quantization:
    settings: dict[str, Any]  # for Transformers, which knows no tiles
    tiled: bool  # int4 layers that fit are


def quantization_of(config: Any, folder: Path) -> Quantization | None:
    """What a model's configuration says about quantized weights; None when it says nothing.

    Raises InvalidArgument for weights that this engine cannot compute with.
    """
    said = getattr(config, "quantization_config", None)
    if said is None:
        return None
    tiled = isinstance(said, dict) and said.get("format") == int4_tiles.TILED
    if tiled:
        said = {**said, "format": int4_tiles.PACKED}
    if why := _refused(said if isinstance(said, dict) else {}, config):
        raise InvalidArgument(
            "UNKNOWN_QUANTIZATION",
            f"{folder}/config.json says that {why}, which this engine cannot compute with; take a folder with the model's"
            f" plain weights, or one of {METHOD} with linear layers in fp8, int8 or packed int4",
        )
    tqdm.monitor_interval = 0  # the library's progress bars would start a thread that never ends
    # Older files call themselves frozen; that they are packed is what the format says.
    return Quantization({**said, "quantization_status": "compressed"}, tiled)


def _refused(said: dict[str, Any], config: Any) -> str | None:
    """What is wrong, as the middle of a sentence."""
    if said.get("quant_method") != METHOD:
        return f"its weights are quantized by {str(said.get('quant_method'))[:50]!r}"
    if said.get("format") not in FORMATS:
        return f"its weights have the format {str(said.get('format'))[:50]!r}"
    if said.get("kv_cache_scheme"):
        return "its KV cache is quantized"
    if said.get("transform_config") or _sparse(said.get("sparsity_config")):
        return "its weights are sparse or transformed"
    text = config.get_text_config()
    if any(getattr(text, name, None) for name in _EXPERTS):
        return "it is a quantized mixture of experts"
    groups = said.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        return "its quantization has no groups of layers"
    faults = (_fault_of(group, said["format"]) for group in groups.values())
    return next((why for why in faults if why), None) or _invalid(said)


def _invalid(said: dict[str, Any]) -> str | None:
    from compressed_tensors.quantization import QuantizationConfig
    from pydantic import ValidationError

    try:
        QuantizationConfig.model_validate(said)
    except ValidationError as error:
        return f"its weights are quantized so that {METHOD} refuses them ({error.errors()[0]['msg'][:150]})"
    except (ValueError, TypeError, NotImplementedError) as error:  # from its own validators
        return f"its weights are quantized so that {METHOD} refuses them ({str(error)[:150]})"
    return None


def _sparse(said: Any) -> bool:
    return bool(said) and not (isinstance(said, dict) and said.get("format", "dense") == "dense")


def _fault_of(group: Any, format: str) -> str | None:
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict) or group.get("output_activations"):
        return "a group of layers is quantized in something else than its weights and inputs"
    targets = group.get("targets")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        return "a group of layers has no list of targets"
    if "Embedding" in targets:
        return "its embeddings are quantized"
    if group.get("format") not in (None, format):
        return "its groups of layers have several formats"
    if weights.get("dynamic"):
        return "its weights are quantized while it computes"
    if format == int4_tiles.PACKED and weights.get("type", "int") != "int":
        return "its packed weights are no integers"
    bits = weights.get("num_bits")
    if bits != (4 if format == int4_tiles.PACKED else 8):
        return f"its weights are {format} with {str(bits)[:10]} bits"
    if format == int4_tiles.PACKED and weights.get("symmetric", True) is not True:
        return "its packed weights have zero points"
    return None


def install(model: Any, *, tiled: bool) -> None:
    """Puts layers of ours, with the same parameters, in the place of those that Transformers built."""
    model.hf_quantizer.compressor.remove_decompression_hook(model)
    found = [(n, m) for n, m in model.named_modules() if hasattr(m, "quantization_scheme")]
    for name, module in found:
        if not isinstance(module, torch.nn.Linear):
            raise InvalidArgument(
                "UNKNOWN_QUANTIZATION",
                f"{name} is quantized and a {type(module).__name__}; this engine computes with quantized linear layers"
                " only: take a folder with the model's plain weights",
            )
        model.set_submodule(name, QuantizedLinear(module, tiled=tiled))


def layers_of(model: Any) -> dict[str, "QuantizedLinear"]:
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantizedLinear)}


class QuantizedLinear(torch.nn.Module):  # type: ignore[misc]
    """Has the parameters of the layer it stands for, by their names in the files."""

    def __init__(self, layer: torch.nn.Linear, *, tiled: bool = False) -> None:
        """`layer` as the library leaves it when it has made room for packed weights; of a folder that is `tiled` or not."""
        from compressed_tensors.compressors import BaseCompressor

        super().__init__()
        for name, parameter in layer._parameters.items():
            self.register_parameter(name, parameter)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._scheme: Any = layer.quantization_scheme
        compressor = BaseCompressor.get_value_from_registry(self._scheme.format.value)
        self._unpack: Callable[..., dict[str, Any]] = compressor.decompress
        self._tiled = tiled and int4_tiles.fits(self.weight_packed.shape, self.weight_scale.shape)
        self._kernel, self._kernel_rows_max = self._kernel_of(self._scheme)

    def forward(self, x: Any) -> Any:
        rows = x.numel() // self.in_features
        fits = x.is_cuda and x.dtype == torch.bfloat16 and rows <= self._kernel_rows_max
        if self._kernel is None or not fits:
            return linear(x, self.unpacked().to(x.dtype), self.bias)
        out = self._kernel(x.reshape(rows, self.in_features)).unflatten(0, x.shape[:-1])
        return out if self.bias is None else out + self.bias

    def unpacked(self) -> Any:
        """The weights (out_features, in_features) in the dtype of their scales, in memory of their own."""
        state = {name: value for name, value in self._parameters.items() if value is not None}
        # In place of the file's tensor: to read it, the CPU would have to wait for the GPU.
        state["weight_shape"] = (self.out_features, self.in_features)
        if self._tiled:
            state["weight_packed"] = int4_tiles.packed(self.weight_packed)
            state["weight_scale"] = self._scales_by_group().t()
        return self._unpack(state, self._scheme)["weight"]

    def _kernel_of(self, scheme: Any) -> tuple[Callable[[Any], Any] | None, int]:
        """What computes from packed weights on a GPU, and for how many rows at most."""
        weights = scheme.weights
        if self._tiled:
            if weights.strategy == "group" and self.weight_scale.dtype == torch.bfloat16:
                return self._by_int4, INT4_ROWS_MAX
        elif weights.type == "float" and scheme.input_activations is not None:
            fits = self.in_features % 16 == 0 and self.out_features % 16 == 0
            whole = weights.strategy in ("channel", "tensor") and weights.symmetric
            if fits and whole and _multiplies_fp8():
                return self._by_fp8, 1 << 30
        return None, 0

    def _by_int4(self, x: Any) -> Any:
        """x (rows, in_features) in bfloat16."""
        scales = self._scales_by_group()
        # The kernel wants a zero point behind each scale: 16 more bits that are zero.
        pairs = scales.view(torch.uint16).to(torch.int32).view(torch.bfloat16)
        return torch._weight_int4pack_mm(
            x.contiguous(),
            self.weight_packed.view(self.out_features // 8, -1, 32, 4),
            self.in_features // len(scales),
            pairs.view(*scales.shape, 2),
        )

    def _scales_by_group(self) -> Any:
        """Of a tiled layer: (groups, out_features)."""
        return self.weight_scale.view(-1, self.out_features)

    def _by_fp8(self, x: Any) -> Any:
        """x (rows, in_features)."""
        from transformers.integrations.compressed_tensors import (
            _scaled_mm_rowwise,
            quantize_fp8_per_row,
        )

        small, scales = quantize_fp8_per_row(x)
        columns = self.weight_scale.float().reshape(1, -1).expand(1, self.out_features)
        return _scaled_mm_rowwise(
            small, self.weight.t(), scales.unsqueeze(1), columns.contiguous(), x.dtype
        )


def _multiplies_fp8() -> bool:
    return bool(torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9))
