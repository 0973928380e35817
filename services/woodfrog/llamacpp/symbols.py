"""One call between parts of a shared library, led through a function of ours until it is put back.

An x86-64 library that was linked for lazy binding calls its own public functions by a table of addresses, one for each
symbol. Sources: the ELF specification, and its x86-64 supplement (R_X86_64_JUMP_SLOT).
"""

import ctypes
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from woodfrog.errors import FailedPrecondition

_JUMP_SLOT = 7
_DYNSYM, _RELA = 11, 4  # kinds of sections


class Redirection:
    """`library` was loaded from `path`; `function`, of ctypes, lives as long as this."""

    def __init__(self, library: ctypes.CDLL, path: Path, symbol: str, function: Any) -> None:
        """Raises FailedPrecondition when the library does not call the symbol by its table."""
        found = slot_of(path, symbol)
        if found is None:
            raise FailedPrecondition(
                "ENGINE_UNKNOWN_BUILD",
                f"{path.name} is built in another way than woodfrog knows ({symbol} is not called by its table);"
                " install the version of xllamacpp that pyproject.toml names",
            )
        slot, value = found
        self._function = function
        self._own = _address(getattr(library, symbol))
        self._slot = ctypes.c_uint64.from_address(self._own - value + slot)
        self._slot.value = _address(function)

    def end(self) -> None:
        self._slot.value = self._own


def slot_of(path: Path, symbol: str) -> tuple[int, int] | None:
    """Its slot and its value, both relative to where the library is loaded; None when there is no such slot."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        sections = list(_sections(data))
        for section in sections:
            if section.kind != _RELA or sections[section.link].kind != _DYNSYM:
                continue
            symbols = sections[section.link]
            texts = sections[symbols.link]
            rows = data[section.offset : section.offset + section.size]
            for offset, info, _ in struct.iter_unpack("<QQq", rows):
                if info & 0xFFFFFFFF != _JUMP_SLOT:
                    continue
                at = symbols.offset + (info >> 32) * 24
                name_at, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", data, at)
                begin = texts.offset + name_at
                if value and data[begin : data.find(b"\0", begin)] == symbol.encode():
                    return offset, value
    return None


@dataclass(frozen=True, slots=True)
class _Section:
    kind: int
    offset: int
    size: int
    link: int  # another section's number


def _sections(data: mmap.mmap) -> Iterator[_Section]:
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a little-endian ELF file of 64 bits")
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    for number in range(count):
        entry = struct.unpack_from("<IIQQQQIIQQ", data, table + number * size)
        yield _Section(entry[1], entry[4], entry[5], entry[6])


def _address(function: Any) -> int:
    found = ctypes.cast(function, ctypes.c_void_p).value
    assert found is not None
    return found
