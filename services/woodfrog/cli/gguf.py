"""A GGUF file that is to be served as it lies, by llama.cpp: which files it is, and what it cannot be asked for."""

import re
from pathlib import Path

from woodfrog.errors import InvalidArgument, NotFound
from woodfrog.model.spec import ModelSpec

SLOTS_MAX = 255  # llama.cpp has 256 sequences, and the canary needs one
_MAGIC = b"GGUF"
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def check(spec: ModelSpec, path: Path, dtype: str | None) -> list[str]:
    """Names of its parts, beside it. Raises InvalidArgument or NotFound, one sentence each."""
    if spec.gpu_bytes:
        raise _not_for("--gpu-memory", "it runs on the CPU")
    if dtype is not None:
        raise _not_for("--dtype", "it takes the weights as they lie")
    if spec.engine_args.get("compile"):
        raise _not_for("--compile", "it has nothing to compile")
    if spec.slots > SLOTS_MAX:
        raise InvalidArgument(
            "BAD_SPEC", f"the llamacpp engine has at most {SLOTS_MAX} slots, not {spec.slots}"
        )
    names = _parts(path)
    for name in names:
        _check_file(path.parent / name)
    return names


def _parts(path: Path) -> list[str]:
    part = _PART.fullmatch(path.name)
    if part is None:
        return [path.name]
    stem, _, count = part.groups()
    return [f"{stem}-{number:05}-of-{count}.gguf" for number in range(1, int(count) + 1)]


def _check_file(path: Path) -> None:
    if not path.exists():
        raise NotFound("PATH_NOT_FOUND", f"{path} does not exist; give a GGUF file", path=str(path))
    if not path.is_file():
        raise InvalidArgument(
            "NOT_GGUF", f"{path} is no file; the llamacpp engine takes a GGUF file, not a folder"
        )
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise InvalidArgument(
                "NOT_GGUF", f"{path} does not begin as GGUF; the llamacpp engine takes nothing else"
            )


def _not_for(option: str, why: str) -> InvalidArgument:
    return InvalidArgument(
        "BAD_SPEC", f"{option} is not for the llamacpp engine: {why}; leave it out"
    )
