"""Which inputs a model computes together: batches of few shapes, so that on a GPU each is a captured graph."""

from collections.abc import Sequence
from dataclasses import dataclass

ROWS = (1, 8, 32)  # inputs in a captured batch
_PADDING_MAX = 3  # a batch has at most so many times the rows that are wanted


@dataclass(frozen=True, slots=True)
class Batch:
    members: tuple[int, ...]  # indices of inputs
    rows: int  # at least as many; those beyond are padding
    length: int


def plan(lengths: Sequence[int], total_max: int, *, padded: bool) -> list[Batch]:
    """Batches of inputs of the same length, of `total_max` lengths together at most or one row; `padded` to ROWS."""
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(length, []).append(index)
    batches = []
    for length, members in sorted(by_length.items()):
        while members:
            rows = _rows(len(members), max(1, total_max // length), padded)
            batches.append(Batch(tuple(members[:rows]), rows, length))
            del members[:rows]
    return batches


def _rows(count: int, rows_max: int, padded: bool) -> int:
    allowed = [rows for rows in ROWS if rows <= rows_max]
    if not padded:
        return min(count, rows_max, ROWS[-1])
    above = next((rows for rows in allowed if rows >= count), None)
    if above is not None and above <= _PADDING_MAX * count:
        return above
    return max(rows for rows in allowed if rows <= count)
