"""Areas and runs against a naive model that knows single pages only."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from woodfrog.errors import DataLoss
from woodfrog.node_agent.image import areas
from woodfrog.node_agent.image.areas import (
    ANON_PRIVATE,
    BLOCK_BYTES,
    FILE_PRIVATE,
    GUARD,
    HEAP,
    MAP_ANONYMOUS,
    MAP_GROWSDOWN,
    MAP_PRIVATE,
    PAGE_BYTES,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    REGULAR,
    STACK,
    Area,
    Run,
)

RW = PROT_READ | PROT_WRITE
ANON = MAP_PRIVATE | MAP_ANONYMOUS


def area(pages: int, start: int = 1 << 40, **changes: int) -> Area:
    values = {"prot": RW, "flags": ANON, "status": REGULAR | ANON_PRIVATE, **changes}
    return Area(start, start + pages * PAGE_BYTES, **values)


@st.composite
def memory(draw: st.DrawFn) -> tuple[list[Area], dict[int, bool]]:
    """Areas in order, and for each page that the image has whether it is more than zeros."""
    found: list[Area] = []
    pages: dict[int, bool] = {}
    at = draw(st.integers(1, 1000))
    for _ in range(draw(st.integers(0, 8))):
        at += draw(st.sampled_from([0, 0, 1, 7, 512]))
        length = draw(st.sampled_from([1, 2, 15, 16, 17, 40, 200, 310, 600]))
        prot = draw(st.sampled_from([RW, RW, RW, PROT_READ, 0, RW | PROT_EXEC]))
        status = draw(
            st.sampled_from([ANON_PRIVATE, ANON_PRIVATE, ANON_PRIVATE | HEAP, FILE_PRIVATE])
        )
        flags = ANON if status & ANON_PRIVATE else MAP_PRIVATE
        found.append(area(length, at * PAGE_BYTES, prot=prot, flags=flags, status=status | REGULAR))
        density = draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
        rng = draw(st.randoms(use_true_random=False))
        for page in range(at, at + length):
            if rng.random() < max(density, 0.02 if density else 0.0):
                pages[page] = rng.random() < 0.7
        at += length
    return found, pages


def runs_of(pages: list[int], positions: dict[int, int], borders: frozenset[int]) -> list[Run]:
    """Maximal runs of pages whose bytes lie side by side in the image."""
    result: list[Run] = []
    for page in pages:
        last = result[-1] if result else None
        joins = last and last.end == page * PAGE_BYTES and page not in borders
        if last and joins and last.position + last.length == positions[page]:
            result[-1] = Run(last.address, last.length + PAGE_BYTES, last.position)
        else:
            result.append(Run(page * PAGE_BYTES, PAGE_BYTES, positions[page]))
    return result


@settings(deadline=None)
@given(memory(), st.integers(0, 3), st.sets(st.integers(0, 3000)))
def test_every_page_is_found_where_the_plan_put_it(
    case: tuple[list[Area], dict[int, bool]], first_block: int, borders: set[int]
) -> None:
    found, pages = case
    positions = {page: index * PAGE_BYTES for index, page in enumerate(sorted(pages))}
    present = runs_of(sorted(pages), positions, frozenset(borders))
    data = runs_of([page for page in sorted(pages) if pages[page]], positions, frozenset())
    start = first_block * BLOCK_BYTES
    plan = areas.plan(found, present, data, start)

    in_file = {
        p.file_offset + i: p.position + i
        for p in plan.pieces
        for i in range(0, p.length, PAGE_BYTES)
    }
    kept = {
        r.address + i: r.position + i for r in plan.kept for i in range(0, r.length, PAGE_BYTES)
    }
    for index, one in enumerate(found):
        for page in range(one.start // PAGE_BYTES, one.end // PAGE_BYTES):
            address = page * PAGE_BYTES
            if index in plan.moved:  # a hole reads as zeros, as the page did
                expected = positions[page] if pages.get(page) else None
                assert in_file.get(plan.moved[index] + address - one.start) == expected
                assert address not in kept
            elif one.status & ANON_PRIVATE and not pages.get(page):
                assert address not in kept  # absent anonymous memory reads as zeros
            else:
                assert kept.get(address) == positions.get(page)
    assert len(in_file) + len(kept) <= len(pages)
    assert plan.kept == sorted(plan.kept, key=lambda run: run.address)
    assert plan.pieces == sorted(plan.pieces, key=lambda piece: piece.file_offset)


@settings(deadline=None)
@given(memory())
def test_areas_in_the_file_do_not_overlap_and_agree_with_their_addresses(
    case: tuple[list[Area], dict[int, bool]],
) -> None:
    found, pages = case
    positions = {page: index * PAGE_BYTES for index, page in enumerate(sorted(pages))}
    present = runs_of(sorted(pages), positions, frozenset())
    plan = areas.plan(found, present, present, 0)
    end = 0
    for index, offset in plan.moved.items():
        one = found[index]
        assert offset >= end
        end = offset + one.length
        modulus = BLOCK_BYTES if one.length >= BLOCK_BYTES else PAGE_BYTES
        assert (one.start - offset) % modulus == 0
    assert plan.end == end


def test_a_large_area_keeps_its_place_within_a_huge_page() -> None:
    large = area(BLOCK_BYTES // PAGE_BYTES, start=0x7F00_0012_3000)
    assert (large.start - areas.place(large, 5 * PAGE_BYTES)) % BLOCK_BYTES == 0
    middle = area(16, start=0x7F00_0012_3000)
    assert areas.place(middle, 0) == 0x3000
    assert areas.place(area(1), 7 * PAGE_BYTES) == 7 * PAGE_BYTES


@pytest.mark.parametrize(
    ("one", "present", "data", "expected"),
    [
        (area(100), 100, 100, True),
        (area(100, prot=PROT_READ), 100, 100, True),
        (area(100, status=REGULAR | ANON_PRIVATE | HEAP), 100, 100, True),
        (area(100), 16, 16, True),
        (area(100), 100, 15, False),  # little
        (area(1000), 1000, 62, False),  # sparse
        (area(1000), 1000, 63, True),
        (area(100, prot=0), 100, 100, False),
        (area(100, prot=RW | PROT_EXEC), 100, 100, False),
        (area(100, flags=ANON | MAP_GROWSDOWN), 100, 100, False),
        (area(100, flags=ANON | 0x2000), 100, 100, False),  # locked
        (area(100, flags=ANON | 0x40000), 100, 100, False),  # hugetlb
        (area(100, status=REGULAR | ANON_PRIVATE | STACK), 100, 100, False),
        (area(100, status=REGULAR | ANON_PRIVATE | 1 << 3), 100, 100, False),  # vdso
        (area(100, status=REGULAR | ANON_PRIVATE | 1 << 13), 100, 100, False),  # aio
        (area(100, status=REGULAR | 1 << 8), 100, 100, False),  # shared
        (area(100, status=REGULAR | FILE_PRIVATE, flags=MAP_PRIVATE), 100, 100, True),
        (area(100, status=REGULAR | FILE_PRIVATE, flags=MAP_PRIVATE), 99, 99, False),
        (area(100, status=REGULAR | FILE_PRIVATE | 1 << 14, flags=MAP_PRIVATE), 100, 100, False),
    ],
)
def test_what_moves(one: Area, present: int, data: int, expected: bool) -> None:
    assert areas.moves(one, present, data) is expected


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (area(1), True),
        (area(1, flags=ANON | MAP_GROWSDOWN), True),
        (
            area(1, status=REGULAR | FILE_PRIVATE, flags=MAP_PRIVATE),
            False,
        ),  # shows the file's bytes
        (area(1, status=REGULAR | ANON_PRIVATE | 1 << 3), False),
        (area(1, flags=ANON | 0x40000), False),
    ],
)
def test_where_zero_pages_may_be_left_out(one: Area, expected: bool) -> None:
    assert areas.zeros_drop(one) is expected


def test_an_area_with_a_guard_stays_and_one_beside_it_moves() -> None:
    first, second = area(32, start=1 << 30), area(32, start=(1 << 30) + 32 * PAGE_BYTES)
    guard = area(1, start=second.start + PAGE_BYTES, status=GUARD)
    runs = [Run(1 << 30, 64 * PAGE_BYTES, 0)]
    plan = areas.plan([first, second, guard], runs, runs, 0)
    assert list(plan.moved) == [0]
    assert plan.kept == [Run(second.start, 32 * PAGE_BYTES, 32 * PAGE_BYTES)]


@pytest.mark.parametrize("page", [-1, 2, 5])
def test_a_page_outside_of_every_area_is_data_loss(page: int) -> None:
    start = 1 << 40
    found = [area(2, start), area(2, start + 3 * PAGE_BYTES)]
    with pytest.raises(DataLoss, match="outside of every memory area"):
        areas.split([Run(start + page * PAGE_BYTES, PAGE_BYTES, 0)], found)
