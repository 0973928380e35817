"""One tree's folder in the cache: `manifest.json`, `files/<path>`, and `complete.json` once it is sealed. Blocking.

The files are sparse, have their full size from the start and mode 0444. What lies in them is only a hint: after every
start of the process a chunk is believed again when its digest has been taken, so no order of writes and no crash can
make it believe a chunk that is not whole. Only a sealed tree is believed as it stands: it was synced before the seal,
and the seal records (size, mtime, ctime, inode) of each file, which change with any write.
"""

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ctypes import CDLL, c_int, c_long, get_errno
from pathlib import Path

from woodfrog.model import digest as digests
from woodfrog.model.manifest import CHUNK_BYTES, Manifest
from woodfrog.weight_fs.presence import ABSENT, PRESENT, SUSPECT, Presence

MANIFEST = "manifest.json"
FILES = "files"
SEAL = "complete.json"
_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_LIBC = CDLL(None, use_errno=True)
_LIBC.fallocate.argtypes = [c_int, c_int, c_long, c_long]

Stamps = dict[str, list[int]]  #: path → [size, mtime_ns, ctime_ns, inode]


class TreeFiles:
    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.files = root / FILES
        self.manifest = manifest

    def path(self, index: int) -> Path:
        return self.files / self.manifest.files[index].path

    def survey(self) -> tuple[Presence, Stamps | None]:
        """Makes what is missing of the folder, and says what may be believed; stamps when the tree is sealed."""
        self.root.mkdir(exist_ok=True)
        if not (self.root / MANIFEST).exists():
            _replace(self.root / MANIFEST, self.manifest.encode(), durable=False)
        presence = Presence(self.manifest)
        sealed = self._sealed()
        if sealed is not None and sealed == self.stamps():
            for number in range(len(presence)):
                presence.set(number, PRESENT)
            return presence, sealed
        self.unseal()
        for index in range(len(self.manifest.files)):
            self._make(index)
            self._guess(presence, index)
        return presence, None

    def stamps(self) -> Stamps | None:
        """None when a file is gone or is not a plain file."""
        stamps: Stamps = {}
        for file in self.manifest.files:
            try:
                found = os.lstat(self.files / file.path)
            except OSError:
                return None
            if not stat.S_ISREG(found.st_mode):
                return None
            stamps[file.path] = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
        return stamps

    def seal(self) -> Stamps | None:
        """Makes a complete tree durable and marks it so. None when its files are not what they were."""
        for index in range(len(self.manifest.files)):
            _sync(self.path(index))
        for folder, _, _ in os.walk(self.files):
            _sync(Path(folder))
        _sync(self.root / MANIFEST)
        stamps = self.stamps()
        if stamps is not None:
            _replace(self.root / SEAL, json.dumps(stamps).encode(), durable=True)
            _sync(self.root.parent)
        return stamps

    def unseal(self) -> None:
        (self.root / SEAL).unlink(missing_ok=True)

    def write(self, presence: Presence, number: int, data: bytes) -> None:
        index, chunk = presence.place(number)
        with _opened(self.path(index), os.O_WRONLY) as fd:
            view, offset = memoryview(data), chunk * CHUNK_BYTES
            while view:
                written = os.pwrite(fd, view, offset)
                view, offset = view[written:], offset + written

    def check(self, presence: Presence, number: int) -> bool:
        """Whether the chunk's bytes are right. If not they are punched out, which makes an all-zero chunk right."""
        index, chunk = presence.place(number)
        wanted, length = presence.digest(number), presence.length(number)
        with _opened(self.path(index), os.O_RDWR) as fd:
            with suppress(OSError):  # a bad sector is damage like any other
                data = os.pread(fd, length, chunk * CHUNK_BYTES)
                if data == bytes(length) if wanted is None else digests.of_bytes(data) == wanted:
                    return True
            os.ftruncate(fd, self.manifest.files[index].size_bytes)
            if _LIBC.fallocate(fd, _PUNCH_HOLE, chunk * CHUNK_BYTES, length) != 0:
                raise OSError(get_errno(), os.strerror(get_errno()), str(self.path(index)))
        return wanted is None

    def allocated_bytes(self) -> int:
        return measure(self.files)

    def touch(self, wall: float) -> None:
        """Records the last use, so that eviction keeps its order over a restart."""
        with suppress(OSError):
            os.utime(self.root / MANIFEST, (wall, wall))

    def last_use(self) -> float:
        try:
            return (self.root / MANIFEST).stat().st_mtime
        except OSError:
            return 0.0

    def _sealed(self) -> Stamps | None:
        try:
            sealed = json.loads((self.root / SEAL).read_bytes())
        except (OSError, ValueError):
            return None
        return sealed if isinstance(sealed, dict) else None

    def _make(self, index: int) -> None:
        """The file at its full size, whatever lay there before."""
        path, size_bytes = self.path(index), self.manifest.files[index].size_bytes
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(path.lstat().st_mode):
                path.unlink()
        with _opened(path, os.O_RDWR | os.O_CREAT) as fd:
            if os.fstat(fd).st_size != size_bytes:
                os.ftruncate(fd, size_bytes)
            os.fchmod(fd, 0o444)

    def _guess(self, presence: Presence, index: int) -> None:
        """A chunk is suspect when any byte of its range is allocated."""
        file = self.manifest.files[index]
        with _opened(self.path(index), os.O_RDONLY) as fd:
            for chunk, digest in enumerate(file.chunks):
                start = chunk * CHUNK_BYTES
                if _data_from(fd, start) < start + file.chunk_bytes(chunk):
                    state = SUSPECT
                else:
                    state = PRESENT if digest is None else ABSENT
                presence.set(presence.first[index] + chunk, state)


def _data_from(fd: int, start: int) -> int:
    """Offset of the first allocated byte from `start` on; the end of the file when there is none."""
    try:
        return os.lseek(fd, start, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return os.fstat(fd).st_size


def load_manifest(root: Path) -> Manifest | None:
    """The manifest of a folder that is named by its digest; None when it is damaged or not one."""
    try:
        data = (root / MANIFEST).read_bytes()
        if digests.of_bytes(data) == digests.PREFIX + root.name:
            return Manifest.decode(data)
    except (OSError, ValueError):
        pass
    return None


def mismatch(folder: Path, manifest: Manifest) -> str | None:
    """Why `folder` is not just the plain files of `manifest`, with their sizes; None when it is."""
    wanted = {file.path: file.size_bytes for file in manifest.files}
    found: dict[str, int] = {}
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(parent, name)
            info = path.lstat()
            if stat.S_ISREG(info.st_mode):
                found[str(path.relative_to(folder))] = info.st_size
            elif not stat.S_ISDIR(info.st_mode):
                return f"{path.relative_to(folder)} is neither a file nor a folder"
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in wanted:
            return f"{name} is not in the manifest"
        if wanted[name] != found[name]:
            return f"{name} has {found[name]} bytes, the manifest says {wanted[name]}"
    return None


def make_plain(folder: Path) -> None:
    """Modes as every tree has them: files 0444, folders 0755."""
    for parent, _, names in os.walk(folder):
        os.chmod(parent, 0o755)
        for name in names:
            os.chmod(Path(parent, name), 0o444)


def measure(folder: Path) -> int:
    """Bytes that the files below `folder` take on disk."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(Path(parent, name)).st_blocks * 512
    return total


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o444)
    try:
        yield fd
    finally:
        os.close(fd)


def _sync(path: Path) -> None:
    with _opened(path, os.O_RDONLY) as fd:
        os.fsync(fd)


def _replace(path: Path, data: bytes, *, durable: bool) -> None:
    """Old bytes or new ones, never a mixture."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(data)
    if durable:
        _sync(new)
    new.replace(path)
    if durable:
        _sync(path.parent)
