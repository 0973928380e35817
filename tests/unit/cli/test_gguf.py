"""Which files a GGUF model is, and what the llamacpp engine cannot be asked for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from woodfrog.cli.gguf import check
from woodfrog.errors import InvalidArgument, NotFound
from woodfrog.model.spec import ModelSpec

SPEC = ModelSpec("frog", "sha256:" + "0" * 64, 0, engine="llamacpp")


def test_one_file_is_itself_and_a_part_brings_the_others(tmp_path: Path) -> None:
    names = ["one.gguf", "m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    for name in names:
        (tmp_path / name).write_bytes(b"GGUF")
    assert check(SPEC, tmp_path / "one.gguf", None) == ["one.gguf"]
    assert check(SPEC, tmp_path / names[1], None) == names[1:]
    (tmp_path / names[2]).unlink()
    with pytest.raises(NotFound, match="m-00002-of-00002"):
        check(SPEC, tmp_path / names[1], None)


@pytest.mark.parametrize(
    ("changes", "dtype", "why"),
    [
        ({"gpu_bytes": 1 << 30}, None, "--gpu-memory is not for the llamacpp engine"),
        ({"engine_args": {"compile": 1}}, None, "--compile"),
        ({"slots": 256}, None, "at most 255 slots"),
        ({}, "float16", "--dtype"),
    ],
)
def test_what_it_cannot_do_is_refused(
    tmp_path: Path, changes: dict[str, Any], dtype: str | None, why: str
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(InvalidArgument, match=why):
        check(replace(SPEC, **changes), tmp_path / "m.gguf", dtype)


def test_a_folder_and_another_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="not a folder"):
        check(SPEC, tmp_path, None)
    (tmp_path / "m.gguf").write_bytes(b"\x80\x04N.")
    with pytest.raises(InvalidArgument, match="begin as GGUF"):
        check(SPEC, tmp_path / "m.gguf", None)
