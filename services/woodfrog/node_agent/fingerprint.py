"""What this node and its engines are, for snapshots to match."""

import hashlib
import platform
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import woodfrog.clock
import woodfrog.errors
import woodfrog.replica
from woodfrog.model import digest
from woodfrog.model.snapshot import Fingerprint
from woodfrog.model.spec import ModelSpec
from woodfrog.node_agent.engines import ENGINES

_PACKAGES = {
    "transformers": (
        "accelerate", "compressed-tensors", "cuda-bindings", "diffusers", "jinja2", "llguidance", "numpy", "pillow", "pydantic",
        "safetensors", "tokenizers", "torch", "tqdm", "transformers", "uvicorn",
    ),
    "llamacpp": ("aiohttp", "frozenlist", "httptools", "multidict", "propcache", "uvicorn", "xllamacpp", "yarl"),
}  # fmt: skip


def of_node(criu_version: str, gpu: str) -> dict[str, str]:
    cpu: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        cpu.setdefault(key.strip(), value.strip())
    flags = " ".join(sorted(cpu.get("flags", "").split()))
    return {
        "kernel": platform.release(),
        "cpu_model": cpu.get("model name", "unknown"),
        "cpu_flags": digest.of_bytes(flags.encode())[:23],
        "criu": criu_version,
        "gpu": gpu,
    }


def of_engine(spec: ModelSpec) -> dict[str, str]:
    return {
        "engine": spec.engine,
        "device": "gpu" if spec.gpu_bytes else "cpu",
        "args": str(sorted(spec.engine_args.items())),
        "slots": str(spec.slots),
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "code": _code_digest(ENGINES[spec.engine]),
        **_versions(spec.engine),
    }


def of_snapshot(node: dict[str, str], spec: ModelSpec) -> Fingerprint:
    return Fingerprint(node=node, engine=of_engine(spec), weights=spec.weights)


@cache
def _versions(engine: str) -> dict[str, str]:
    """An image maps their libraries, and holds their code. Those that few models need may be missing."""
    found = {}
    for name in _PACKAGES[engine]:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


@cache
def _code_digest(module: str) -> str:
    """Of the source that a replica runs: a snapshot holds old code, so a change of code ends it."""
    packages = (woodfrog.replica, woodfrog.errors, woodfrog.clock)
    services = Path(__file__).parent.parent
    folders = [services / module.rpartition(".")[2], *(Path(p.__path__[0]) for p in packages)]
    sha = hashlib.sha256()
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        sha.update(path.name.encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()[:16]
