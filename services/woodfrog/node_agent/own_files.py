"""Files of a sandbox's own /tmp that its processes map or hold open: they go with the snapshot, or CRIU finds them missing.

Such are libraries that a compiler made while the replica ran. What nobody maps or holds open (the rest of a compiler's
cache) stays behind: a restored process that compiles again makes it anew. Unlinked files are in CRIU's own image.

The replica may write what it likes to its /tmp, at any time. So nothing is followed out of it, a file is read as long
as the image says that it was, and all together are bounded.
"""

import ctypes
import errno
import os
import posixpath
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from woodfrog.errors import DataLoss, FailedPrecondition, ResourceExhausted
from woodfrog.node_agent.image.dump import OpenFile, open_files

OWN = "own"  # the file of a snapshot's tree with their bytes, one after another
TMP = "/tmp"
COUNT_MAX = 4096  # folders too
BYTES_MAX = 48 << 20  # with the ends of pages of as many files it fits a sandbox's /tmp of 64 MiB
_SYS_OPENAT2 = 437
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 1, 2, 4, 8
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class OwnFile:
    """A file or a folder, which comes before what is in it."""

    path: str  # below /tmp
    mode: int  # type and permissions
    size_bytes: int = 0  # of a folder 0
    mtime_ns: int = 0  # since the epoch; of a folder 0, nobody asks


def keep(images: Path, init_pid: int, target: Path) -> list[OwnFile]:
    """Copies what the dump in `images` needs of the sandbox's /tmp into the new file `target`; none, no file.

    Raises FailedPrecondition when a file is not any more what was dumped, ResourceExhausted when they are too many or
    too large, DataLoss when the image is damaged.
    """
    wanted = wanted_of(open_files(images))
    if not wanted:
        return []
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        tmp_fd = os.open(f"/proc/{init_pid}/root{TMP}", flags)
    except OSError as error:
        raise _changed(TMP, os.strerror(error.errno or 0)) from None
    try:
        return copy(tmp_fd, wanted, target)
    finally:
        os.close(tmp_fd)


def wanted_of(files: Iterable[OpenFile]) -> dict[str, OpenFile]:
    """Those below /tmp, by their paths there. Raises DataLoss for a path that CRIU does not write."""
    found: dict[str, OpenFile] = {}
    for file in files:
        if not file.name.startswith(TMP.encode() + b"/"):
            continue
        try:
            name = file.name.decode()
        except UnicodeDecodeError:
            raise _changed(ascii(file.name), "its name is not UTF-8") from None
        path = name.removeprefix(TMP + "/")
        if not path_is_plain(path):
            raise DataLoss("IMAGE_DAMAGED", f"CRIU image has a file {name!r}; checkpoint again")
        known = found.get(path)
        if known is None or known.size_bytes is None:  # CRIU leaves out the size of a log
            found[path] = file
    return dict(sorted(found.items()))


def path_is_plain(path: str) -> bool:
    return "\0" not in path and all(part not in ("", ".", "..") for part in path.split("/"))


def copy(tmp_fd: int, wanted: Mapping[str, OpenFile], target: Path) -> list[OwnFile]:
    """As `keep`. What lies on another file system below `tmp_fd` (code of the host, seen inside) is passed over."""
    kept: dict[str, OwnFile] = {}
    left = BYTES_MAX
    with target.open("xb", buffering=0) as out:
        for path, file in wanted.items():
            try:
                fd = _open(tmp_fd, path, os.O_RDONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno == errno.EXDEV:
                    continue
                raise _changed(path, os.strerror(error.errno or 0)) from None
            try:
                for folder in _new_folders(path, kept):
                    kept[folder] = _folder(tmp_fd, folder)
                kept[path] = _copy_one(fd, path, file, out.fileno(), left)
            finally:
                os.close(fd)
            left -= kept[path].size_bytes
            if len(kept) > COUNT_MAX:
                raise _too_much(f"more than {COUNT_MAX} files and folders", path)
    if not kept:
        target.unlink()
    return list(kept.values())


def rows(files: Iterable[OwnFile]) -> list[list[Any]]:
    """For a manifest's attributes and for a sandbox's init."""
    return [list(astuple(file)) for file in files]


def of_rows(found: object) -> list[OwnFile]:
    """Raises DataLoss for what `rows` does not make."""
    try:
        files = [OwnFile(*row) for row in found] if isinstance(found, list) else None
    except TypeError:
        files = None
    if files is None or not all(map(_valid, files)) or _out_of_bounds(files):
        raise DataLoss(
            "SNAPSHOT_MALFORMED", "a snapshot's list of files for /tmp is damaged; checkpoint again"
        )
    return files


def _valid(file: OwnFile) -> bool:
    numbers = (file.mode, file.size_bytes, file.mtime_ns)
    if not isinstance(file.path, str) or not path_is_plain(file.path):
        return False
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        return False
    return stat.S_ISDIR(file.mode) or stat.S_ISREG(file.mode)


def _out_of_bounds(files: Collection[OwnFile]) -> bool:
    return len(files) > COUNT_MAX or sum(file.size_bytes for file in files) > BYTES_MAX


def _copy_one(fd: int, path: str, file: OpenFile, out_fd: int, left: int) -> OwnFile:
    """As many bytes as there were at the dump: a log may have grown."""
    status = os.fstat(fd)
    if file.mode is not None and file.mode != status.st_mode:
        raise _changed(path, "it has another mode now")
    if stat.S_ISDIR(status.st_mode):
        return OwnFile(path, status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise _changed(path, "it is no regular file")
    size = status.st_size if file.size_bytes is None else file.size_bytes
    if size > left:
        raise _too_much(f"more than {BYTES_MAX >> 20} MiB", path)
    done = 0
    while done < size:
        sent = os.sendfile(out_fd, fd, done, size - done)
        if not sent:
            raise _changed(path, "it is shorter now")
        done += sent
    return OwnFile(path, status.st_mode, size, max(status.st_mtime_ns, 0))


def _new_folders(path: str, known: Collection[str]) -> list[str]:
    """Those above `path` that are not known yet; a known one's own are known."""
    found: list[str] = []
    while (path := posixpath.dirname(path)) and path not in known:
        found.append(path)
    return found[::-1]


def _folder(tmp_fd: int, path: str) -> OwnFile:
    try:
        fd = _open(tmp_fd, path, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        raise _changed(path, os.strerror(error.errno or 0)) from None
    try:
        return OwnFile(path, os.fstat(fd).st_mode)
    finally:
        os.close(fd)


class _How(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("flags", "mode", "resolve")]


def _open(tmp_fd: int, path: str, flags: int) -> int:
    """Raises OSError: EXDEV when it lies on another file system, ELOOP when a part of the path is a link."""
    how = _How(flags | os.O_CLOEXEC, 0, _NO_XDEV | _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH)
    fd = _LIBC.syscall(
        _SYS_OPENAT2, tmp_fd, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)
    )
    if fd < 0:
        raise OSError(ctypes.get_errno(), "openat2")
    return int(fd)


def _changed(path: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        "OWN_FILE_CHANGED",
        f"{path!r} of the replica's /tmp cannot go with its snapshot: {why}; a replica must leave alone what it maps or "
        "holds open while it is checkpointed",
        path=path,
        why=why,
    )


def _too_much(what: str, path: str) -> ResourceExhausted:
    return ResourceExhausted(
        "OWN_FILES_TOO_MUCH",
        f"the replica maps or holds open {what} of its /tmp (up to {path!r}), which do not go with a snapshot; make it "
        "map fewer, or set the model's snapshot to never",
        path=path,
    )
