"""A canary that costs a few milliseconds: the model's first layers and its head, on a fixed prompt.

At every wake this proves the process, its threads, its kernels and its mapped weights. All layers were proven once, on
the same bytes, by the full canary: when the snapshot was made, and at its first restore on a node.
"""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from woodfrog.engine import quantized

if TYPE_CHECKING:
    from woodfrog.engine.graphed import Graphs

LAYERS = 2
_RANKS = 16


class BriefCanary:
    """Shares the parameters of `model`; must be made before anything changes its attention."""

    def __init__(self, model: Any, prompt: list[int], graphs: "Graphs | None" = None) -> None:
        """With `graphs` the first call captures one."""
        self._model = first_layers(model)
        self._prompt = torch.tensor([prompt], device=model.device)
        self._computed: Callable[[Any], Any] = graphs.of(self._logits) if graphs else self._logits

    def tokens(self) -> list[int]:
        """The same in every healthy replica on the same kind of processor. Blocks for a few milliseconds."""
        with torch.inference_mode():
            return ranks(self._computed(self._prompt))

    def compile(self) -> None:
        """Its regions, and outside of any capture. Before the first `tokens`, and before the batching manager's."""
        from woodfrog.engine import compiled

        compiled.compile_regions(self._model)
        with torch.inference_mode():
            self._logits(self._prompt)

    def _logits(self, prompt: Any) -> Any:
        return self._model(prompt, use_cache=False, logits_to_keep=1).logits[0, -1]


def ranks(values: Any) -> list[int]:
    """Where the largest of some numbers are: the same also where a kernel rounds its last bit by chance.

    Found on the CPU, because a process that woke on a GPU pays for each kernel that it launches by itself.
    """
    flat = values.detach().float().cpu().flatten()
    found: list[int] = flat.topk(min(_RANKS, flat.numel())).indices.tolist()
    return found


def first_layers(model: Any, **options: Any) -> Any:
    """A model of at most LAYERS layers that shares the parameters of `model`; `options` are its class's."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = min(LAYERS, config.num_hidden_layers)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:LAYERS]
    with torch.device("meta"):
        shallow = type(model)(config, **options).eval()
    inside = dict(shallow.named_modules())
    for name, layer in quantized.layers_of(model).items():
        if name in inside:
            shallow.set_submodule(name, layer)
    state = model.state_dict()
    shallow.load_state_dict({name: state[name] for name in shallow.state_dict()}, assign=True)
    for name, _ in list(shallow.named_buffers()):
        owner, _, own_name = name.rpartition(".")
        shallow.get_submodule(owner).register_buffer(
            own_name, model.get_buffer(name), persistent=False
        )
    return shallow
