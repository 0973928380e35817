from dataclasses import replace

from woodfrog.catalog import (
    CatalogSnapshot,
    ModelPut,
    ModelRemoved,
    NodeGone,
    NodePut,
    NodeRecord,
    SnapshotPut,
    SnapshotRemoved,
    entries,
)
from woodfrog.catalog.events import View
from woodfrog.coordination import Delete, Item, Listing, Put
from woodfrog.model import digest
from woodfrog.model.snapshot import Fingerprint, SnapshotPointer
from woodfrog.model.spec import ModelSpec

WEIGHTS = digest.of_bytes(b"weights")
SPEC = ModelSpec("m", WEIGHTS, 7)
POINTER = SnapshotPointer("m", WEIGHTS, Fingerprint({}, {}, WEIGHTS), 7, 1.5)
NODE = NodeRecord("node-1", "127.0.0.1:7001")


def _read(item: Item) -> entries.Entry | None:
    return entries.decode(item.key, item.value) if item.value else None


def _item(entry: entries.Entry) -> Item:
    return Item(entries.key_of(entry), entry.encode(), 1, 1)


def test_each_change_has_its_event() -> None:
    view = View(_read)
    assert view.handle(Put(_item(SPEC))) == ModelPut(SPEC)
    assert view.handle(Put(_item(POINTER))) == SnapshotPut(POINTER)
    assert view.handle(Put(_item(NODE))) == NodePut(NODE)
    newer = replace(POINTER, size_bytes=8)
    assert view.handle(Put(_item(newer))) == SnapshotPut(newer)
    assert view.handle(Delete(entries.key_of(POINTER), 5)) == SnapshotRemoved(newer)
    assert view.handle(Delete(entries.key_of(SPEC), 5)) == ModelRemoved(SPEC)
    assert view.handle(Delete(entries.key_of(NODE), 5)) == NodeGone(NODE)


def test_a_listing_replaces_what_was_known() -> None:
    view = View(_read)
    view.handle(Put(_item(NODE)))
    listing = Listing((_item(SPEC), _item(POINTER)), 9)
    assert view.handle(listing) == CatalogSnapshot((SPEC,), (POINTER,), ())
    assert view.handle(Delete(entries.key_of(NODE), 10)) is None
    assert view.handle(Delete(entries.key_of(SPEC), 11)) == ModelRemoved(SPEC)


def test_an_entry_overwritten_by_what_cannot_be_read_is_removed_once() -> None:
    view = View(_read)
    view.handle(Put(_item(SPEC)))
    garbage = Item(entries.key_of(SPEC), b"", 1, 2)
    assert view.handle(Put(garbage)) == ModelRemoved(SPEC)
    assert view.handle(Put(garbage)) is None
    assert view.handle(Delete(garbage.key, 3)) is None
    assert view.handle(Put(_item(SPEC))) == ModelPut(SPEC)
