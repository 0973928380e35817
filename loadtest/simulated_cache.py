"""Where a simulated node's bytes are, by whole trees: in memory, on disk, or in the store; and how long until they are here."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from woodfrog.model.node import Resident


@dataclass(slots=True)
class Lane:
    """A disk or a network, whose transfers share it evenly; one that is under way is not held up by a later one."""

    bytes_s: float
    _ends: list[float] = field(default_factory=list)

    def take(self, size_bytes: int, now: float) -> float:
        """When all has come."""
        self._ends = [end for end in self._ends if end > now]
        beside = sum(min(size_bytes, (end - now) * self.bytes_s) for end in self._ends)
        self._ends.append(now + (size_bytes + beside) / self.bytes_s)
        return self._ends[-1]


@dataclass(slots=True)
class Cache:
    """Both tiers drop what was used least recently; what is in memory is on disk too."""

    disk_bytes: int
    memory_bytes: int
    disk: Lane
    store: Lane
    _trees: OrderedDict[str, int] = field(default_factory=OrderedDict)  # on disk
    _hot: OrderedDict[str, int] = field(default_factory=OrderedDict)  # of these in memory
    _coming: dict[str, float] = field(default_factory=dict)  # all of it is in memory then
    _stored: set[str] = field(default_factory=set)  # of these, what comes from the store

    def fill(self, manifest: str, size_bytes: int) -> bool:
        """On disk from the beginning; False, and nothing done, where it is full."""
        if sum(self._trees.values()) + size_bytes > self.disk_bytes:
            return False
        self._trees[manifest] = size_bytes
        return True

    def forget_memory(self) -> None:
        """The machine began anew."""
        self._hot.clear()
        self._coming.clear()
        self._stored.clear()

    def has(self, manifest: str) -> bool:
        """All of it is on disk."""
        return manifest in self._trees

    def residents(self) -> tuple[Resident, ...]:
        return tuple(map(self._resident, self._trees))

    def reach(self, manifest: str, size_bytes: int, now: float) -> tuple[float, bool, bool]:
        """Seconds until it is in memory, whether from the store, and whether it set out just now: then `came` is due."""
        if manifest in self._trees:
            self._trees.move_to_end(manifest)
        if (at := self._coming.get(manifest, 0.0)) > now:
            return at - now, manifest in self._stored, False
        if manifest in self._hot:
            self._hot.move_to_end(manifest)
            return 0.0, False, False
        stored = manifest not in self._trees
        at = (self.store if stored else self.disk).take(size_bytes, now)
        self._coming[manifest] = at
        if stored:
            self._stored.add(manifest)
        return at - now, stored, True

    def came(self, manifest: str, size_bytes: int, stays: bool) -> tuple[list[Resident], list[str]]:
        """It was read, and `stays` in memory; what changed by that, and what is on disk no more."""
        self._coming.pop(manifest, None)
        self._stored.discard(manifest)
        self._trees[manifest] = size_bytes
        self._trees.move_to_end(manifest)
        if stays:
            self._hot[manifest] = size_bytes
            self._hot.move_to_end(manifest)
        gone = _drop(self._trees, self.disk_bytes)
        for name in gone:
            self._hot.pop(name, None)
        cooled = _drop(self._hot, self.memory_bytes)
        changed: Iterable[str] = dict.fromkeys([manifest, *cooled])
        return [self._resident(name) for name in changed if name in self._trees], gone

    def _resident(self, manifest: str) -> Resident:
        size = self._trees[manifest]
        return Resident(manifest, size, size, size if manifest in self._hot else 0, True)


def _drop(trees: OrderedDict[str, int], limit_bytes: int) -> list[str]:
    """All but the last, until the limit holds."""
    gone = []
    total = sum(trees.values())
    while total > limit_bytes and len(trees) > 1:
        name, size = trees.popitem(last=False)
        gone.append(name)
        total -= size
    return gone
