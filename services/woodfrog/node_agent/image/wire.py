"""CRIU's image container, and the little of protobuf that editing it takes.

An image file is two 32-bit magics (common and kind; the inventory has only its own) and then records, each a 32-bit
length and one protobuf message, all little-endian. A message is edited field by field: a field that nobody touched is
written back byte for byte, known or not.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from woodfrog.errors import DataLoss

_COMMON_MAGIC = 0x54564319
_VARINT_BYTES_MAX = 10
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5


class Kind(Enum):
    INVENTORY = 0x58313116
    FILES = 0x56303138
    MM = 0x57492820
    PAGEMAP = 0x56084025
    REMAP_FPATH = 0x59133954


@dataclass(frozen=True, slots=True)
class Field:
    number: int
    value: int | bytes  # int for a varint, bytes for everything else
    raw: bytes  # key and value as they stand in the message


class Message:
    """The fields of one protobuf message in their order. Raises DataLoss where the bytes are not a message."""

    def __init__(self, fields: Iterable[Field] = ()) -> None:
        self.fields = list(fields)

    @staticmethod
    def decode(data: bytes) -> "Message":
        fields = []
        at = 0
        while at < len(data):
            key, value_at = _read_varint(data, at)
            number, wire = key >> 3, key & 7
            value: int | bytes
            if wire == _VARINT:
                value, end = _read_varint(data, value_at)
            else:
                length = {_FIXED64: 8, _FIXED32: 4}.get(wire)
                if wire == _DELIMITED:
                    length, value_at = _read_varint(data, value_at)
                if length is None:
                    raise _damaged(f"field {number} has the unknown wire type {wire}")
                end = value_at + length
                value = data[value_at:end]
            if end > len(data):
                raise _damaged(f"field {number} ends after its message")
            fields.append(Field(number, value, data[at:end]))
            at = end
        return Message(fields)

    @staticmethod
    def of(values: dict[int, "int | bytes"]) -> "Message":
        """A new message with these fields, in this order."""
        return Message(_field(number, value) for number, value in values.items())

    def encode(self) -> bytes:
        return b"".join(field.raw for field in self.fields)

    def integer(self, number: int, default: int | None = None) -> int:
        """A varint field; without a default the field is required."""
        value = self._last(number)
        if value is None and default is not None:
            return default
        if not isinstance(value, int):
            raise _damaged(f"field {number} is missing or no number")
        return value

    def data(self, number: int) -> bytes:
        """A required bytes, string or message field."""
        value = self._last(number)
        if not isinstance(value, bytes):
            raise _damaged(f"field {number} is missing or no bytes")
        return value

    def has(self, number: int) -> bool:
        return self._last(number) is not None

    def set(self, number: int, value: int | bytes) -> None:
        """Replaces the last such field, or adds one."""
        new = _field(number, value)
        for index in range(len(self.fields) - 1, -1, -1):
            if self.fields[index].number == number:
                self.fields[index] = new
                return
        self.fields.append(new)

    def _last(self, number: int) -> int | bytes | None:
        """The last one counts where a field that is not repeated occurs twice, as protobuf has it."""
        return next((f.value for f in reversed(self.fields) if f.number == number), None)


def read_records(path: Path, kind: Kind) -> list[bytes]:
    """Raises DataLoss when the file is missing, of another kind or cut off."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataLoss(
            "IMAGE_INCOMPLETE", f"CRIU image {path.name} is missing; checkpoint again", file=path
        ) from None
    head = _head(kind)
    if not data.startswith(head):
        raise DataLoss(
            "IMAGE_MAGIC",
            f"{path.name} does not begin like a CRIU {kind.name.lower()} image; checkpoint again",
            file=path,
        )
    records = []
    at = len(head)
    while at < len(data):
        end = at + 4
        if end <= len(data):
            end += struct.unpack_from("<I", data, at)[0]
        if end > len(data):
            raise DataLoss(
                "IMAGE_CUT_OFF", f"CRIU image {path.name} is cut off; checkpoint again", file=path
            )
        records.append(data[at + 4 : end])
        at = end
    return records


def write_records(path: Path, kind: Kind, records: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        file.write(_head(kind))
        for record in records:
            file.write(struct.pack("<I", len(record)))
            file.write(record)


def _head(kind: Kind) -> bytes:
    if kind is Kind.INVENTORY:
        return struct.pack("<I", kind.value)
    return struct.pack("<II", _COMMON_MAGIC, kind.value)


def _field(number: int, value: int | bytes) -> Field:
    if isinstance(value, int):
        return Field(number, value, _varint(number << 3 | _VARINT) + _varint(value))
    return Field(number, value, _varint(number << 3 | _DELIMITED) + _varint(len(value)) + value)


def _varint(value: int) -> bytes:
    assert 0 <= value < 1 << 64, value
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The value and where it ends."""
    value = 0
    for index, byte in enumerate(data[at : at + _VARINT_BYTES_MAX]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value & (1 << 64) - 1, at + index + 1
    raise _damaged("a number does not end")


def _damaged(what: str) -> DataLoss:
    return DataLoss("IMAGE_DAMAGED", f"CRIU image is damaged: {what}; checkpoint again", what=what)
