"""What the store has, and who needs it. Pure: `store.py` makes the disk agree.

A chunk is *needed* by each manifest and each ingest that names it. It is *garbage* while it is on disk and nobody needs
it; being needed again, by another ingest, it is garbage no longer.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

from woodfrog.model.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Content:
    """What a manifest asks the store to keep."""

    kind: str
    size_bytes: int  # of its files, holes included
    chunks: Mapping[str, int]  # digest -> length

    @property
    def stored_bytes(self) -> int:
        return sum(self.chunks.values())

    @staticmethod
    def of(manifest: Manifest) -> "Content":
        """Raises ValueError when one digest stands for two lengths."""
        lengths: dict[str, int] = {}
        for file in manifest.files:
            for index, digest in enumerate(file.chunks):
                length = file.chunk_bytes(index)
                if digest and lengths.setdefault(digest, length) != length:
                    other = lengths[digest]
                    raise ValueError(f"it names chunk {digest} with {other} and {length} bytes")
        return Content(manifest.kind.value, manifest.size_bytes, lengths)


UNKNOWN = Content("", 0, {})


@dataclass(frozen=True, slots=True)
class Committed:
    content: Content  # UNKNOWN when it was damaged already at the start
    create_time: float  # seconds since the epoch
    damaged: bool = False  # its file does not match its digest


@dataclass(slots=True)
class Ingest:
    id: str
    manifest_digest: str
    content: Content
    used: float  # the clock's `now` at the last sign of life


@dataclass(slots=True)
class Inventory:
    manifests: dict[str, Committed] = field(default_factory=dict)
    holders: dict[str, set[str]] = field(default_factory=dict)  # by manifest
    ingests: dict[str, Ingest] = field(default_factory=dict)  # by manifest: at most one each
    present: dict[str, int] = field(default_factory=dict)  # chunks on disk, and their lengths
    garbage: set[str] = field(default_factory=set)
    _needs: Counter[str] = field(default_factory=Counter)

    def begin(self, ingest: Ingest) -> None:
        assert ingest.manifest_digest not in self.ingests
        self.ingests[ingest.manifest_digest] = ingest
        self._need(ingest.content.chunks)

    def ingest(self, ingest_id: str) -> Ingest | None:
        return next((i for i in self.ingests.values() if i.id == ingest_id), None)

    def missing(self, content: Content) -> list[str]:
        """In the order of the manifest. What is there in another length is missing too."""
        return [d for d, size_bytes in content.chunks.items() if self.present.get(d) != size_bytes]

    def pending_bytes(self, more: Content) -> int:
        """What is still to come for the ingests under way and for `more`."""
        pending: dict[str, int] = {}
        for content in (*(ingest.content for ingest in self.ingests.values()), more):
            pending.update((digest, content.chunks[digest]) for digest in self.missing(content))
        return sum(pending.values())

    def touch(self, chunk: str, now: float) -> bool:
        """Whether an ingest wants this chunk; those that do are alive."""
        wanting = [i for i in self.ingests.values() if chunk in i.content.chunks]
        for ingest in wanting:
            ingest.used = now
        return bool(wanting)

    def arrive(self, chunk: str, size_bytes: int) -> None:
        assert self._needs[chunk] > 0
        self.present[chunk] = size_bytes

    def commit(self, ingest: Ingest, create_time: float) -> None:
        assert not self.missing(ingest.content)
        old = self.manifests.pop(ingest.manifest_digest, None)
        self.manifests[ingest.manifest_digest] = Committed(ingest.content, create_time)
        self._need(ingest.content.chunks)
        self.drop(ingest)
        if old:
            self._forget(old)

    def drop(self, ingest: Ingest) -> None:
        del self.ingests[ingest.manifest_digest]
        self._release(ingest.content.chunks)

    def idle(self, before: float) -> list[Ingest]:
        return [ingest for ingest in self.ingests.values() if ingest.used < before]

    def delete(self, digest: str) -> int:
        """Bytes of the chunks that nobody else needs."""
        assert digest not in self.holders
        before = set(self.garbage)
        self._forget(self.manifests.pop(digest))
        return sum(self.present[chunk] for chunk in self.garbage - before)

    def blame(self, digest: str) -> None:
        """Its file is damaged; a new ingest mends it."""
        self.manifests[digest] = replace(self.manifests[digest], damaged=True)

    def lose(self, chunk: str) -> None:
        """A chunk was unlinked or put aside."""
        del self.present[chunk]
        self.garbage.discard(chunk)

    def pick_garbage(self, count_max: int) -> list[str]:
        return list(islice(self.garbage, count_max))

    def recover(self, manifests: Mapping[str, Committed], chunks: Mapping[str, int]) -> None:
        """What was found on disk at the start."""
        assert not self.manifests
        self.manifests.update(manifests)
        for manifest in manifests.values():
            self._need(manifest.content.chunks)
        self.present.update(chunks)
        self._sweep()

    def check(self) -> None:
        """Derives again what is kept twice. Raises AssertionError."""
        needs: Counter[str] = Counter()
        for content in (
            *(manifest.content for manifest in self.manifests.values()),
            *(ingest.content for ingest in self.ingests.values()),
        ):
            needs.update(content.chunks.keys())
        assert self._needs == needs
        unneeded = self.present.keys() - needs.keys()
        assert self.garbage <= unneeded
        assert self.garbage == unneeded or self._uncertain()
        assert all(self.holders.values())
        assert self.holders.keys() <= self.manifests.keys()

    def _uncertain(self) -> bool:
        """Whether chunks that nobody seems to need may belong to a manifest that cannot be read."""
        return any(manifest.content is UNKNOWN for manifest in self.manifests.values())

    def _need(self, chunks: Mapping[str, int]) -> None:
        self._needs.update(chunks.keys())
        self.garbage -= chunks.keys()

    def _release(self, chunks: Iterable[str]) -> None:
        for chunk in chunks:
            self._needs[chunk] -= 1
            if not self._needs[chunk]:
                del self._needs[chunk]
                if chunk in self.present:
                    self.garbage.add(chunk)

    def _forget(self, manifest: Committed) -> None:
        self._release(manifest.content.chunks)
        if manifest.content is UNKNOWN:
            self._sweep()

    def _sweep(self) -> None:
        if not self._uncertain():
            self.garbage = {chunk for chunk in self.present if not self._needs[chunk]}
