"""build_manifest against a naive reader, on sparse files."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from woodfrog.clients.ingest import build_manifest
from woodfrog.errors import InvalidArgument
from woodfrog.model import digest as digests
from woodfrog.model.manifest import CHUNK_BYTES, Kind, Manifest

EDGE = st.sampled_from([0, 1, 4095, 4096, 4097])
offsets = st.builds(
    lambda chunk, edge, sign: max(0, chunk * CHUNK_BYTES + sign * edge),
    st.integers(0, 3),
    EDGE,
    st.sampled_from([-1, 1]),
)
pieces = st.lists(st.tuples(offsets, st.integers(1, 9000), st.booleans()), max_size=4)


@settings(max_examples=40, deadline=None)
@given(size_bytes=offsets, pieces=pieces)
def test_equals_the_naive_manifest(size_bytes: int, pieces: list[tuple[int, int, bool]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        with path.open("wb") as file:
            file.truncate(size_bytes)
            for offset, length, zero in pieces:
                data = bytes(length) if zero else b"\x01" * length
                os.pwrite(file.fileno(), data, offset)
        (entry,) = build_manifest(Kind.WEIGHTS, Path(folder), {}).files
        assert (entry.size_bytes, list(entry.chunks)) == naive(path.read_bytes())


def naive(data: bytes) -> tuple[int, list[str | None]]:
    parts = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
    return len(data), [digests.of_bytes(part) if any(part) else None for part in parts]


def test_holes_are_not_read(tmp_path: Path) -> None:
    """A terabyte would take minutes."""
    with (tmp_path / "file").open("wb") as file:
        file.truncate(1 << 40)
        os.pwrite(file.fileno(), b"x", (1 << 40) - 1)
    (entry,) = build_manifest(Kind.SNAPSHOT, tmp_path, {}).files
    assert [chunk for chunk in entry.chunks if chunk] == [entry.chunks[-1]]


def test_files_are_sorted_and_links_to_files_are_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "file").write_bytes(b"1")
    (tmp_path / "b-file").write_bytes(b"2")
    (tmp_path / "a").symlink_to("b-file")
    manifest = build_manifest(Kind.WEIGHTS, tmp_path, {"n": 1})
    assert [file.path for file in manifest.files] == ["a", "b-file", "b/file"]
    assert Manifest.decode(manifest.encode()) == manifest
    chosen = build_manifest(Kind.WEIGHTS, tmp_path, {}, paths=["b/file"])
    assert [file.path for file in chosen.files] == ["b/file"]


@pytest.mark.parametrize("what", ["fifo", "dangling", "folder", "no root"])
def test_what_is_no_file_is_refused(what: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    match what:
        case "fifo":
            os.mkfifo(root / "x")
        case "dangling":
            (root / "x").symlink_to("nowhere")
        case "folder":
            (root / "x").symlink_to(tmp_path)
        case "no root":
            root.rmdir()
    with pytest.raises(InvalidArgument) as refused:
        build_manifest(Kind.WEIGHTS, root, {})
    assert refused.value.reason == "FILE_UNUSABLE"
