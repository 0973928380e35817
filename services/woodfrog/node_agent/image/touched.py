"""What a restored process touched of its mapped areas: the list that later restores prefetch and populate.

The kernel maps up to 64 KiB around a fault (a whole huge page of the page cache, if there is one), so "read" is an upper
bound. What the process put in the place of an area that it unmapped counts as written.
"""

import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from woodfrog.errors import NotFound
from woodfrog.node_agent.image.areas import PAGE_BYTES
from woodfrog.node_agent.image.rewrite import MappedArea

EXTENTS_MAX = 4096
READ_GAP_BYTES = 64 << 10
_ENTRY_BYTES = 8  # of /proc/PID/pagemap, for one page
_PRESENT, _SWAPPED, _OF_FILE = 63, 62, 61  # bits of an entry

Bits = npt.NDArray[np.bool_]
Pages = tuple[int, Bits]  # the address of an area, and for each of its pages whether it counts
Kind = Literal["read", "write"]


@dataclass(frozen=True, slots=True)
class Extent:
    address: int
    length: int
    kind: Kind  # "write": the process has a copy of its own


def touched(
    areas: Iterable[MappedArea],
    pid: int,
    *,
    gap_bytes: int = READ_GAP_BYTES,
    extents_max: int = EXTENTS_MAX,
) -> list[Extent]:
    """By address. `areas` may be those of several processes; `pid` is one of these as the caller sees it.

    Read extents up to `gap_bytes` apart become one, written ones when they touch; the gaps grow until the list
    is short enough. Raises NotFound when the process has ended.
    """
    inside = _pid_inside(pid)
    read, written = [], []
    for area in areas:
        if area.pid != inside:
            continue
        entries = _entries(pid, area)
        present, of_file = _bit(entries, _PRESENT), _bit(entries, _OF_FILE)
        read.append((area.address, present & of_file))
        written.append((area.address, (present & ~of_file) | _bit(entries, _SWAPPED)))
    return compact(read, written, gap_bytes, extents_max)


def compact(
    read: Sequence[Pages], written: Sequence[Pages], gap_bytes: int, extents_max: int
) -> list[Extent]:
    """The pages as extents. When even one extent an area and kind is too much, the longest ones are kept."""
    longest = max((len(pages) for _, pages in (*read, *written)), default=0) * PAGE_BYTES
    read_gap, write_gap = gap_bytes, 0
    while True:
        result = [*_extents(read, read_gap, "read"), *_extents(written, write_gap, "write")]
        if len(result) <= extents_max or min(read_gap, write_gap) > longest:
            break
        read_gap, write_gap = max(read_gap, PAGE_BYTES) * 2, max(write_gap, PAGE_BYTES) * 2
    kept = sorted(result, key=lambda extent: -extent.length)[:extents_max]
    return sorted(kept, key=lambda extent: (extent.address, extent.kind))


def in_file(extents: Iterable[Extent], areas: Iterable[MappedArea]) -> list[tuple[int, int]]:
    """(offset, length) in the `pages` file of what was touched: by offset, none touching the next."""
    by_address = sorted(areas, key=lambda area: area.address)
    addresses = [area.address for area in by_address]
    parts = []
    for extent in extents:
        area = by_address[bisect_right(addresses, extent.address) - 1]
        begin = area.file_offset + extent.address - area.address
        parts.append((begin, begin + extent.length))
    result: list[tuple[int, int]] = []
    for begin, end in sorted(parts):
        if result and begin <= result[-1][1]:
            begin, end = result[-1][0], max(result.pop()[1], end)
        result.append((begin, end))
    return [(begin, end - begin) for begin, end in result]


def _pid_inside(pid: int) -> int:
    """The id that the process has in its own PID namespace, as the image knows it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        raise _gone(pid) from None
    return int(next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1])


def _entries(pid: int, area: MappedArea) -> npt.NDArray[np.uint64]:
    length = area.length // PAGE_BYTES * _ENTRY_BYTES
    try:
        fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
        try:
            data = os.pread(fd, length, area.address // PAGE_BYTES * _ENTRY_BYTES)
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        data = b""
    if len(data) != length:  # the kernel answers nothing for a process without memory
        raise _gone(pid)
    return np.frombuffer(data, dtype=np.uint64)


def _gone(pid: int) -> NotFound:
    return NotFound("PROCESS_GONE", f"process {pid} has ended, its pages are gone", pid=pid)


def _bit(entries: npt.NDArray[np.uint64], bit: int) -> Bits:
    return (entries >> np.uint64(bit) & np.uint64(1)).astype(np.bool_)


def _extents(parts: Iterable[Pages], gap_bytes: int, kind: Kind) -> list[Extent]:
    """Runs of set pages within each part; a gap of up to `gap_bytes` between two is taken in."""
    result: list[Extent] = []
    for address, pages in parts:
        found = np.flatnonzero(pages)
        if not len(found):
            continue
        breaks = np.flatnonzero(np.diff(found) > gap_bytes // PAGE_BYTES + 1)
        firsts = found[np.concatenate(([0], breaks + 1))]
        lasts = found[np.concatenate((breaks, [len(found) - 1]))]
        result += (
            Extent(address + first * PAGE_BYTES, (last - first + 1) * PAGE_BYTES, kind)
            for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True)
        )
    return result
