import json
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from woodfrog.model import digest
from woodfrog.model.manifest import CHUNK_BYTES, FileEntry, Kind, Manifest

SHA = "sha256:" + "ab" * 32
PATHS = st.from_regex(r"[a-z]{1,8}(/[a-z.]{1,8}[a-z]){0,2}", fullmatch=True)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    files = []
    paths = draw(st.sets(PATHS, max_size=4))
    folders = {str(folder) for path in paths for folder in PurePosixPath(path).parents}
    for path in sorted(paths - folders):
        size = draw(st.integers(0, 3 * CHUNK_BYTES))
        count = -(-size // CHUNK_BYTES)
        chunk = st.one_of(st.none(), st.just(SHA))
        chunks = tuple(draw(st.lists(chunk, min_size=count, max_size=count)))
        files.append(FileEntry(path, size, chunks))
    return Manifest(draw(st.sampled_from(Kind)), tuple(files), {"n": draw(st.integers())})


@given(manifests())
def test_a_manifest_survives_its_encoding(manifest: Manifest) -> None:
    assert Manifest.decode(manifest.encode()) == manifest
    assert Manifest.decode(manifest.encode()).digest == manifest.digest


def test_the_encoding_is_canonical() -> None:
    one = Manifest(Kind.WEIGHTS, (), {"a": 1, "b": 2})
    other = Manifest(Kind.WEIGHTS, (), {"b": 2, "a": 1})
    assert one.digest == other.digest == digest.of_bytes(other.encode())


def entry(**changes: Any) -> bytes:
    file = {"path": "a", "size_bytes": 5, "chunks": [SHA], **changes}
    return json.dumps({"format": 1, "kind": "weights", "files": [file], "attributes": {}}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b"{", b"[" * 100_000,
        entry(path="../a"), entry(path="/a"), entry(path="a/../b"), entry(path=""), entry(path="a\0"),
        entry(path="a//b"), entry(path="./a"), entry(path="."), entry(path="a" * 2000), entry(path=7),
        entry(size_bytes=-1), entry(size_bytes=1 << 63), entry(size_bytes="5"), entry(size_bytes=True),
        entry(chunks=[]), entry(chunks=[SHA, SHA]), entry(chunks=["sha256:zz"]), entry(chunks=[7]),
        entry(size_bytes=1.5), entry().replace(b'"format": 1', b'"format": 2'),
        entry().replace(b"weights", b"other"), entry().replace(b"{}", b"[]"),
        entry(path="\ud800"), entry(path="a" * 256),
    ],
)  # fmt: skip
def test_what_is_not_a_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError) as caught:
        Manifest.decode(data)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_file_and_folder_is_refused() -> None:
    files = (FileEntry("a", 0, ()), FileEntry("a/b", 0, ()))
    with pytest.raises(ValueError, match="folder"):
        Manifest.decode(Manifest(Kind.WEIGHTS, files).encode())


def test_a_path_twice_is_refused() -> None:
    file = FileEntry("a", 0, ())
    with pytest.raises(ValueError, match="unique"):
        Manifest.decode(Manifest(Kind.WEIGHTS, (file, file)).encode())


def test_the_last_chunk_is_shorter() -> None:
    file = FileEntry("a", CHUNK_BYTES + 3, (SHA, SHA))
    assert [file.chunk_bytes(0), file.chunk_bytes(1)] == [CHUNK_BYTES, 3]
