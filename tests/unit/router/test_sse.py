from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from woodfrog.router.sse import SseReader

STREAM = ': waking\n\ndata: {"a": "é"}\n\ndata:2\r\n\r\nevent: x\ndata: [DONE]\n\n'.encode()
PAYLOADS = ['{"a": "é"}'.encode(), b"2", b"[DONE]"]


@given(st.lists(st.integers(0, len(STREAM))))
def test_any_cut_gives_the_same(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    reader = SseReader()
    found = [p for start, end in pairwise(edges) for p in reader.feed(STREAM[start:end])]
    assert found == PAYLOADS


def test_a_line_without_end_is_refused() -> None:
    reader = SseReader()
    assert reader.feed(b"data:" + b"x" * (1 << 21)) == []
    with pytest.raises(ValueError, match="longer"):
        reader.feed(b"x" * (1 << 21))
