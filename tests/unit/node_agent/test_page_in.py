import itertools
import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from woodfrog.node_agent.page_in import blocks, page_in

MIB = 1 << 20
EXTENTS = st.lists(st.tuples(st.integers(0, 64 * MIB), st.integers(1, 5 * MIB)), max_size=8)


@given(EXTENTS)
def test_the_blocks_cover_the_extents_and_are_apart(extents: list[tuple[int, int]]) -> None:
    found = blocks(extents)
    for offset, length in extents:
        assert any(start <= offset and offset + length <= start + size for start, size in found)
    for (start, size), (following, _) in itertools.pairwise(found):
        assert start + size < following
    assert all(start % (2 * MIB) == 0 and size % (2 * MIB) == 0 for start, size in found)


def test_a_sparse_file_keeps_its_holes(tmp_path: Path) -> None:
    path = tmp_path / "pages"
    with path.open("wb") as file:
        file.write(b"x" * MIB)
        file.truncate(64 * MIB)
    before = os.stat(path).st_blocks
    page_in(path, [(0, MIB)])
    page_in(path, [(63 * MIB, 9 * MIB), (1 << 40, 5)])  # past the end is no error
    assert os.stat(path).st_blocks == before
    assert path.read_bytes()[:MIB] == b"x" * MIB


def test_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    page_in(tmp_path / "gone")
    (tmp_path / "empty").touch()
    page_in(tmp_path / "empty")
