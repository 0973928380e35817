"""Few shapes of batches, and a CUDA graph for each: what a step launches is then one call.

A woken process pays for every kernel that it launches by itself for the first time (0.6 to 1 s for all of a forward pass); a
graph that was captured before the snapshot is launched as it is.
"""

from collections.abc import Callable
from typing import Any

import torch

from woodfrog.errors import Internal
from woodfrog.replica.graph_pool import GraphPool

_QUERIES_MIN = 8
_READS_MIN = 512
# From one size to the next: fewer graphs and fewer kernels, so smaller snapshots, for some idle work.
_QUERIES_FACTOR = 8
_READS_FACTOR = 4


class Shapes:
    """Few sizes up to the limits. A batch is padded to the next."""

    def __init__(self, queries_max: int, reads_max: int) -> None:
        self.queries = _sizes(_QUERIES_MIN, queries_max, _QUERIES_FACTOR)
        # Tokens read from the cache, of all sequences.
        self.reads = _sizes(_READS_MIN, reads_max, _READS_FACTOR)

    @classmethod
    def of(cls, manager: Any) -> "Shapes":
        """Up to what a manager that is warm can compute in one step."""
        cache = manager.batch_processor.model_runner.cache
        return cls(cache.max_batch_tokens, cache.max_tokens_read)

    def padded(
        self, num_q_tokens: int, max_kv_read: int, use_decode_fast_path: bool
    ) -> tuple[int, int]:
        """In the form of the manager's own `maybe_pad_inputs`."""
        queries = next(size for size in self.queries if size >= num_q_tokens)
        reads = next(size for size in self.reads if size >= max_kv_read) if max_kv_read else 0
        return queries, reads

    def all(self) -> list[tuple[int, int]]:
        """Largest first, so that later ones fit into the memory of earlier ones."""
        return [(q, kv) for q in reversed(self.queries) for kv in (*reversed(self.reads), 0)]


class GraphedModel:
    """Stands where the manager has its model."""

    def __init__(self, model: Any, pool: GraphPool) -> None:
        self._model = model
        self._pool = pool
        self._graphs: dict[tuple[int, ...], tuple[Any, Any]] = {}

    @property
    def graph_count(self) -> int:
        return len(self._graphs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **batch: Any) -> Any:
        """The model's output; valid until the next call."""
        queries, reads = batch["input_ids"].shape[1], batch["read_index"][0].shape[0]
        key = (queries, reads, batch["logits_indices"].shape[0])
        if key not in self._graphs:
            self._graphs[key] = self._captured(batch)
        graph, output = self._graphs[key]
        graph.replay()
        return output

    def _captured(self, batch: Any) -> tuple[Any, Any]:
        """The manager's tensors are the same at each step, so what is captured once stays right."""

        def copy() -> dict[str, Any]:  # the model takes things out of its arguments
            return {k: dict(v) if isinstance(v, dict) else v for k, v in batch.items()}

        with self._pool.allocating():
            self._model(**copy())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph,
            pool=self._pool.pool.id,
            stream=torch.cuda.current_stream(),
            capture_error_mode="thread_local",
        ):
            output = self._model(**copy())
        return graph, output


def install(manager: Any, model: Any, pool: GraphPool) -> None:
    """Has a manager that is warm pad its batches, and replay graphs. Computes each shape once.

    Raises Internal GRAPHS_FAILED.
    """
    runner = manager.batch_processor.model_runner
    shapes = Shapes.of(manager)
    graphed = GraphedModel(model, pool)
    runner.pad_inputs = True
    runner.maybe_pad_inputs = shapes.padded
    run: Callable[..., float] = runner.run_one_warmup
    for queries, reads in shapes.all():
        run(graphed, num_q_tokens=queries, max_kv_read=reads)
    runner.cache.reset()
    expected = len(shapes.all())
    if graphed.graph_count != expected:  # the manager only logs what went wrong
        raise Internal(
            "GRAPHS_FAILED",
            f"{graphed.graph_count} of {expected} CUDA graphs could be captured; the log says why",
        )
    manager.model = graphed


def _sizes(smallest: int, largest: int, factor: int) -> list[int]:
    sizes = []
    size = smallest
    while size < largest:
        sizes.append(size)
        size *= factor
    return [*sizes, largest]
