"""Extents of touched pages: merging against its rules, reading on this very process."""

import ctypes
import mmap
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from woodfrog.errors import NotFound
from woodfrog.node_agent.image import MappedArea
from woodfrog.node_agent.image.touched import Extent, Pages, compact, in_file, touched

PAGE = 4096
LENGTH = 4 << 20


def pages(draw_from: list[bool], area: int) -> Pages:
    return area * (1 << 30), np.array(draw_from, dtype=np.bool_)


AREAS = st.lists(st.lists(st.booleans(), min_size=1, max_size=60), max_size=4)


@settings(deadline=None)
@given(AREAS, AREAS, st.integers(0, 5), st.integers(1, 20))
def test_every_touched_page_is_in_an_extent_unless_the_areas_alone_are_too_many(
    read: list[list[bool]], written: list[list[bool]], gap: int, extents_max: int
) -> None:
    parts = {
        "read": [pages(one, area) for area, one in enumerate(read)],
        "write": [pages(one, area) for area, one in enumerate(written)],
    }
    result = compact(parts["read"], parts["write"], gap * PAGE, extents_max)
    assert len(result) <= extents_max
    assert result == sorted(result, key=lambda extent: (extent.address, extent.kind))
    areas_used = sum(bool(flags.any()) for part in parts.values() for _, flags in part)
    for kind, part in parts.items():
        mine = [extent for extent in result if extent.kind == kind]
        covered = [at for e in mine for at in range(e.address, e.address + e.length, PAGE)]
        assert len(covered) == len(set(covered))
        for address, flags in part:
            set_pages = {address + int(page) * PAGE for page in np.flatnonzero(flags)}
            inside = {at for at in covered if address <= at < address + (1 << 30)}
            if areas_used <= extents_max:
                assert set_pages <= inside
            if inside:  # never past the first and the last touched page
                assert min(inside) >= min(set_pages)
                assert max(inside) <= max(set_pages)


def test_gaps_up_to_the_tolerance_are_taken_in_for_reads_only() -> None:
    flags = np.zeros(20, dtype=np.bool_)
    flags[[0, 3, 7]] = True  # gaps of two and three pages
    result = compact([(0, flags)], [(1 << 30, flags)], 2 * PAGE, 100)
    assert result == [
        Extent(0, 4 * PAGE, "read"),
        Extent(7 * PAGE, PAGE, "read"),
        *(Extent((1 << 30) + page * PAGE, PAGE, "write") for page in (0, 3, 7)),
    ]


def test_a_list_that_is_too_long_gets_wider_gaps() -> None:
    flags = np.zeros(1000, dtype=np.bool_)
    flags[::10] = True
    result = compact([], [(0, flags)], 0, 50)
    assert result == [Extent(0, 991 * PAGE, "write")]


def test_extents_in_the_file_are_sorted_and_joined() -> None:
    areas = [MappedArea(1, 0x8000, 0x4000, 0x1000), MappedArea(1, 0x1000, 0x2000, 0x5000)]
    extents = [
        Extent(0x1000, 0x1000, "read"),
        Extent(0x8000, 0x2000, "read"),
        Extent(0x9000, 0x1000, "write"),
        Extent(0xB000, 0x1000, "write"),
    ]
    assert in_file(extents, areas) == [(0x1000, 0x2000), (0x4000, 0x2000)]


@pytest.fixture
def mapping(tmp_path: Path) -> Iterator[mmap.mmap]:
    path = tmp_path / "pages"
    path.write_bytes(os.urandom(LENGTH))
    with path.open("rb") as file:
        mapped = mmap.mmap(
            file.fileno(), LENGTH, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
    yield mapped
    mapped.close()


def area_of(mapping: mmap.mmap) -> MappedArea:
    anchor = ctypes.c_char.from_buffer(mapping)
    return MappedArea(os.getpid(), ctypes.addressof(anchor), LENGTH, 0)


def test_what_this_process_read_and_wrote(mapping: mmap.mmap) -> None:
    area = area_of(mapping)
    assert touched([area], os.getpid()) == []
    for page in (3, 4, 700):
        mapping[page * PAGE] = 1
    assert mapping[500 * PAGE : 500 * PAGE + 1]
    result = touched([area], os.getpid(), gap_bytes=0)
    assert [extent for extent in result if extent.kind == "write"] == [
        Extent(area.address + 3 * PAGE, 2 * PAGE, "write"),
        Extent(area.address + 700 * PAGE, PAGE, "write"),
    ]
    at = area.address + 500 * PAGE
    assert touched([replace(area, pid=1)], os.getpid()) == []  # of another process of the image
    assert any(e.kind == "read" and e.address <= at < e.address + e.length for e in result)


def test_an_ended_process_is_not_found(mapping: mmap.mmap) -> None:
    area = area_of(mapping)
    child = os.posix_spawn("/bin/true", ["true"], {})
    try:
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # still a zombie: without memory
        with pytest.raises(NotFound, match="has ended"):
            touched([replace(area, pid=child)], child)
    finally:
        os.waitpid(child, 0)
    with pytest.raises(NotFound):
        touched([area], child)
