"""What a snapshot matches, and the pointer in etcd that names it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from woodfrog.model import digest as digests

FORMAT = 1
_NUMBER_MAX = 1 << 62  # 64 bits of the wire hold it


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a node and an engine must have in common with the snapshot's own to restore it."""

    node: Mapping[str, str]  # kernel, cpu model, cpu flags digest, gpu, driver
    engine: Mapping[str, str]  # engine name, versions, arguments
    weights: str  # digest of the weights manifest

    @property
    def digest(self) -> str:
        value = {"node": dict(self.node), "engine": dict(self.engine), "weights": self.weights}
        return digests.of_bytes(json.dumps(value, sort_keys=True).encode())

    def mismatch(self, other: "Fingerprint") -> str | None:
        """The first difference as a sentence for a log or a header; None when they match."""
        for part, mine, theirs in (
            ("node", self.node, other.node),
            ("engine", self.engine, other.engine),
        ):
            for key in sorted({*mine, *theirs}):
                if mine.get(key) != theirs.get(key):
                    return (
                        f"{part} {key} is {theirs.get(key)!r}, the snapshot has {mine.get(key)!r}"
                    )
        if self.weights != other.weights:
            return "weights differ from the snapshot's"
        return None


@dataclass(frozen=True, slots=True)
class SnapshotPointer:
    """One model has at most one snapshot per fingerprint."""

    model: str
    manifest: str  # digest of the snapshot's manifest
    fingerprint: Fingerprint
    size_bytes: int  # of all its files, holes not counted
    create_time: float  # seconds since the epoch
    gpu: str = ""  # uuid of the GPU that it was made on; empty: none

    @property
    def holder(self) -> str:
        """Under this name the store holds the manifest."""
        name = f"{self.model}/{self.fingerprint.digest}"
        return f"snapshot/{digests.hex_of(digests.of_bytes(name.encode()))[:32]}"

    def encode(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True).encode()

    @staticmethod
    def decode(data: bytes) -> "SnapshotPointer":
        """Raises ValueError with one sentence."""
        try:
            value: dict[str, Any] = dict(json.loads(data))
            if value.pop("format") != FORMAT:
                raise ValueError("snapshot pointer has another format than this version knows")
            fingerprint = Fingerprint(**value.pop("fingerprint"))
            pointer = SnapshotPointer(fingerprint=fingerprint, **value)
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"snapshot pointer is malformed: {error!r}") from None
        texts = (pointer.model, pointer.manifest, fingerprint.weights, pointer.gpu)
        numbers = (pointer.size_bytes, pointer.create_time)
        maps = (fingerprint.node, fingerprint.engine)
        if (
            not all(isinstance(text, str) for text in texts)
            or not all(isinstance(number, int | float) for number in numbers)
            or not all(isinstance(each, dict) for each in maps)
        ):
            raise ValueError("snapshot pointer has a field of the wrong type")
        if not all(0 <= number <= _NUMBER_MAX for number in numbers):
            raise ValueError("snapshot pointer has a size or a time that cannot be")
        digests.hex_of(pointer.manifest)
        return pointer
