"""What the engine is told through its environment: the contract's variables, and its own arguments."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from woodfrog.errors import InvalidArgument
from woodfrog.replica import arguments

SLOTS_MAX = 255  # llama.cpp has 256 sequences, and the canary needs one


@dataclass(frozen=True, slots=True)
class Arguments:
    """WOODFROG_ENGINE_ARGS, a JSON object."""

    context_tokens: int = 2048
    """Most tokens of prompt and answer together; 0 means as many as the model was made for."""
    slots: int = 16
    """Most sequences generated at a time; each has KV memory of its own, which takes room once it is written."""
    threads: int = 0
    """Threads of one computation; 0 means one for each CPU that the process may use."""


@dataclass(frozen=True, slots=True)
class Settings:
    socket: Path
    """WOODFROG_SOCKET: unix socket for HTTP."""
    control: Path
    """WOODFROG_CONTROL: unix socket of the control protocol."""
    model: Path
    """WOODFROG_MODEL: folder with the GGUF file, or with the parts of one; here the file to name."""
    model_name: str
    """WOODFROG_MODEL_NAME: what answers call the model."""
    arguments: Arguments

    @property
    def inner(self) -> Path:
        """llama.cpp's own socket, behind the gate."""
        return self.socket.with_name("inner.sock")


_BOUNDS = {"context_tokens": (0, 1 << 20), "slots": (1, SLOTS_MAX), "threads": (0, 1024)}


def load(environ: Mapping[str, str]) -> Settings:
    """Raises InvalidArgument naming the variable."""
    folder = Path(arguments.variable(environ, "WOODFROG_MODEL"))
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise InvalidArgument(
            "BAD_SETTING", f"WOODFROG_MODEL: {folder} has no .gguf file; name the folder of one"
        )
    if environ.get("WOODFROG_DEVICE_MEMORY"):
        raise InvalidArgument(
            "BAD_SETTING", "the llamacpp engine runs on the CPU; add the model without --gpu-memory"
        )
    return Settings(
        socket=Path(arguments.variable(environ, "WOODFROG_SOCKET")),
        control=Path(arguments.variable(environ, "WOODFROG_CONTROL")),
        model=files[0],
        model_name=environ.get("WOODFROG_MODEL_NAME") or folder.name,
        arguments=parse_arguments(environ.get("WOODFROG_ENGINE_ARGS") or "{}"),
    )


def parse_arguments(text: str) -> Arguments:
    return Arguments(**arguments.read(text, _BOUNDS))
