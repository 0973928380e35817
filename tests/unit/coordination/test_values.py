import pytest
from hypothesis import given
from hypothesis import strategies as st

from woodfrog.coordination.values import Delete, Item, Put, advance, prefix_end, revision_of, target
from woodfrog.errors import InvalidArgument


@given(st.binary(max_size=6), st.binary(max_size=6))
def test_prefix_end_bounds_exactly_the_keys_with_the_prefix(prefix: bytes, key: bytes) -> None:
    end = prefix_end(prefix)
    inside = prefix <= key and (end == b"\0" or key < end)
    assert inside == key.startswith(prefix)


def test_prefix_end_of_nothing_is_no_end() -> None:
    assert prefix_end(b"") == b"\0"
    assert prefix_end(b"\xff\xff") == b"\0"
    assert prefix_end(b"a\xff") == b"b"


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=3), max_size=6), st.data())
def test_whatever_was_delivered_is_not_delivered_again(
    shape: list[list[bool]], data: st.DataObject
) -> None:
    """A stream of transactions, broken after any of them and sent again from any earlier one."""
    changes = [
        Delete(f"k{i}", revision) if is_delete else Put(Item(f"k{i}", b"", 1, revision))
        for revision, kinds in enumerate(shape, start=5)
        for i, is_delete in enumerate(kinds)
    ]
    revisions = [revision_of(change) for change in changes]
    cut = data.draw(st.integers(4, 5 + len(shape)))
    again = data.draw(st.integers(4, cut + 1))
    first, resume = advance([c for c in changes if revision_of(c) <= cut], 5)
    second, end = advance([c for c in changes if revision_of(c) >= again], resume)
    assert [*first, *second] == changes
    assert end == max(revisions, default=4) + 1


def test_target_of_one_and_of_several() -> None:
    assert target(["localhost:2379"]) == "dns:///localhost:2379"
    assert target(["http://127.0.0.1:2379/"]) == "dns:///127.0.0.1:2379"
    assert target(["10.0.0.1:2379", "10.0.0.2:2379"]) == "ipv4:10.0.0.1:2379,10.0.0.2:2379"


@pytest.mark.parametrize(
    "endpoints",
    [
        [],
        [""],
        ["localhost"],
        [":2379"],
        ["https://a:1"],
        ["a:1,b:2"],
        ["a:1", "10.0.0.1:1"],
        ["10.0.0.1:1", "10.0.0.256:1"],
    ],
)
def test_target_refuses_what_grpc_cannot_use(endpoints: list[str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        target(endpoints)
    assert caught.value.reason == "ETCD_ENDPOINT"
