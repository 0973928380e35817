"""A store in memory, for weight_fs: it can be down, slow, or hold damaged chunks."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

from woodfrog.errors import DataLoss, NotFound, Unavailable
from woodfrog.model import digest as digests
from woodfrog.model.manifest import CHUNK_BYTES, FileEntry, Kind, Manifest


class MemorySource:
    def __init__(self) -> None:
        self.down = False
        self.damaged: set[str] = set()  # chunks whose stored bytes are wrong
        self.damaged_once: set[str] = set()  # chunks that are wrong on their next way only
        self.open = asyncio.Event()  # chunks wait while it is cleared
        self.open.set()
        self.served: list[str] = []  # chunks asked for, in order
        self.verified: list[str] = []
        self.manifests: dict[str, Manifest] = {}
        self.chunks: dict[str, bytes] = {}

    def add(self, files: Mapping[str, bytes], kind: Kind = Kind.WEIGHTS) -> Manifest:
        manifest = manifest_of(files, kind)
        self.manifests[manifest.digest] = manifest
        for data in files.values():
            for piece in pieces(data):
                self.chunks[digests.of_bytes(piece)] = piece
        return manifest

    async def manifest(self, digest: str) -> Manifest:
        self._reach()
        if digest not in self.manifests:
            raise NotFound("MANIFEST_NOT_FOUND", f"manifest {digest} is not known")
        return self.manifests[digest]

    async def chunk(self, digest: str, manifest_digest: str) -> bytes:
        assert manifest_digest in self.manifests
        self.served.append(digest)
        await self.open.wait()
        self._reach()
        if digest not in self.chunks:
            raise NotFound("CHUNK_MISSING", f"chunk {digest} is not here")
        if digest in self.damaged | self.damaged_once:
            self.damaged_once.discard(digest)
            raise DataLoss("CHUNK_DAMAGED", f"chunk {digest} came damaged")
        return self.chunks[digest]

    async def verify_chunk(self, digest: str) -> bool:
        self._reach()
        self.verified.append(digest)
        return digest in self.chunks and digest not in self.damaged

    def _reach(self) -> None:
        if self.down:
            raise Unavailable("STORE_UNREACHABLE", "the store is down")


def manifest_of(files: Mapping[str, bytes], kind: Kind = Kind.WEIGHTS) -> Manifest:
    entries = (
        FileEntry(path, len(data), tuple(_digest(piece) for piece in pieces(data)))
        for path, data in sorted(files.items())
    )
    return Manifest(kind, tuple(entries), {})


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """All-zero chunks become holes."""
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with (folder / path).open("wb") as file:
            for piece in pieces(data):
                if piece.strip(b"\0"):
                    file.write(piece)
                else:
                    file.seek(len(piece), os.SEEK_CUR)
            file.truncate(len(data))
    return folder


def pieces(data: bytes) -> list[bytes]:
    return [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]


def _digest(piece: bytes) -> str | None:
    return digests.of_bytes(piece) if piece.strip(b"\0") else None
