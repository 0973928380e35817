"""Clears the mount that a killed predecessor left: whatever touches it gets ENOTCONN until it is unmounted."""

import os
from ctypes import CDLL, c_char_p, c_int, get_errno
from pathlib import Path

from woodfrog.errors import FailedPrecondition

NAME = "woodfrog"  # what the mount is called in the table of mounts
_MNT_DETACH = 2
_STACKED_MAX = 16
_LIBC = CDLL(None, use_errno=True)
_LIBC.umount2.argtypes = [c_char_p, c_int]


def clear(folder: Path, table: Path = Path("/proc/self/mountinfo")) -> None:
    """Unmounts only our own. Raises FailedPrecondition MOUNT_DIR_TAKEN when something else is mounted there."""
    for _ in range(_STACKED_MAX):
        found = mounted(folder, table.read_bytes())
        if found is None:
            return
        if found != NAME:
            raise _taken(folder, f"{found} is mounted on it")
        if _LIBC.umount2(os.fsencode(folder), _MNT_DETACH) != 0:
            raise _taken(folder, f"an old mount cannot be undone: {os.strerror(get_errno())}")
    raise _taken(folder, f"more than {_STACKED_MAX} mounts lie on it")


def mounted(folder: Path, table: bytes) -> str | None:
    """Name of what is mounted on `folder` according to /proc/self/mountinfo, the last mount first."""
    wanted = os.fsencode(Path(os.path.realpath(folder.parent), folder.name))
    for line in reversed(table.splitlines()):
        fields = line.split(b" ")
        if _unescaped(fields[4]) == wanted:
            return os.fsdecode(_unescaped(fields[fields.index(b"-") + 2]))
    return None


def _unescaped(field: bytes) -> bytes:
    """The kernel writes space, tab, newline and backslash as three octal digits."""
    head, *rest = field.split(b"\\")
    return head + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


def _taken(folder: Path, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        "MOUNT_DIR_TAKEN", f"cannot mount on {folder}: {why}; choose another folder", path=folder
    )
