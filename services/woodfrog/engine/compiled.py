"""A text model's layers compiled by torch.compile: once for all layers and all shapes of batches, before the first request.

What is compiled is a region (a decoder layer, the last norm, the rotary tables) and not the whole model, whose compilation would
take as many times longer as it has layers. A snapshot holds what was compiled, so only the first start pays for it.
"""

import gc
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from woodfrog.engine.graphs import Shapes
from woodfrog.errors import FailedPrecondition, Internal, InvalidArgument

_CACHE = "TORCHINDUCTOR_CACHE_DIR"
#: Times that one function may be compiled: with and without tokens from the cache, for each kind of layer.
_VARIANTS_MAX = 16


def prepare() -> None:
    """Tells PyTorch how to compile, in this process. Raises FailedPrecondition NO_COMPILER."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    lacking = (
        "a C++ compiler (g++)" if shutil.which(os.environ.get("CXX", "g++")) is None
        else "a C compiler (gcc)" if shutil.which(os.environ.get("CC", "gcc")) is None
        else "" if header.is_file() else f"Python's headers ({header})"
    )  # fmt: skip
    if lacking:
        raise FailedPrecondition(
            "NO_COMPILER",
            f"the model cannot be compiled because this machine lacks {lacking}; install it, or add the model without"
            " --compile",
        )
    import torch._dynamo
    import torch._inductor.config
    import torch.fx.experimental._config

    # PyTorch has set it by now, to a folder that it takes everything from that lies there.
    os.environ[_CACHE] = tempfile.mkdtemp(prefix="woodfrog-compiled-")
    os.environ["TRITON_CACHE_DIR"] = os.environ[_CACHE] + "/triton"
    tqdm.monitor_interval = 0  # the compiler's progress bars would start a thread that never ends
    inductor, dynamo = torch._inductor.config, torch._dynamo.config
    inductor.compile_threads = (
        1  # no processes and no threads beside this one: a snapshot would hold them
    )
    inductor.fx_graph_cache = False  # nobody would find it again
    inductor.cpp_cache_precompile_headers = False  # 60 MB, for the next of a few compilations
    dynamo.recompile_limit = _VARIANTS_MAX
    dynamo.fail_on_recompile_limit_hit = True
    # A layer's number is an argument, so that one compilation serves all layers.
    torch.compiler.config.dynamic_sources = r".*\.layer_idx"
    # Sizes that happen to be equal may differ in the next batch.
    torch.fx.experimental._config.use_duck_shape = False


def install(manager: Any, model: Any, shapes: Shapes | None) -> None:
    """Has a manager that is warm compute with compiled layers; compiles them, for batches of `shapes` if there are such.

    Until `seal`, a batch of another kind is an error. Raises InvalidArgument CANNOT_COMPILE and Internal COMPILE_FAILED.
    """
    runner = manager.batch_processor.model_runner
    runner.pad_inputs = True
    runner.maybe_pad_inputs = shapes.padded if shapes else padded
    _install_update(runner.cache, model)
    compile_regions(model)
    seen = _Witness(model)
    run: Callable[..., float] = runner.run_one_warmup
    largest = (runner.cache.max_batch_tokens, runner.cache.max_tokens_read)
    batches = shapes.all() if shapes else [largest, (largest[0], 0), (2, 2), (2, 0)]
    for queries, reads in batches:
        run(seen, num_q_tokens=queries, max_kv_read=reads)
    runner.cache.reset()
    if seen.passes != len(batches):  # the manager only logs what went wrong
        raise Internal("COMPILE_FAILED", "the model could not be compiled; the log says why")
    torch.compiler.set_stance("fail_on_recompile")  # what captures now captures compiled layers


def seal() -> None:
    """From now on nothing is compiled in this process: what would need it is computed as it is written."""
    torch.compiler.set_stance("eager_on_recompile")
    gc.collect()  # a process that loads collects nothing, and a compiler leaves much


def compile_regions(model: Any) -> None:
    """Each is compiled at its first call. Raises InvalidArgument CANNOT_COMPILE."""
    torch.compiler.set_stance("default")
    for region in regions_of(model):
        region.compile(dynamic=True)


def padded(num_q_tokens: int, max_kv_read: int, use_decode_fast_path: bool) -> tuple[int, int]:
    """In the form of the manager's own `maybe_pad_inputs`: a size of one is another program to the compiler."""
    return max(2, num_q_tokens), max(2, max_kv_read) if max_kv_read else 0


class _Witness:
    """Stands where the manager has its model, and counts its passes."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.passes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **batch: Any) -> Any:
        output = self._model(**batch)
        self.passes += 1
        return output


def regions_of(model: Any) -> list[Any]:
    """Modules to compile: the decoder layers, and what is computed once beside them.

    Raises InvalidArgument for a model that is built otherwise.
    """
    count = model.config.get_text_config().num_hidden_layers
    for stack in model.modules():
        for layers in stack.children():
            if isinstance(layers, torch.nn.ModuleList) and len(layers) == count:
                beside = [m for m in stack.children() if _computes(m)]
                return [*layers, *beside]
    raise InvalidArgument(
        "CANNOT_COMPILE",
        f"{type(model).__name__} has no list of {count} layers to compile; add the model without --compile",
    )


def _computes(module: Any) -> bool:
    """More than one kernel that a compiler could make one of."""
    return not isinstance(module, torch.nn.ModuleList | torch.nn.Embedding | torch.nn.Linear)


def _install_update(cache: Any, model: Any) -> None:
    """Gives the manager's cache an `update` that is one operation to the compiler, which by itself would stop there."""
    if len(cache.cache_allocators) != 1:
        raise InvalidArgument(
            "CANNOT_COMPILE",
            f"{type(model).__name__} has layers with several kinds of attention; add the model without --compile",
        )
    _CACHES.append(cache)
    number = len(_CACHES) - 1

    def update(key: Any, value: Any, layer_idx: int, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        read, write = kwargs["read_index"][0], kwargs["write_index"][0]
        found: tuple[Any, Any] = _update(key, value, read, write, layer_idx, number)
        return found

    cache.update = update


_CACHES: list[Any] = []


@torch.library.custom_op("woodfrog::update", mutates_args=())  # type: ignore[untyped-decorator]
def _update(
    key: torch.Tensor,
    value: torch.Tensor,
    read: torch.Tensor,
    write: torch.Tensor,
    layer: int,
    cache: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (1, heads, tokens, size) go to the cache; with those that `read` names before them, if any."""
    allocator = _CACHES[cache].layer_to_allocator[layer]
    rows = [x.squeeze(0).transpose(0, 1) for x in (key, value)]
    found = allocator.update(*rows, layer, read, write)
    if not read.numel():
        found = [x.clone(memory_format=torch.contiguous_format) for x in found]
    return tuple(x.transpose(0, 1).unsqueeze(0) for x in found)


@_update.register_fake  # type: ignore[untyped-decorator]
def _shapes(key: Any, value: Any, read: Any, write: Any, layer: int, cache: int) -> tuple[Any, Any]:
    tokens = read.shape[0] or key.shape[2]

    def like(x: Any) -> Any:
        return x.new_empty((tokens, x.shape[1], x.shape[3])).transpose(0, 1).unsqueeze(0)

    return like(key), like(value)
