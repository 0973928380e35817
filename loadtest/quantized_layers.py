"""What a quantized layer of a 70B Llama costs on a GPU, by its kernel and by unpacking it.

    python -m loadtest.quantized_layers

Guards that int4 weights are tiled as PyTorch's kernel wants them, and `INT4_ROWS_MAX` of the engine: from which number of
rows on unpacking is faster. Each row of the table is one layer in int4 or fp8, replayed as a graph; all ways must agree
first. "as in the files" are int4 weights that nobody tiled: the kernel's tiles are made in each pass. Times are
microseconds, medians of 20; "all" is all 80 layers' milliseconds by the way that the engine takes.
"""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from compressed_tensors.compressors import compress_module
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

from loadtest.shapes import FP8, INT4, int4
from woodfrog.engine.quantized import INT4_ROWS_MAX, QuantizedLinear
from woodfrog.replica import int4_tiles

ROWS = (8, 32, 64, 128, 256, 512)
LAYERS = {"q, o": (8192, 8192, 2), "k, v": (8192, 1024, 2), "gate, up": (8192, 28672, 2), "down": (28672, 8192, 1)}  # fmt: skip
TILED = ((8, 128), (24, 384), (1024, 640), (1024, 8192), (8192, 28672))  # rows, columns
GROUPS = (32, 64, 128, 256)
_REPEATS = 20
_AGREE = {"int4": 0.01, "fp8": 0.06}  # of the result's length; fp8 quantizes activations too


def layer_of(
    said: Mapping[str, Any], inputs: int, outputs: int, device: str = "cuda"
) -> QuantizedLinear:
    """As it is in a folder."""
    with torch.device(device):
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


def tiled(layer: QuantizedLinear) -> QuantizedLinear:
    """An int4 layer as `models add` stores it for a GPU; tiled on the CPU, as there."""
    linear: Any = torch.nn.Linear(layer.in_features, layer.out_features, device="meta")
    linear.quantization_scheme = layer._scheme
    changes = {"weight_packed": int4_tiles.tiled, "weight_scale": int4_tiles.by_group}
    linear._parameters = {
        name: torch.nn.Parameter(changes[name](value.cpu()).to(value.device), requires_grad=False)
        for name, value in layer._parameters.items()
        if name in changes
    }
    return QuantizedLinear(linear, tiled=True)


def anew(layer: QuantizedLinear, x: Any) -> Any:
    """What x (rows, inputs) gives by the kernel, from weights as in the files."""
    tiles = torch._convert_weight_to_int4pack(layer.weight_packed.view(torch.uint8), 8)
    # Of two weights in a byte the kernel takes the high half first, the files have it second.
    swapped = x.unflatten(1, (-1, 2)).flip(2).flatten(1)
    scales = layer.weight_scale.t()
    scales = torch.stack((scales, torch.zeros_like(scales)), dim=2)  # and zero points
    return torch._weight_int4pack_mm(swapped, tiles, layer._scheme.weights.group_size, scales)


def check_tiles(rows: int, columns: int, device: str = "cuda") -> None:
    """Random weights that are tiled on the CPU are those that the device tiles, and the device undoes it."""
    packed = torch.randint(-(1 << 31), 1 << 31, (rows, columns // 8)).int()
    of_bytes = packed.to(device).view(torch.uint8)
    expected = torch._convert_weight_to_int4pack(of_bytes << 4 | of_bytes >> 4, 8)
    tiles = int4_tiles.tiled(packed).to(device)
    assert torch.equal(tiles.view(expected.shape), expected), f"{rows} × {columns}: other tiles"
    assert torch.equal(int4_tiles.packed(tiles).cpu(), packed), f"{rows} × {columns}: not undone"


def check_group(group: int, device: str = "cuda") -> None:
    """A small layer gives by the kernel what its unpacked weights give, tiled or not."""
    layer = layer_of(int4(group), 1024, 256, device)
    ready = tiled(layer)
    assert torch.equal(ready.unpacked(), layer.unpacked()), f"groups of {group}: other weights"
    x = torch.randn(16, 1024, device=device).bfloat16()
    for way, found in (("tiled", ready._by_int4(x)), ("as in the files", anew(layer, x))):
        agree(f"int4 groups of {group}, {way}", found, x, layer.unpacked())


def agree(label: str, found: Any, x: Any, weights: Any) -> float:
    """The error, as part of the result's length."""
    plain = (x @ weights.t()).float()
    error = float(((found.float() - plain).norm() / plain.norm()).item())
    assert error < _AGREE[label.split()[0]], f"{label}: differs by {error}"
    return error


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
        for rows, columns in TILED:
            check_tiles(rows, columns)
        for group in GROUPS:
            check_group(group)
        print(f"tiles of {len(TILED)} shapes and layers of {len(GROUPS)} sizes of groups are right")
        _measure()


def _measure() -> None:
    print("format rows layer | kernel unpacked | error | bytes in between | as in the files")
    for kind, said in (("int4", INT4), ("fp8", FP8)):
        filed = {name: layer_of(said, *shape[:2]) for name, shape in LAYERS.items()}
        layers = {n: tiled(layer) for n, layer in filed.items()} if kind == "int4" else filed
        for rows in ROWS:
            total = before = 0.0
            for name, layer in layers.items():
                x = torch.randn(rows, layer.in_features, device="cuda").bfloat16()
                taken = _measured(f"{kind} {rows} {name}", layer, x)
                line, old = _as_filed(filed[name], x) if kind == "int4" else ("", 0.0)
                print(f"{taken[0]}{line}")
                total += 80 * LAYERS[name][2] * taken[1] / 1000
                before += 80 * LAYERS[name][2] * old / 1000
            print(f"{kind} {rows} all | {total:.1f} ms" + f" | {before:.1f} ms" * (before > 0))


def _measured(label: str, layer: QuantizedLinear, x: Any) -> tuple[str, float]:
    """A line; microseconds by the way that the engine takes."""
    kernel = layer._kernel
    assert kernel is not None, "this GPU has no kernel for it"

    def unpacked() -> Any:
        return torch.nn.functional.linear(x, layer.unpacked())

    error = agree(label, kernel(x), x, layer.unpacked())
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    unpacked()
    between = torch.cuda.max_memory_allocated() - before
    times = microseconds(lambda: kernel(x)), microseconds(unpacked)
    line = f"{label} | {times[0]:.0f} {times[1]:.0f} | {error:.4f} | {between / 1e6:.0f} MB"
    return line, times[0] if x.shape[0] <= layer._kernel_rows_max else times[1]


def _as_filed(layer: QuantizedLinear, x: Any) -> tuple[str, float]:
    """The end of the line, and microseconds, for int4 weights that are not tiled."""
    times = (
        microseconds(lambda: anew(layer, x)),
        microseconds(lambda: torch.nn.functional.linear(x, layer.unpacked())),
    )
    return f" | {times[0]:.0f} {times[1]:.0f}", times[x.shape[0] > INT4_ROWS_MAX]


if __name__ == "__main__":
    main()
