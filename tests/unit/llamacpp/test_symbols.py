"""A call inside of a library is led astray and put back: with a library that is built here, where there is a compiler."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from woodfrog.errors import FailedPrecondition
from woodfrog.llamacpp.symbols import Redirection, slot_of

SOURCE = """
int inner(int x) { return x + 1; }
int outer(int x) { return inner(x); }
int alone(int x) { return x; }
"""
ONE_TO_ONE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="missing: gcc")


def built(folder: Path, *flags: str) -> tuple[Path, ctypes.CDLL]:
    (folder / "x.c").write_text(SOURCE)
    path = folder / "x.so"
    subprocess.run(
        ["gcc", "-O0", "-shared", "-fPIC", *flags, "-o", path, folder / "x.c"], check=True
    )
    return path, ctypes.CDLL(str(path))


def test_calls_are_led_through_ours_until_it_ends(tmp_path: Path) -> None:
    path, library = built(tmp_path, "-Wl,-z,lazy")
    ours = ONE_TO_ONE(lambda x: x * 10)
    redirection = Redirection(library, path, "inner", ours)
    assert library.outer(4) == 40
    assert library.inner(4) == 5  # only calls inside of it
    redirection.end()
    assert library.outer(4) == 5


def test_a_library_without_such_a_call_is_refused(tmp_path: Path) -> None:
    path, library = built(tmp_path, "-Wl,-Bsymbolic")
    for symbol in ("inner", "alone"):
        assert slot_of(path, symbol) is None
        with pytest.raises(FailedPrecondition, match="built in another way"):
            Redirection(library, path, symbol, ONE_TO_ONE(lambda x: x))
    assert library.outer(4) == 5
