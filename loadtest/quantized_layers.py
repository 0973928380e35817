"""What a quantized layer of a 70B Llama costs on a GPU, by its kernel and by unpacking it.

    python -m loadtest.quantized_layers

Guards `INT4_ROWS_MAX` of the engine: from which number of rows on unpacking is faster. Each row of the table is one layer
in int4 or fp8, replayed as a graph; both ways must agree first. Times are microseconds, medians of 20; the last column is
all 80 layers' milliseconds by the way that the engine takes.
"""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from compressed_tensors.compressors import compress_module
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

from loadtest.shapes import FP8, INT4
from woodfrog.engine.quantized import QuantizedLinear

ROWS = (8, 32, 64, 128, 256)
LAYERS = {"q, o": (8192, 8192, 2), "k, v": (8192, 1024, 2), "gate, up": (8192, 28672, 2), "down": (28672, 8192, 1)}  # fmt: skip
_REPEATS = 20
_AGREE = {"int4": 0.01, "fp8": 0.06}  # of the result's length; fp8 quantizes activations too


def layer_of(said: Mapping[str, Any], inputs: int, outputs: int) -> QuantizedLinear:
    with torch.device("cuda"):
        model = torch.nn.Sequential(torch.nn.Linear(inputs, outputs, bias=False).bfloat16())
    scheme = {**said, "quantization_status": "initialized"}
    apply_quantization_config(model, QuantizationConfig.model_validate(scheme))
    layer: Any = model[0]
    # Uniform weights up to 1 / √inputs; scales that differ, so that one in the wrong place shows.
    most = inputs**-0.5 / (448 if said is FP8 else 7)
    layer.weight_scale.data.uniform_(0.8, 1.2).mul_(most)
    layer.weight_zero_point.data.zero_()
    compress_module(layer)
    return QuantizedLinear(layer)


def microseconds(function: Callable[[], Any]) -> float:
    function()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    taken: list[float] = []
    for _ in range(_REPEATS):
        torch.empty(64 << 20, device="cuda").zero_()  # nothing of the layer is left in the cache
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) * 1000)
    return statistics.median(taken)


def main() -> None:
    with torch.inference_mode():
        _measure()


def _measure() -> None:
    print("format rows layer | kernel unpacked | error | bytes in between | 80 layers, ms")
    for kind, said in (("int4", INT4), ("fp8", FP8)):
        layers = {name: layer_of(said, *shape[:2]) for name, shape in LAYERS.items()}
        for rows in ROWS:
            total = 0.0
            for name, layer in layers.items():
                x = torch.randn(rows, layer.in_features, device="cuda").bfloat16()
                total += 80 * LAYERS[name][2] * _measured(f"{kind} {rows} {name}", layer, x) / 1000
            print(f"{kind} {rows} all | {total:.1f} ms")


def _measured(label: str, layer: QuantizedLinear, x: Any) -> float:
    """Prints a line; microseconds by the way that the engine takes."""
    kernel = layer._kernel
    assert kernel is not None, "this GPU has no kernel for it"

    def unpacked() -> Any:
        return torch.nn.functional.linear(x, layer.unpacked())

    plain = unpacked().float()
    error = ((kernel(x).float() - plain).norm() / plain.norm()).item()
    assert error < _AGREE[label.split()[0]], (
        f"{label}: kernel and unpacked weights differ by {error}"
    )
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    unpacked()
    between = torch.cuda.max_memory_allocated() - before
    times = microseconds(lambda: kernel(x)), microseconds(unpacked)
    print(f"{label} | {times[0]:.0f} {times[1]:.0f} | {error:.4f} | {between / 1e6:.0f} MB")
    return times[0] if x.shape[0] <= layer._kernel_rows_max else times[1]


if __name__ == "__main__":
    main()
