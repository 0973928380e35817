import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from woodfrog.catalog import NodeRecord, entries
from woodfrog.model import digest
from woodfrog.model.snapshot import Fingerprint, SnapshotPointer
from woodfrog.model.spec import ModelSpec

WEIGHTS = digest.of_bytes(b"weights")
SPEC = ModelSpec("org/model", WEIGHTS, 7)
POINTER = SnapshotPointer("org/model", WEIGHTS, Fingerprint({}, {}, WEIGHTS), 7, 1.5)
NODE = NodeRecord("node-1", "127.0.0.1:7001")


@pytest.mark.parametrize("entry", [SPEC, POINTER, NODE])
def test_round_trip(entry: entries.Entry) -> None:
    assert entries.decode(entries.key_of(entry), entry.encode()) == entry


def test_keys_of_one_model_never_lie_under_those_of_another() -> None:
    """The trap: a model's name may hold a slash, and a model is removed by prefix."""
    other = ModelSpec("org", WEIGHTS, 7)
    assert not entries.key_of(POINTER).startswith(entries.snapshots_prefix(other.name))
    assert entries.key_of(POINTER).startswith(entries.snapshots_prefix("org/model"))
    assert entries.key_of(SPEC) == "/woodfrog/models/org%2Fmodel"


def test_other_keys_are_none_of_ours() -> None:
    assert entries.decode("/woodfrog/election/x", b"") is None


def test_an_entry_under_a_foreign_key_is_refused() -> None:
    with pytest.raises(ValueError, match="belongs under"):
        entries.decode("/woodfrog/models/other", SPEC.encode())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.sampled_from([SPEC, POINTER, NODE]), st.data())
def test_a_damaged_value_is_a_value_error_or_an_entry(
    entry: entries.Entry, data: st.DataObject
) -> None:
    """Whatever another version or a hand may have written there."""
    value = json.loads(entry.encode())
    field = data.draw(st.sampled_from(sorted(value)))
    action = data.draw(st.sampled_from(["replace", "drop", "add", "cut"]))
    match action:
        case "replace":
            value[field] = data.draw(json_values)
        case "drop":
            del value[field]
        case "add":
            value["new"] = 1
    encoded = json.dumps(value).encode()
    if action == "cut":
        encoded = encoded[: data.draw(st.integers(0, len(encoded) - 1))] + b"\xff"
    try:
        found = entries.decode(entries.key_of(entry), encoded)
    except ValueError:
        return
    assert found is not None
    assert type(found) is type(entry)
    assert action in ("replace", "drop")  # a field with a default may be missing


@given(st.binary(max_size=20) | json_values.map(lambda value: json.dumps(value).encode()))
def test_garbage_is_a_value_error(value: bytes) -> None:
    for key in (entries.key_of(SPEC), entries.key_of(POINTER), entries.key_of(NODE)):
        with pytest.raises(ValueError):
            entries.decode(key, value)
