from hypothesis import given
from hypothesis import strategies as st

from woodfrog.weight_fs.policy import READAHEAD_CHUNKS_MAX, TreeUse, evict, readahead

USES = st.lists(
    st.builds(
        TreeUse,
        digest=st.uuids().map(str),
        allocated_bytes=st.integers(0, 100),
        last_use=st.sampled_from([1.0, 2.0, 3.0]),
        busy=st.booleans(),
    ),
    max_size=8,
)


@given(USES, st.integers(-10, 400))
def test_evicts_enough_but_no_more_and_never_what_is_busy(
    trees: list[TreeUse], need_bytes: int
) -> None:
    by_digest = {tree.digest: tree for tree in trees}
    chosen = evict(trees, need_bytes)
    if chosen is None:
        assert sum(tree.allocated_bytes for tree in trees if not tree.busy) < need_bytes
        return
    freed = [by_digest[digest].allocated_bytes for digest in chosen]
    assert not any(by_digest[digest].busy for digest in chosen)
    assert sum(freed) >= need_bytes
    assert not chosen or sum(freed[:-1]) < need_bytes
    kept = [
        t.last_use for t in trees if not t.busy and t.allocated_bytes and t.digest not in chosen
    ]
    assert all(by_digest[digest].last_use <= last for digest in chosen for last in kept)


def test_equal_last_use_is_decided_by_digest() -> None:
    trees = [TreeUse(name, 10, 1.0, False) for name in ("b", "a", "c")]
    assert evict(trees, 15) == evict(trees[::-1], 15) == ["a", "b"]


def test_only_a_reader_in_order_gets_chunks_ahead() -> None:
    assert list(readahead(0, 5, 100)) == []
    assert list(readahead(1, 5, 100)) == [6, 7]
    assert list(readahead(1, 98, 100)) == [99]
    assert len(readahead(50, 5, 100)) == READAHEAD_CHUNKS_MAX
