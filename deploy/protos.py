"""Writes the Python of protos/ into libs/woodfrog/api, when a proto is newer than what is there."""

import importlib.resources
import shutil
import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
OUT = ROOT / "libs"


def main() -> int:
    sources = sorted(PROTOS.rglob("*.proto"))
    api = OUT / "woodfrog" / "api"
    stamp = api / ".stamp"
    if stamp.exists() and all(stamp.stat().st_mtime > s.stat().st_mtime for s in sources):
        return 0
    shutil.rmtree(api, ignore_errors=True)
    well_known = str(importlib.resources.files("grpc_tools") / "_proto")
    names = [str(s.relative_to(PROTOS)) for s in sources]
    out = [f"--{kind}_out={OUT}" for kind in ("python", "pyi", "grpc_python")]
    code = protoc.main(["protoc", f"-I{PROTOS}", f"-I{well_known}", *out, *names])
    if code == 0:
        stamp.touch()
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
