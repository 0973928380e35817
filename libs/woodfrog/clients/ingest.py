"""From a folder to a committed manifest."""

import asyncio
import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_ISREG
from typing import Any

from woodfrog.clients.store import BegunIngest, ChunkClient, StoreClient
from woodfrog.errors import FailedPrecondition, InvalidArgument, Unavailable, WoodfrogError
from woodfrog.model import digest as digests
from woodfrog.model.manifest import CHUNK_BYTES, FileEntry, Kind, Manifest

Progress = Callable[[int, int], None]  # bytes sent, bytes to send

HASH_THREADS = min(4, os.cpu_count() or 1)
UPLOADS = 4  # chunks in flight, each in memory
_PAUSES_S = (0.5, 1.0, 2.0, None)  # a store takes about a second to restart
_ABORT_TIMEOUT_S = 5.0
_ZEROS = bytes(CHUNK_BYTES)
_BEGIN_AGAIN = {"CHUNK_UNWANTED", "CHUNKS_MISSING", "INGEST_NOT_FOUND"}


def build_manifest(
    kind: Kind,
    root: Path,
    attributes: Mapping[str, Any],
    paths: Sequence[str] | None = None,
) -> Manifest:
    """Reads and hashes the files of `root`, or only `paths` of it; holes are not read. Blocks.

    Symbolic links to files count as files. Raises InvalidArgument FILE_UNUSABLE for anything else than files and folders,
    FailedPrecondition FILE_CHANGED when a file changes meanwhile.
    """
    names = sorted(paths if paths is not None else _walk(root))
    with ThreadPoolExecutor(HASH_THREADS, "hash") as pool:
        files = tuple(_file_entry(root, name, pool) for name in names)
    return Manifest(kind, files, dict(attributes))


async def ingest(
    store: StoreClient,
    chunks: ChunkClient,
    manifest: Manifest,
    root: Path,
    progress: Progress | None = None,
) -> str:
    """Puts the chunks that the store lacks and commits. Returns the manifest's digest.

    Begins again, a few times, when the store restarts or dropped the ingest. A failure or a cancellation aborts it.
    Raises FailedPrecondition FILE_CHANGED when `root` no longer holds what the manifest says.
    """
    source = _Source(root, manifest)
    begun: BegunIngest | None = None
    try:
        for pause_s in _PAUSES_S:
            try:
                begun = await store.begin_ingest(manifest)
                await _put_missing(chunks, begun, source, progress)
                return await store.commit(begun.id)
            except WoodfrogError as error:
                again = isinstance(error, Unavailable) or error.reason in _BEGIN_AGAIN
                if not again or pause_s is None:
                    raise
            await asyncio.sleep(pause_s)
    except BaseException:
        if begun:
            await _abort(store, begun)
        raise
    raise AssertionError("the last pause is None")


async def _put_missing(
    chunks: ChunkClient, begun: BegunIngest, source: "_Source", progress: Progress | None
) -> None:
    total = sum(source.length(digest) for digest in begun.missing)
    sent = 0
    queue = iter(begun.missing)

    async def work() -> None:
        nonlocal sent
        for digest in queue:
            data = await asyncio.to_thread(source.read, digest)
            try:
                await chunks.put(begun.chunks_url, digest, data)
            except InvalidArgument:
                raise source.changed(digest) from None
            sent += len(data)
            if progress:
                progress(sent, total)

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(UPLOADS):
                tasks.create_task(work())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def _abort(store: StoreClient, begun: BegunIngest) -> None:
    """Tries once; the store drops an idle ingest by itself."""
    try:
        async with asyncio.timeout(_ABORT_TIMEOUT_S):
            await store.abort(begun.id)
    except (WoodfrogError, TimeoutError):
        pass


class _Source:
    """Where in the folder each chunk lies."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self._root = root
        self._places = {
            digest: (file, index)
            for file in manifest.files
            for index, digest in enumerate(file.chunks)
            if digest
        }

    def length(self, digest: str) -> int:
        file, index = self._places[digest]
        return file.chunk_bytes(index)

    def read(self, digest: str) -> bytes:
        file, index = self._places[digest]
        try:
            with (self._root / file.path).open("rb") as source:
                data = os.pread(source.fileno(), file.chunk_bytes(index), index * CHUNK_BYTES)
        except FileNotFoundError:
            raise self.changed(digest) from None
        if len(data) != file.chunk_bytes(index):
            raise self.changed(digest)
        return data

    def changed(self, digest: str) -> FailedPrecondition:
        return _changed(self._root / self._places[digest][0].path)


def _walk(root: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise _unusable(Path(error.filename), error.strerror or "unreadable") from None

    for folder, folders, names in os.walk(root, onerror=refuse):
        for name in folders:
            if Path(folder, name).is_symlink():
                raise _unusable(Path(folder, name), "it is a link to a folder")
        for name in names:
            yield Path(folder, name).relative_to(root).as_posix()


def _file_entry(root: Path, name: str, pool: ThreadPoolExecutor) -> FileEntry:
    path = root / name
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO would block
    except OSError as error:
        raise _unusable(path, error.strerror or "unreadable") from None
    try:
        before = os.fstat(fd)
        if not S_ISREG(before.st_mode):
            raise _unusable(path, "it is not a regular file")
        chunks: list[str | None] = [None] * -(-before.st_size // CHUNK_BYTES)
        indexes = _indexes_with_data(fd, before.st_size)
        for index, digest in pool.map(lambda index: (index, _chunk_digest(fd, index)), indexes):
            chunks[index] = digest
        after = os.fstat(fd)
    finally:
        os.close(fd)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise _changed(path)
    return FileEntry(name, before.st_size, tuple(chunks))


def _indexes_with_data(fd: int, size_bytes: int) -> Iterator[int]:
    """Each chunk that is not one hole, once, in order."""
    next_index = 0
    while next_index * CHUNK_BYTES < size_bytes:
        try:
            data = os.lseek(fd, next_index * CHUNK_BYTES, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nothing but a hole up to the end
                raise
            return
        hole = os.lseek(fd, data, os.SEEK_HOLE)
        first = max(next_index, data // CHUNK_BYTES)
        next_index = -(-min(hole, size_bytes) // CHUNK_BYTES)
        yield from range(first, next_index)


def _chunk_digest(fd: int, index: int) -> str | None:
    data = os.pread(fd, CHUNK_BYTES, index * CHUNK_BYTES)
    zero = data == _ZEROS if len(data) == CHUNK_BYTES else not data.strip(b"\0")
    return None if zero else digests.of_bytes(data)


def _unusable(path: Path, why: str) -> InvalidArgument:
    return InvalidArgument(
        "FILE_UNUSABLE", f"{path} cannot be ingested: {why}; mend or remove it", path=path
    )


def _changed(path: Path) -> FailedPrecondition:
    return FailedPrecondition(
        "FILE_CHANGED",
        f"{path} changed while it was being ingested; let no one write to it and ingest again",
        path=path,
    )
