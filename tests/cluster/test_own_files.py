"""An engine that loads a library which it made in its own /tmp, as torch.compile does, sleeps and wakes like any other."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import Running
from woodfrog.cli import supervisor, up
from woodfrog.cli.cluster import Cluster

QUESTION = "What is the capital of France?"
#: Runs at the start of every Python; only in an engine is there a model's name.
COMPILE = """
import os
if "WOODFROG_MODEL_NAME" in os.environ:
    import ctypes, shutil, _ctypes
    os.makedirs("/tmp/torchinductor_root/ab", exist_ok=True)
    ctypes.CDLL(shutil.copyfile(_ctypes.__file__, "/tmp/torchinductor_root/ab/kernel.so"))
"""


@pytest.fixture
def compiling() -> Iterator[Running]:
    home = Path(tempfile.mkdtemp(prefix="woodfrog-test-"))
    (home / "code").mkdir()
    (home / "code" / "sitecustomize.py").write_text(COMPILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(home / "code"))
        cluster = Cluster.open(home)
        up.start(cluster)
        try:
            yield Running(cluster)
        finally:
            supervisor.stop(home)
    shutil.rmtree(home)


def test_it_wakes_from_a_snapshot_with_its_library(compiling: Running) -> None:
    compiling.add("compiled")
    cold = compiling.ask(QUESTION, "compiled")
    compiling.freeze("compiled")
    woken = compiling.ask(QUESTION, "compiled")
    assert (woken.rung, woken.text) == ("frozen", cold.text)
    assert "restore.own" in {span["name"] for span in compiling.spans(woken.trace_id)}
    (pointer,) = compiling.snapshots("compiled")
    cache = compiling.cluster.home / "node" / "cache"
    own = cache / pointer.manifest.removeprefix("sha256:") / "files" / "own"
    assert own.read_bytes().startswith(b"\x7fELF")
