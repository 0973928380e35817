"""Which shapes batches are padded to; the capture itself needs a GPU and is checked there (loadtest/gpu_ladder.py)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from woodfrog.engine.graphs import Shapes


@given(st.integers(8, 512), st.integers(1, 100_000), st.data())
def test_every_batch_fits_a_shape_that_was_computed_at_start(
    queries_max: int, reads_max: int, data: st.DataObject
) -> None:
    shapes = Shapes(queries_max, reads_max)
    queries = data.draw(st.integers(1, queries_max))
    reads = data.draw(st.integers(0, reads_max))
    padded = shapes.padded(queries, reads, False)
    assert padded[0] >= queries
    assert padded[1] >= reads
    assert padded in shapes.all()
    assert padded[0] <= max(8 * queries, 8)
    assert padded[1] <= max(4 * reads, 512)
    assert bool(padded[1]) == bool(reads)


@pytest.mark.parametrize(("queries_max", "reads_max"), [(8, 512), (4, 100)])
def test_small_limits_are_shapes_themselves(queries_max: int, reads_max: int) -> None:
    shapes = Shapes(queries_max, reads_max)
    assert shapes.all() == [(queries_max, reads_max), (queries_max, 0)]
