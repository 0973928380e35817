"""Which chunks of one tree are there. Pure.

The chunks of a tree are numbered through: first those of its first file, then those of the next.
"""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

from woodfrog.model.manifest import CHUNK_BYTES, FileEntry, Manifest

ABSENT = 0
SUSPECT = 1  #: bytes lie on disk that may be the chunk: its digest has to be taken before anyone may read them
PRESENT = 2  #: whole and verified by this process


class Presence:
    """The state of each chunk of one manifest. All-zero chunks count like others, but weigh nothing."""

    def __init__(self, manifest: Manifest) -> None:
        self._files = manifest.files
        counts = (len(file.chunks) for file in manifest.files)
        self.first: list[int] = [0, *accumulate(counts)]  #: number of each file's first chunk
        self._states = bytearray(self.first[-1])
        self._absent_count = self.first[-1]  # those not PRESENT
        self.size_bytes = sum(self.weight(n) for n in range(self.first[-1]))
        self.present_bytes = 0

    def __len__(self) -> int:
        return len(self._states)

    def __getitem__(self, number: int) -> int:
        return self._states[number]

    def place(self, number: int) -> tuple[int, int]:
        """Index of the file, and of the chunk within it."""
        index = bisect_right(self.first, number) - 1
        return index, number - self.first[index]

    def entry(self, number: int) -> tuple[FileEntry, int]:
        index, chunk = self.place(number)
        return self._files[index], chunk

    def digest(self, number: int) -> str | None:
        file, chunk = self.entry(number)
        return file.chunks[chunk]

    def length(self, number: int) -> int:
        file, chunk = self.entry(number)
        return file.chunk_bytes(chunk)

    def weight(self, number: int) -> int:
        """Bytes that have to come from the store: 0 for an all-zero chunk."""
        file, chunk = self.entry(number)
        return file.chunk_bytes(chunk) if file.chunks[chunk] else 0

    def numbers(self, index: int, offset: int, length: int) -> range:
        """Chunks of one file that the extent touches; `length` 0 means to the end."""
        size = self._files[index].size_bytes
        end = min(size, offset + length) if length else size
        if offset >= end:
            return range(0)
        base = self.first[index]
        return range(base + offset // CHUNK_BYTES, base + (end - 1) // CHUNK_BYTES + 1)

    def set(self, number: int, state: int) -> None:
        old = self._states[number]
        self._states[number] = state
        change = (state == PRESENT) - (old == PRESENT)
        self._absent_count -= change
        self.present_bytes += change * self.weight(number)

    def all_present(self, first: int, last: int) -> bool:
        return self._states.count(PRESENT, first, last + 1) == last + 1 - first

    @property
    def complete(self) -> bool:
        return self._absent_count == 0

    def suspects(self) -> Iterator[int]:
        number = self._states.find(SUSPECT)
        while number >= 0:
            yield number
            number = self._states.find(SUSPECT, number + 1)
