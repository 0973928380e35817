"""A canary that costs a few milliseconds: the model's first layers and its head, on a fixed prompt.

At every wake this proves the process, its threads, its kernels and its mapped weights. All layers were proven once, on
the same bytes, by the full canary: when the snapshot was made, and at its first restore on a node.
"""

import copy
from typing import Any

import torch

from woodfrog.engine import quantized

LAYERS = 2
_RANKS = 8  # of the likeliest tokens, in order


class BriefCanary:
    """Shares the parameters of `model`; must be made before anything changes its attention."""

    def __init__(self, model: Any, prompt: list[int]) -> None:
        self._model = first_layers(model)
        self._prompt = torch.tensor([prompt], device=model.device)

    def tokens(self) -> list[int]:
        """The same in every healthy replica on the same kind of CPU. Blocks for a few milliseconds."""
        with torch.inference_mode():
            logits = self._model(self._prompt, use_cache=False, logits_to_keep=1).logits
        ranked: list[int] = logits[0, -1].topk(_RANKS).indices.tolist()
        return ranked


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
