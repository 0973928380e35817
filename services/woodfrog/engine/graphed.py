"""Any module's forward pass as a captured CUDA graph, one for each shape of its inputs."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from woodfrog.replica.device import DeviceMemory
from woodfrog.replica.graph_pool import GraphPool

SHAPES_MAX = 16  # of one function; what comes later is launched kernel by kernel


class Graphs:
    """The graphs of one process. All share one pool, so one runs at a time, and an output is valid until the next."""

    def __init__(self, memory: DeviceMemory) -> None:
        self.pool = GraphPool(memory)
        self.stream = torch.cuda.Stream()
        self.complete = False  #: what comes now is launched kernel by kernel: a request must not take more memory

    def of(self, function: Callable[..., Any]) -> "Graphed":
        return Graphed(self, function)


class Graphed:
    """Call it as the function. Arguments that are no tensors are part of the shape."""

    def __init__(self, graphs: Graphs, function: Callable[..., Any]) -> None:
        self._graphs = graphs
        self._function = function
        self._captured: dict[Any, tuple[list[Any], Any, Any]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, tree = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        key = (str(tree), tuple(map(_shape, leaves)))
        if key not in self._captured:
            full = self._graphs.complete or len(self._captured) >= SHAPES_MAX
            if full or not all(t.is_cuda for t in tensors):
                return self._function(*args, **kwargs)
            self._captured[key] = self._capture(leaves, tree)
        inputs, graph, output = self._captured[key]
        for mine, given in zip(inputs, tensors, strict=True):
            mine.copy_(given)
        graph.replay()
        # The pool is used again by the next graph, so what goes out is a copy.
        return pytree.tree_map_only(torch.Tensor, torch.clone, output)

    def _capture(self, leaves: list[Any], tree: Any) -> tuple[list[Any], Any, Any]:
        stream, pool = self._graphs.stream, self._graphs.pool.pool
        with torch.cuda.use_mem_pool(pool):  # what a request brought must not outlive a park either
            own = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(own, tree)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), self._graphs.pool.allocating():
            self._function(*args, **kwargs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=pool.id, stream=stream, capture_error_mode="thread_local"
        ):
            output = self._function(*args, **kwargs)
        inputs = [leaf for leaf in own if isinstance(leaf, torch.Tensor)]
        return inputs, graph, output


def _shape(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return (tuple(leaf.shape), leaf.dtype, leaf.stride())
    return leaf if isinstance(leaf, str | int | float | bool | None) else str(leaf)
