"""The model from its folder, with weights mapped and never read into memory of our own."""

import inspect
import json
import logging
import os
import random
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from woodfrog.engine import quantized
from woodfrog.errors import InvalidArgument
from woodfrog.replica import entropy, layout
from woodfrog.replica.device import DeviceMemory, open_memory
from woodfrog.replica.weights import WeightMemory, private_tensors, stand_ins, take_out

log = logging.getLogger(__name__)


def load_model(folder: Path, *, generates: bool = True) -> Any:
    """With its weights mapped from the files. Raises InvalidArgument for one that generates no text, if it has to."""
    # The dtype of the file: another one would copy the weights out of the mapping.
    return _built(folder, folder, generates, dtype="auto", local_files_only=True)


def open_weights(name: str, folder: Path, weights: WeightMemory, within_s: float) -> DeviceMemory:
    """Opens the GPU memory `name` (module:class) and waits for the model's weights in it."""
    memory = open_memory(name)
    weights.open(memory, layout.of_folder(folder), within_s)
    return memory


def load_onto(
    folder: Path, memory: DeviceMemory, weights: WeightMemory, *, generates: bool = True
) -> Any:
    """With its weights in memory that others share, on the device of that memory."""
    tensors = weights.tensors()
    # Transformers builds the module around tensors that take no memory; ours then take their place.
    hollow = stand_ins(tensors)
    floats = (tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    dtype = next(floats, torch.float32)
    model = _built(folder, None, generates, dtype=dtype, state_dict=hollow)
    take_out(model, tensors, hollow)
    model.to(memory.torch_device)  # what no file has: rotary tables and the like
    if own := private_tensors(model, weights):
        log.warning("tensors of the replica's own", extra={"tensors": own})
    return model


def _built(folder: Path, source: Path | None, generates: bool, **options: Any) -> Any:
    """The concrete class that config.json names: Transformers' Auto classes would import all of them."""
    names = _read(folder / "config.json").get("architectures") or []
    listed = isinstance(names, list) and bool(names)
    name = str(names[0]) if listed else ""
    if not generates and name.endswith("ForCausalLM"):
        name = name.removesuffix("ForCausalLM") + "Model"  # what it computes before its words
    kind = getattr(transformers, name, None) if name else None
    if kind is None or (generates and not hasattr(kind, "init_continuous_batching")):
        raise InvalidArgument(
            "UNKNOWN_ARCHITECTURE",
            f"{folder}/config.json names {names or 'no architecture'}, which is not a {'text ' * generates}model of"
            f" Transformers {transformers.__version__}",
        )
    config = kind.config_class.from_pretrained(folder, local_files_only=True)
    if packed := quantized.quantization_of(config, folder):
        config.quantization_config = packed.settings
        options["dtype"] = "auto"  # the configuration's: the first tensor may be a scale
    attention = "sdpa" if generates or kind._supports_sdpa else "eager"
    model, found = kind.from_pretrained(
        source,
        config=config,
        attn_implementation=attention,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are in what it found, and refused below
        **without_pooler(kind),
        **options,
    )
    if lost := [*found["missing_keys"], *found["mismatched_keys"], *found["error_msgs"]]:
        raise InvalidArgument(  # Transformers would go on with random numbers
            "WEIGHTS_MISSING",
            f"the weights lack {len(lost)} tensors of {names[0]}, or have them in another shape than config.json says,"
            f" e.g. {str(lost[0])[:150]}; give all of the model's own files",
        )
    if packed:
        quantized.install(model, tiled=packed.tiled)
    return model.eval()


def without_pooler(kind: Any) -> dict[str, Any]:
    """Arguments that leave out the layer by which BERT and its like classify: many folders lack its weights."""
    takes = "add_pooling_layer" in inspect.signature(kind).parameters
    return {"add_pooling_layer": False} if takes else {}


def eos_tokens(folder: Path, model: Any) -> list[int]:
    config = _read(folder / "generation_config.json")
    own = getattr(model.config.get_text_config(), "eos_token_id", None)
    eos = config.get("eos_token_id", own)
    return list(eos) if isinstance(eos, list) else [] if eos is None else [eos]


def positions(model: Any) -> int:
    """Most tokens that `model` can tell the places of: behind a table's end a request would end the process.

    Rotary positions have no end.
    """
    config = model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None)
    rotary = getattr(config, "rope_parameters", None) is not None
    return most if isinstance(most, int) and not rotary else sys.maxsize


def prepare(threads: int, seed: int | None = None) -> None:
    """Threads for each computation; generators seeded by `seed` or the kernel; Transformers' messages to our own log."""
    torch.set_num_threads(threads)
    entropy.reseed(b"")  # torch's own first seed is the same in every process
    if seed is not None:
        random.seed(seed)
        torch.manual_seed(seed)
    transformers.logging.disable_progress_bar()  # it starts a thread
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = (
        "1"  # its pool's threads outlive the load; what is mapped is not read
    )
    for name in ("transformers", "ContinuousBatchingLogger"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)


def versions() -> dict[str, str]:
    return {"torch": torch.__version__, "transformers": transformers.__version__}


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
