"""The few facts of a GGUF file that an engine is set up by. Source of the format: ggml's docs/gguf.md, versions 2 and 3."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from woodfrog.errors import InvalidArgument

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # fmt: skip
_STRING, _ARRAY = 8, 9
_ENTRIES_MAX = 1 << 16
_TEXT_BYTES_MAX = 16 << 20
_ITEMS_MAX = 1 << 24


@dataclass(frozen=True, slots=True)
class Header:
    architecture: str
    context_tokens: int  # that the model was made for; 0: it does not say
    pools: bool  # its answers are vectors
    template: bool  # of chats
    tools: bool  # the template has something for functions; else llama.cpp leaves them out without a word

    @staticmethod
    def read(path: Path) -> "Header":
        """Raises InvalidArgument GGUF_UNREADABLE, one sentence."""
        try:
            with path.open("rb") as file:
                found = dict(_entries(file))
        except (OSError, ValueError, struct.error) as error:
            raise InvalidArgument(
                "GGUF_UNREADABLE",
                f"{path} cannot be read as GGUF: {error}; download it again or take another one",
            ) from None
        named = found.get("general.architecture")
        architecture = named.decode(errors="replace") if isinstance(named, bytes) else ""
        if not architecture:
            raise InvalidArgument(
                "GGUF_UNREADABLE", f"{path} names no architecture; take the file of a whole model"
            )
        template = found.get("tokenizer.chat_template")
        context = found.get(f"{architecture}.context_length", 0)
        return Header(
            architecture,
            context if isinstance(context, int) else 0,
            bool(found.get(f"{architecture}.pooling_type")),
            bool(template),
            isinstance(template, bytes) and b"tool" in template,
        )


def _entries(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    magic, version, _, count = struct.unpack("<4sIQQ", _take(file, 24))
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError("it does not begin as GGUF of version 2 or 3")
    if count > _ENTRIES_MAX:
        raise ValueError(f"it says that it has {count} entries")
    for _ in range(count):
        name = _text(file).decode()
        (kind,) = struct.unpack("<I", _take(file, 4))
        yield name, _value(file, kind)


def _value(file: BinaryIO, kind: int) -> Any:
    """None for an array, which is passed over."""
    if kind in _NUMBERS:
        form = "<" + _NUMBERS[kind]
        return struct.unpack(form, _take(file, struct.calcsize(form)))[0]
    if kind == _STRING:
        return _text(file)
    if kind != _ARRAY:
        raise ValueError(f"it has a value of the unknown kind {kind}")
    inner, count = struct.unpack("<IQ", _take(file, 12))
    if count > _ITEMS_MAX or inner == _ARRAY:
        raise ValueError(f"it has an array of {count} values of kind {inner}")
    if inner in _NUMBERS:
        _take(file, count * struct.calcsize("<" + _NUMBERS[inner]))
    else:
        for _ in range(count):
            _value(file, inner)
    return None


def _text(file: BinaryIO) -> bytes:
    (length,) = struct.unpack("<Q", _take(file, 8))
    if length > _TEXT_BYTES_MAX:
        raise ValueError(f"it has a text of {length} bytes")
    return _take(file, length)


def _take(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise ValueError("it ends too early")
    return data
