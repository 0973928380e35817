"""A model whose parts compute on a GPU, while everything between them is computed on the CPU.

What a woken process launches by itself for the first time is slow, and most of what a vision-language model does between
its parts cannot be captured, because its shapes depend on data (which tokens are images, which tiles are padding). So each
part is a captured graph, tensors go in and out through the host's memory, and to Transformers the model is one on the CPU.
"""

import inspect
from collections.abc import Callable
from functools import update_wrapper
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from woodfrog.engine.sequence_cache import SequenceCache

if TYPE_CHECKING:
    from woodfrog.engine.graphed import Graphs

ROWS = (16, 4, 1)  # tiles that a vision tower computes at once
Function = Callable[..., Any]


def split(model: Any, cache: SequenceCache, device: str, graphs: "Graphs | None") -> None:
    """Replaces the `forward` of every part of `model`. Its decoder keeps one sequence, in `cache`."""
    base = model.base_model
    decoder = model.get_decoder()
    captured = graphs.of if graphs is not None else _as_it_is
    for part in base.children():
        if part is not decoder:
            rows = Rows(Island(part.forward, device), Island(captured(part.forward), device))
            _replace(part, rows)
    words = model.get_input_embeddings()
    _replace(words, Island(captured(words.forward), device))
    head = model.get_output_embeddings()
    _replace(head, Island(captured(head.forward), device))
    _replace(decoder, Steps(decoder.forward, cache, device, captured))
    for owner in (model, base):
        _bring_home(owner, model.dtype)


class Island:
    """A function of tensors on `device`, called with tensors of the CPU."""

    def __init__(self, function: Function, device: str) -> None:
        self._function = function
        self._device = device

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = pytree.tree_map_only(torch.Tensor, self._there, (args, kwargs))
        return pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, self._function(*args, **kwargs))

    def _there(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.contiguous().to(self._device)


class Rows:
    """Tiles of one size, cut into batches of few sizes. Whatever else it is called with is computed as it comes."""

    def __init__(self, as_it_comes: Function, batched: Function) -> None:
        self._as_it_comes = as_it_comes
        self._batched = batched
        self._known = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = (args, kwargs)
        tensors = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, torch.Tensor)]
        count = len(tensors[0]) if tensors and tensors[0].dim() else 0
        if not count or not all(each.dim() >= 3 and len(each) == count for each in tensors):
            return self._as_it_comes(*args, **kwargs)
        if not self._known:
            self._known = True
            for rows in ROWS:
                self._call(given, [0] * rows)
        outputs = []
        begin = 0
        while begin < count:
            rows = next(rows for rows in ROWS if rows <= count - begin)
            outputs.append(self._call(given, list(range(begin, begin + rows))))
            begin += rows
        return _joined(outputs)

    def _call(self, given: Any, rows: list[int]) -> Any:
        args, kwargs = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor[rows], given)
        return self._batched(*args, **kwargs)


class Steps:
    """A decoder, step by step through one sequence."""

    def __init__(
        self,
        forward: Function,
        cache: SequenceCache,
        device: str,
        captured: Callable[[Function], Function],
    ) -> None:
        def step(position: torch.Tensor, **kwargs: Any) -> Any:
            if cache.plain:
                cache.place(
                    position
                )  # so that a graph writes where the host says, however often it ran
            return forward(**kwargs)

        taken = inspect.signature(forward).parameters
        steady = cache.plain and "deepstack_visual_embeds" not in taken
        self._cache = cache
        self._step = Island(captured(step) if steady else step, device)

    def __call__(self, **kwargs: Any) -> Any:
        output = self._step(torch.tensor(self._cache.seen), **kwargs)
        self._cache.seen += kwargs["inputs_embeds"].shape[1]
        return output


def _as_it_is(function: Function) -> Function:
    return function


def _replace(part: Any, function: Function) -> None:
    """With a signature that stays, which Transformers looks at."""
    forward = part.forward

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    part.forward = update_wrapper(call, forward)


def _joined(outputs: list[Any]) -> Any:
    if len(outputs) == 1:
        return outputs[0]
    columns = zip(*(pytree.tree_leaves(output) for output in outputs), strict=True)
    leaves = [
        torch.cat(column) if isinstance(column[0], torch.Tensor) else column[0]
        for column in columns
    ]
    return pytree.tree_unflatten(leaves, pytree.tree_structure(outputs[0]))


def _bring_home(owner: Any, dtype: torch.dtype) -> None:
    """What a module has beside its parts goes to the CPU; a parameter of no elements makes the module one of the CPU."""
    first = {"of_the_cpu": torch.nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)}
    own = {
        name: torch.nn.Parameter(value.cpu(), requires_grad=False)
        for name, value in owner._parameters.items()
        if value is not None
    }
    owner._parameters = first | own
    owner._buffers = {name: value.cpu() for name, value in owner._buffers.items() if value is not None}  # fmt: skip
