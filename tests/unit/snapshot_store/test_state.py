"""The inventory under any order of events: what is needed is never garbage, what nobody needs always is."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from woodfrog.snapshot_store.state import UNKNOWN, Committed, Content, Ingest, Inventory

CHUNKS = [f"chunk{number}" for number in range(6)]
SIZES = {chunk: 10 + number for number, chunk in enumerate(CHUNKS)}
some_chunks = st.sets(st.sampled_from(CHUNKS), max_size=4)
names = st.sampled_from(["m0", "m1", "m2", "m3"])


def content_of(*chunks: str) -> Content:
    return Content("weights", 100, {chunk: SIZES[chunk] for chunk in chunks})


class InventoryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.inventory = Inventory()
        self.contents: dict[str, Content] = {}  # a digest stands for one content for ever
        self.lost: set[str] = set()
        self.now = 0.0

    @rule(name=names, chunks=some_chunks)
    def begin(self, name: str, chunks: set[str]) -> None:
        content = self.contents.setdefault(name, content_of(*sorted(chunks)))
        self.now += 1
        if name not in self.inventory.ingests:
            self.inventory.begin(Ingest(f"{name}.1", name, content, self.now))

    @rule(chunk=st.sampled_from(CHUNKS))
    def put(self, chunk: str) -> None:
        wanted = any(chunk in i.content.chunks for i in self.inventory.ingests.values())
        assert self.inventory.touch(chunk, self.now) == wanted
        if wanted:
            self.inventory.arrive(chunk, SIZES[chunk])
            self.lost.discard(chunk)

    @rule(name=names)
    def commit(self, name: str) -> None:
        ingest = self.inventory.ingest(f"{name}.1")
        if ingest and not self.inventory.missing(ingest.content):
            self.inventory.commit(ingest, self.now)
            assert not self.inventory.manifests[name].damaged

    @rule(name=names)
    def drop(self, name: str) -> None:
        if ingest := self.inventory.ingest(f"{name}.1"):
            self.inventory.drop(ingest)

    @rule(name=names)
    def delete(self, name: str) -> None:
        if name in self.inventory.manifests:
            before = len(self.inventory.garbage)
            freed = self.inventory.delete(name)
            assert (freed == 0) == (len(self.inventory.garbage) == before)

    @rule(name=names)
    def blame(self, name: str) -> None:
        if name in self.inventory.manifests:
            self.inventory.blame(name)

    @rule(count=st.integers(1, 3))
    def collect(self, count: int) -> None:
        for chunk in self.inventory.pick_garbage(count):
            self.inventory.lose(chunk)

    @precondition(lambda self: self.inventory.present)
    @rule(data=st.data())
    def put_aside(self, data: st.DataObject) -> None:
        chunk = data.draw(st.sampled_from(sorted(self.inventory.present)))
        self.inventory.lose(chunk)
        self.lost.add(chunk)

    @rule(unreadable=st.booleans())
    def restart(self, unreadable: bool) -> None:
        old = self.inventory
        manifests = {
            name: Committed(UNKNOWN, 0.0, True) if unreadable and manifest.damaged else manifest
            for name, manifest in old.manifests.items()
        }
        self.inventory = Inventory()
        self.inventory.recover(manifests, old.present)

    @invariant()
    def consistent(self) -> None:
        self.inventory.check()
        for manifest in self.inventory.manifests.values():
            assert set(self.inventory.missing(manifest.content)) <= self.lost


TestInventory = InventoryMachine.TestCase


def test_pending_bytes_count_a_shared_chunk_once() -> None:
    inventory = Inventory()
    inventory.begin(Ingest("m0.1", "m0", content_of("chunk0", "chunk1"), 0.0))
    assert inventory.pending_bytes(content_of("chunk1", "chunk2")) == 10 + 11 + 12
    inventory.arrive("chunk1", 11)
    assert inventory.pending_bytes(content_of("chunk1", "chunk2")) == 10 + 12


def test_a_chunk_of_another_length_is_missing() -> None:
    inventory = Inventory()
    inventory.recover({"m0": Committed(content_of("chunk0"), 0.0)}, {"chunk0": 3})
    assert inventory.missing(content_of("chunk0")) == ["chunk0"]
    assert inventory.garbage == set()


def test_nothing_is_garbage_while_a_manifest_cannot_be_read() -> None:
    inventory = Inventory()
    inventory.recover({"m0": Committed(UNKNOWN, 0.0, True)}, {"chunk0": 10, "chunk1": 11})
    assert inventory.garbage == set()
    inventory.begin(Ingest("m0.1", "m0", content_of("chunk0"), 0.0))
    inventory.commit(inventory.ingests["m0"], 1.0)
    assert inventory.garbage == {"chunk1"}
    inventory.check()
