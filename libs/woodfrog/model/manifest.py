"""Manifests: the immutable list of files and chunks that weights or a snapshot consist of.

The encoding is canonical JSON (sorted keys, no spaces), so equal content has equal digests. `docs/formats.md` has it
byte by byte.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import PurePosixPath
from typing import Any

from woodfrog.model import digest as digests

CHUNK_BYTES = 4 << 20
FORMAT = 1
FILE_COUNT_MAX = 10_000
FILE_BYTES_MAX = 1 << 42
ENCODED_BYTES_MAX = 64 << 20


class Kind(Enum):
    WEIGHTS = "weights"
    SNAPSHOT = "snapshot"


@dataclass(frozen=True, slots=True)
class FileEntry:
    path: str  # relative, POSIX, no "..", no empty part
    size_bytes: int
    chunks: tuple[str | None, ...]  # digest of each CHUNK_BYTES; None when all its bytes are zero

    def chunk_bytes(self, index: int) -> int:
        """Length of one chunk: CHUNK_BYTES, less for the last."""
        return min(CHUNK_BYTES, self.size_bytes - index * CHUNK_BYTES)


@dataclass(frozen=True, slots=True)
class Manifest:
    kind: Kind
    files: tuple[FileEntry, ...]  # sorted by path
    attributes: Mapping[str, Any] = field(default_factory=dict)  # JSON values

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def chunk_digests(self) -> frozenset[str]:
        return frozenset(chunk for file in self.files for chunk in file.chunks if chunk)

    def file(self, path: str) -> FileEntry | None:
        return next((file for file in self.files if file.path == path), None)

    def encode(self) -> bytes:
        value = {
            "format": FORMAT,
            "kind": self.kind.value,
            "files": [
                {"path": f.path, "size_bytes": f.size_bytes, "chunks": list(f.chunks)}
                for f in self.files
            ],
            "attributes": dict(self.attributes),
        }
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    @property
    def digest(self) -> str:
        return digests.of_bytes(self.encode())

    @staticmethod
    def decode(data: bytes) -> "Manifest":
        """Raises ValueError with one sentence when `data` is not a manifest of ours, or asks for too much."""
        if len(data) > ENCODED_BYTES_MAX:
            raise ValueError(f"manifest is {len(data)} bytes, the limit is {ENCODED_BYTES_MAX}")
        try:
            value = json.loads(data)
            if value["format"] != FORMAT:
                raise ValueError(f"manifest format {value['format']} is not {FORMAT}")
            files = tuple(_file(entry) for entry in value["files"])
            manifest = Manifest(Kind(value["kind"]), files, value["attributes"])
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"manifest is malformed: {error!r}") from None
        if len(files) > FILE_COUNT_MAX:
            raise ValueError(f"manifest names {len(files)} files, the limit is {FILE_COUNT_MAX}")
        paths = [file.path for file in files]
        if paths != sorted(set(paths)):
            raise ValueError("manifest's paths are not sorted and unique")
        folders = {str(folder) for path in paths for folder in PurePosixPath(path).parents}
        if folders & set(paths):
            raise ValueError("manifest names one path as a file and as a folder")
        if not isinstance(manifest.attributes, dict):
            raise ValueError("manifest's attributes are not an object")
        return manifest


def check_path(path: str) -> str:
    """`path` itself. Raises ValueError when it could leave the folder that it is relative to."""
    pure = PurePosixPath(path)
    bad = not path or path != str(pure) or pure.is_absolute() or ".." in pure.parts
    if bad or "\0" in path or path == "." or len(path) > 1024 or not _storable(pure):
        raise ValueError(f"manifest path {path[:80]!r} is not a plain relative path")
    return path


def _storable(path: PurePosixPath) -> bool:
    """Whether a file system takes each part as a name."""
    try:
        return all(len(part.encode()) <= 255 for part in path.parts)
    except UnicodeEncodeError:
        return False


def _file(entry: Any) -> FileEntry:
    size = entry["size_bytes"]
    chunks = tuple(entry["chunks"])
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= FILE_BYTES_MAX:
        raise ValueError(f"manifest file size {size!r} is out of range")
    if len(chunks) != -(-size // CHUNK_BYTES):
        raise ValueError(
            f"manifest file {entry['path']!r} has {len(chunks)} chunks for {size} bytes"
        )
    for chunk in chunks:
        if chunk is not None:
            digests.hex_of(chunk)
    return FileEntry(check_path(entry["path"]), size, chunks)
