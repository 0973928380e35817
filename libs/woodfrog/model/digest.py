"""Digests: `sha256:` and 64 hex digits, as text."""

import hashlib
from pathlib import Path

PREFIX = "sha256:"


def of_bytes(data: bytes | bytearray | memoryview) -> str:
    return PREFIX + hashlib.sha256(data).hexdigest()


def of_file(path: Path) -> str:
    with path.open("rb") as file:
        return PREFIX + hashlib.file_digest(file, "sha256").hexdigest()


def hex_of(digest: str) -> str:
    """The 64 hex digits. Raises ValueError when `digest` is not one of ours."""
    digits = digest.removeprefix(PREFIX)
    if len(digest) != 71 or len(digits) != 64 or set(digits) - set("0123456789abcdef"):
        raise ValueError(f"{digest!r} is not a digest like sha256:<64 hex digits>")
    return digits


def valid(digest: str) -> bool:
    try:
        hex_of(digest)
    except ValueError:
        return False
    return True
