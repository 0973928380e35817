"""What the engine is told through its environment.

Read here and not through `woodfrog.settings`: every module that a replica imports is memory that each restore maps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from woodfrog.errors import InvalidArgument
from woodfrog.replica import arguments


@dataclass(frozen=True, slots=True)
class EngineArguments:
    """WOODFROG_ENGINE_ARGS, a JSON object."""

    context_tokens: int = 2048
    """Most tokens of prompt and answer together."""
    slots: int = 16
    """Most sequences generated at a time; KV memory is reserved for all of them at full length."""
    threads: int = 0
    """Threads of one computation; 0 means one for each CPU that the process may use."""
    graphs: int = 1
    """1 has a GPU replay captured graphs; 0 launches kernel by kernel."""
    compile: int = 0
    """1 compiles the layers of a text model at the first start; a snapshot holds what was compiled."""
    seed: int | None = None
    """Seeds the process until its first thaw; without it the kernel does."""


@dataclass(frozen=True, slots=True)
class Settings:
    socket: Path
    """WOODFROG_SOCKET: unix socket for HTTP."""
    control: Path
    """WOODFROG_CONTROL: unix socket of the control protocol."""
    model: Path
    """WOODFROG_MODEL: Hugging Face folder, read-only."""
    model_name: str
    """WOODFROG_MODEL_NAME: what answers call the model."""
    arguments: EngineArguments
    device_memory: str = ""
    """WOODFROG_DEVICE_MEMORY: module:class of the GPU memory that weights and KV lie in; empty runs on the CPU."""


_BOUNDS = {
    "context_tokens": (16, 1 << 20),
    "slots": (1, 256),
    "threads": (0, 1024),
    "graphs": (0, 1),
    "compile": (0, 1),
    "seed": (0, (1 << 63) - 1),
}


def load(environ: Mapping[str, str]) -> Settings:
    """Raises InvalidArgument naming the variable."""
    model = Path(arguments.variable(environ, "WOODFROG_MODEL"))
    if not any((model / name).is_file() for name in ("config.json", "model_index.json")):
        raise InvalidArgument(
            "BAD_SETTING",
            f"WOODFROG_MODEL: {model} has no config.json and no model_index.json; name a model's folder",
        )
    return Settings(
        socket=Path(arguments.variable(environ, "WOODFROG_SOCKET")),
        control=Path(arguments.variable(environ, "WOODFROG_CONTROL")),
        model=model,
        model_name=environ.get("WOODFROG_MODEL_NAME") or model.name,
        arguments=parse_arguments(environ.get("WOODFROG_ENGINE_ARGS") or "{}"),
        device_memory=environ.get("WOODFROG_DEVICE_MEMORY", ""),
    )


def parse_arguments(text: str) -> EngineArguments:
    return EngineArguments(**arguments.read(text, _BOUNDS))
