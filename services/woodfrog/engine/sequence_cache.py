"""KV of one sequence, at addresses that stay, in memory that goes at park; and the few lengths that prompts are padded to."""

from typing import Any

import torch
from transformers import StaticCache
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

from woodfrog.errors import InvalidArgument
from woodfrog.replica.device import DeviceMemory, Region

LENGTH_MIN = 128  # tokens; longer ones are this times a power of two, the longest is the context
_ALIGN_BYTES = 256
_TOKENS_UNIT = 64  # kernels of attention want even masks


def lengths(context_tokens: int) -> list[int]:
    found = []
    length = LENGTH_MIN
    while length < context_tokens:
        found.append(length)
        length *= 2
    return [*found, context_tokens]


def padded_length(token_count: int, context_tokens: int) -> int:
    """Longer than the prompt, which leaves room for a token of its answer: without any padding Transformers would leave
    out the mask, and so have another shape.
    """
    assert token_count < context_tokens
    return next(length for length in lengths(context_tokens) if length > token_count)


def cache_tokens(context_tokens: int) -> int:
    """Room for any prompt with its padding, and an answer to the end of the context: half as much again at most."""
    longest = lengths(context_tokens)
    shortest = [1, *longest[:-1]]  # prompt that is padded to it
    room = max(
        length + context_tokens - least for length, least in zip(longest, shortest, strict=True)
    )
    return -(-room // _TOKENS_UNIT) * _TOKENS_UNIT


class SequenceCache(StaticCache):  # type: ignore[misc]
    """Counts its tokens on the host, so that nobody has to ask the GPU."""

    layers: list[Any]

    def __init__(self, model: Any, tokens: int, memory: DeviceMemory) -> None:
        super().__init__(config=model.config, max_cache_len=tokens)
        self.layers = [_without_window(layer, tokens) for layer in self.layers]
        shape = model._get_static_cache_init_shape()
        if shape is None or not all(isinstance(layer, StaticLayer) for layer in self.layers):
            raise InvalidArgument(
                "UNKNOWN_ARCHITECTURE",
                f"{type(model).__name__} keeps a kind of KV that this engine does not serve on a GPU",
            )
        self.seen = 0
        #: Every layer keeps every token, at a place that does not depend on who counts.
        self.plain = all(type(layer) is StaticLayer for layer in self.layers)
        count = len(self.layers)
        heads, dims = ([s] * count if isinstance(s, int) else s for s in shape)
        item = torch.empty(0, dtype=model.dtype).itemsize
        sizes = [_aligned(h * layer.max_cache_len * d * item) for h, d, layer in zip(heads, dims, self.layers, strict=True)]  # fmt: skip
        self.region = Region(memory, 2 * sum(sizes))
        free = self.region.view()
        for layer, h, d in zip(self.layers, heads, dims, strict=True):
            nothing = torch.empty(1, h, 0, d, dtype=model.dtype, device=memory.torch_device)
            layer.lazy_initialization(nothing, nothing)
            for name in ("keys", "values"):
                tensor = getattr(layer, name)
                setattr(layer, name, free[: tensor.nbytes].view(tensor.dtype).view(tensor.shape))
                free = free[_aligned(tensor.nbytes) :]

    def begin(self) -> None:
        """Empty, and without a trace of the sequence before: what is masked still counts when it is not a number."""
        self.region.renew()
        self.seen = 0
        if not self.plain:
            self.reset()

    def place(self, position: torch.Tensor) -> None:
        """Has the next tokens written at `position`, a tensor of no dimensions on the cache's device."""
        for layer in self.layers:
            layer.cumulative_length.copy_(position)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen


def _without_window(layer: Any, tokens: int) -> Any:
    """A window that nothing ever leaves is none."""
    wide = type(layer) is StaticSlidingWindowLayer and layer.max_cache_len == tokens
    return StaticLayer(tokens) if wide else layer


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGN_BYTES) * _ALIGN_BYTES
