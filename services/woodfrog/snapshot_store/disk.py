"""The data folder. Every call blocks; docs/formats.md has the layout.

What stands under its final name is whole: it was written elsewhere, synced, then renamed. A rename is durable once its
folder is synced.
"""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from woodfrog.errors import FailedPrecondition, ResourceExhausted
from woodfrog.model import digest as digests

DAMAGED_MAX = 64  # files kept for a post-mortem
RETRY_FULL_S = 30.0
_NAME_BYTES_MAX = 255
_CHUNK_FOLDERS = [f"{value:02x}" for value in range(256)]


@contextmanager
def full_disk_refused() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise store_full("the disk is full") from None


def store_full(why: str) -> ResourceExhausted:
    return ResourceExhausted(
        "STORE_FULL",
        f"snapshot store cannot take more: {why}; delete manifests or free disk",
        retry_after_s=RETRY_FULL_S,
    )


class Upload:
    """One chunk on its way in. Ends in `Disk.publish_chunk` or `discard`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        self._hash = hashlib.sha256()
        self._file = path.open("xb", buffering=0)

    def write(self, data: bytes | bytearray) -> None:
        with full_disk_refused():
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        self._hash.update(data)
        self.size_bytes += len(data)

    def seal(self) -> str:
        """Makes the bytes durable. Returns their digest."""
        with full_disk_refused():
            os.fsync(self._file.fileno())
        self._file.close()
        return digests.PREFIX + self._hash.hexdigest()

    def discard(self) -> None:
        """Harmless after it was published. Not while another thread writes."""
        self._file.close()
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class FoundManifest:
    digest: str
    encoded: bytes | None  # None when the bytes do not match the digest
    create_time: float  # seconds since the epoch


class Disk:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._chunks = root / "chunks"
        self._manifests = root / "manifests"
        self._holds = root / "holds"
        self._ingests = root / "ingests"
        self._damaged = root / "damaged"

    def open(self) -> None:
        """Makes the folders, drops what was in progress. Raises FailedPrecondition when another store has the folder."""
        for folder in (self._manifests, self._holds, self._ingests, self._damaged):
            folder.mkdir(parents=True, exist_ok=True)
        for name in _CHUNK_FOLDERS:
            (self._chunks / name).mkdir(parents=True, exist_ok=True)
        self._lock_file = (self.root / "lock").open("ab")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FailedPrecondition(
                "DATA_DIR_IN_USE",
                f"data folder {self.root} is in use by another snapshot store; stop that one first",
                data_dir=self.root,
            ) from None
        for path in self._ingests.iterdir():
            path.unlink()
        for folder in (self._chunks, self.root):
            _sync_folder(folder)

    def close(self) -> None:
        """Lets another store have the folder."""
        self._lock_file.close()

    def free_bytes(self) -> int:
        stat = os.statvfs(self.root)
        return stat.f_bavail * stat.f_frsize

    # chunks

    def chunk_path(self, chunk: str) -> Path:
        """Raises ValueError when `chunk` is not a digest."""
        digits = digests.hex_of(chunk)
        return self._chunks / digits[:2] / digits

    def find_chunks(self) -> dict[str, int]:
        """Digest and length of each. What has another name than a chunk's is left alone."""
        return {
            digests.PREFIX + entry.name: entry.stat().st_size
            for folder in _CHUNK_FOLDERS
            for entry in os.scandir(self._chunks / folder)
            if digests.valid(digests.PREFIX + entry.name) and entry.name.startswith(folder)
        }

    def open_upload(self, name: str) -> Upload:
        return Upload(self._ingests / f"{name}.chunk")

    def publish_chunk(self, upload: Upload, chunk: str) -> None:
        """Durable after `sync_chunks`."""
        upload.path.replace(self.chunk_path(chunk))

    def sync_chunks(self, chunks: Iterable[str]) -> None:
        for folder in {self.chunk_path(chunk).parent for chunk in chunks}:
            _sync_folder(folder)

    def unlink_chunk(self, chunk: str) -> None:
        self.chunk_path(chunk).unlink(missing_ok=True)

    def chunk_whole(self, chunk: str) -> bool:
        """Raises FileNotFoundError. A chunk that the disk cannot read is not whole."""
        try:
            return digests.of_file(self.chunk_path(chunk)) == chunk
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False

    def put_chunk_aside(self, chunk: str) -> Path:
        kept = sorted(self._damaged.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in kept[: max(0, len(kept) + 1 - DAMAGED_MAX)]:
            path.unlink()
        target = self._damaged / digests.hex_of(chunk)
        self.chunk_path(chunk).replace(target)
        return target

    # manifests

    def stage_manifest(self, ingest_id: str, encoded: bytes) -> None:
        with full_disk_refused():
            (self._ingests / f"{ingest_id}.json").write_bytes(encoded)

    def drop_staged(self, ingest_id: str) -> None:
        (self._ingests / f"{ingest_id}.json").unlink(missing_ok=True)

    def publish_manifest(self, ingest_id: str, digest: str) -> float:
        """Durable on return. Returns the time of creation."""
        target = self._manifest_path(digest)
        with full_disk_refused():
            with (self._ingests / f"{ingest_id}.json").open("rb") as file:
                os.fsync(file.fileno())
            (self._ingests / f"{ingest_id}.json").replace(target)
            _sync_folder(self._manifests)
        return target.stat().st_mtime

    def find_manifests(self) -> Iterator[FoundManifest]:
        for path in self._manifests.glob("*.json"):
            digest = digests.PREFIX + path.stem
            if digests.valid(digest):
                encoded = self.read_manifest(digest)
                yield FoundManifest(digest, encoded, path.stat().st_mtime)

    def read_manifest(self, digest: str) -> bytes | None:
        """None when its bytes do not match its digest, or are gone."""
        try:
            encoded = self._manifest_path(digest).read_bytes()
        except OSError as error:
            if error.errno not in (errno.EIO, errno.ENOENT):
                raise
            return None
        return encoded if digests.of_bytes(encoded) == digest else None

    def unlink_manifest(self, digest: str) -> None:
        """Durable on return."""
        self._manifest_path(digest).unlink(missing_ok=True)
        _sync_folder(self._manifests)

    def _manifest_path(self, digest: str) -> Path:
        return self._manifests / f"{digests.hex_of(digest)}.json"

    # holds: one empty file for each holder of each manifest

    def find_holds(self) -> Iterator[tuple[str, str]]:
        for path in self._holds.iterdir():
            digits, _, holder = path.name.partition(".")
            if holder and digests.valid(digests.PREFIX + digits):
                yield digests.PREFIX + digits, unquote(holder)

    def can_name(self, holder: str) -> bool:
        """Whether a hold of this name fits a file's name."""
        return len(self._hold_path(digests.PREFIX + "0" * 64, holder).name) <= _NAME_BYTES_MAX

    def add_hold(self, digest: str, holder: str) -> None:
        """Durable on return."""
        with full_disk_refused():
            self._hold_path(digest, holder).touch()
            _sync_folder(self._holds)

    def remove_hold(self, digest: str, holder: str) -> None:
        """Durable on return."""
        self._hold_path(digest, holder).unlink(missing_ok=True)
        _sync_folder(self._holds)

    def _hold_path(self, digest: str, holder: str) -> Path:
        return self._holds / f"{digests.hex_of(digest)}.{quote(holder, safe='')}"


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
