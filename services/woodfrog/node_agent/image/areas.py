"""Which memory areas of a process move from its CRIU image into the `pages` file, and where to in that file.

Pure. An area that moves becomes a private mapping of the file, so a restore maps it instead of copying it, clones share
it and own only what they write. What differs for the process afterwards: MADV_DONTNEED gives the snapshot's bytes back
instead of zeros, and what mremap() adds to an area shows what follows it in the file. C's and Python's allocators
promise neither to anybody.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from woodfrog.errors import DataLoss

PAGE_BYTES = 4096
#: The page cache maps a whole block by one entry of the page table if address and file offset agree modulo its size.
BLOCK_BYTES = 2 << 20
#: One fault maps this much around it.
FAULT_AROUND_BYTES = 64 << 10
#: A hole at the end of the file. A large block that realloc() grows may reach past its area, where there must be a file.
GROWTH_ROOM_BYTES = 256 << 20
#: Fewer pages with data than this are copied sooner than mapped.
MOVE_PAGES_MIN = 16
#: A sparser area stays: an untouched page costs more in a file's hole (page cache, then a copy) than in anonymous memory.
MOVE_DENSITY_MIN = 1 / 16

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
MAP_PRIVATE, MAP_ANONYMOUS, MAP_GROWSDOWN, MAP_NORESERVE = 0x2, 0x20, 0x100, 0x4000
REGULAR, STACK, HEAP = 1 << 0, 1 << 1, 1 << 5  # CRIU's VMA_AREA_*
FILE_PRIVATE, ANON_PRIVATE, GUARD = 1 << 6, 1 << 9, 1 << 16


@dataclass(frozen=True, slots=True)
class Area:
    """One memory area as CRIU recorded it. A guard is no area of its own but lies within one."""

    start: int
    end: int
    prot: int
    flags: int
    status: int

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def guard(self) -> bool:
        return bool(self.status & GUARD)


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive pages that an image has: where they belong, and where their bytes are in pages-N.img."""

    address: int
    length: int
    position: int
    flags: int = 4  # of the pagemap entry, as CRIU wrote them

    @property
    def end(self) -> int:
        return self.address + self.length


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes to copy from pages-N.img into the `pages` file."""

    file_offset: int
    length: int
    position: int


@dataclass(frozen=True, slots=True)
class Plan:
    moved: dict[int, int]  # index of an area → its offset in the `pages` file
    pieces: list[Piece]  # by file offset
    kept: list[Run]  # what stays in the image, by address
    end: int  # first offset of the `pages` file after all areas


def plan(
    areas: Sequence[Area],
    present: Sequence[Run],
    data: Sequence[Run],
    start: int,
) -> Plan:
    """Both lists of runs are by address: `present` has every page of the image, `data` those that are not all zero.

    `start` is the first free offset of the `pages` file. Raises DataLoss when a page belongs to no area.
    """
    guards = [area for area in areas if area.guard]
    moved: dict[int, int] = {}
    pieces: list[Piece] = []
    kept: list[Run] = []
    present_of, data_of = split(present, areas), split(data, areas)
    for index, area in enumerate(areas):
        guarded = any(guard.start < area.end and area.start < guard.end for guard in guards)
        present_pages, data_pages = _pages(present_of[index]), _pages(data_of[index])
        if not guarded and moves(area, present_pages, data_pages):
            offset = place(area, start)
            start = offset + area.length
            moved[index] = offset
            pieces += (
                Piece(offset + run.address - area.start, run.length, run.position)
                for run in data_of[index]
            )
        else:
            kept += data_of[index] if zeros_drop(area) else present_of[index]
    return Plan(moved, pieces, kept, start)


def moves(area: Area, present_pages: int, data_pages: int) -> bool:
    """Whether a private mapping of the `pages` file would show exactly what the area holds.

    True for plain anonymous memory, and for a private file mapping that the process has written (or the loader
    relocated) throughout. Code stays, since the `pages` file may lie on a file system without exec; so does whatever
    the kernel treats specially (stacks that grow, locked, huge, vdso, aio) or what this version does not know.
    """
    pages = area.length // PAGE_BYTES
    if not area.prot & PROT_READ or area.prot & PROT_EXEC:
        return False
    if area.flags & ~(MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE):
        return False
    if data_pages < MOVE_PAGES_MIN or data_pages < pages * MOVE_DENSITY_MIN:
        return False
    if area.status == REGULAR | FILE_PRIVATE:
        return present_pages == pages
    return area.status & ~HEAP == REGULAR | ANON_PRIVATE


def zeros_drop(area: Area) -> bool:
    """Whether a page that the image lacks reads as zeros after a restore."""
    plain = area.flags & ~(MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_GROWSDOWN) == 0
    return plain and area.status & ~(HEAP | STACK) == REGULAR | ANON_PRIVATE


def place(area: Area, start: int) -> int:
    """The first offset from `start` on that agrees with the address modulo what the kernel can map at once."""
    sizes = (BLOCK_BYTES, FAULT_AROUND_BYTES, PAGE_BYTES)
    modulus = next((size for size in sizes if area.length >= size), PAGE_BYTES)
    return start + (area.start - start) % modulus


def split(runs: Sequence[Run], areas: Sequence[Area]) -> list[list[Run]]:
    """The runs of each area, cut where one area ends and the next begins. Guards get none."""
    real = [index for index, area in enumerate(areas) if not area.guard]
    starts = [areas[index].start for index in real]
    result: list[list[Run]] = [[] for _ in areas]
    for run in runs:
        while run.length:
            found = bisect_right(starts, run.address) - 1
            area = areas[real[found]] if found >= 0 else None
            if area is None or run.address >= area.end:
                raise DataLoss(
                    "IMAGE_DAMAGED",
                    f"CRIU image has a page at {run.address:#x}, outside of every memory area; "
                    "checkpoint again",
                    address=f"{run.address:#x}",
                )
            length = min(run.end, area.end) - run.address
            result[real[found]].append(replace(run, length=length))
            run = replace(
                run,
                address=run.address + length,
                length=run.length - length,
                position=run.position + length,
            )
    return result


def _pages(runs: Sequence[Run]) -> int:
    return sum(run.length for run in runs) // PAGE_BYTES
