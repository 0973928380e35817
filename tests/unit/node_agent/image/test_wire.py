"""The wire layer against google.protobuf, and byte for byte against itself."""

import struct
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given, settings
from hypothesis import strategies as st

from woodfrog.errors import DataLoss
from woodfrog.node_agent.image.wire import Kind, Message, read_records, write_records

NUMBERS = st.integers(1, 40)
UINT64 = st.integers(0, (1 << 64) - 1)


def varint(value: int, padding: int = 0) -> bytes:
    """As protobuf allows it: `padding` needless bytes may follow the number."""
    out = []
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, *([value | 0x80] + [0x80] * (padding - 1) + [0] if padding else [value])])


@st.composite
def raw_fields(draw: st.DrawFn) -> tuple[int, bytes]:
    """One field of any wire type, not always in its shortest form."""
    number, wire = draw(NUMBERS), draw(st.sampled_from([0, 1, 2, 5]))
    padding = draw(st.integers(0, 2))
    key = varint(number << 3 | wire, padding)
    match wire:
        case 0:
            return number, key + varint(draw(st.integers(0, 1 << 40)), padding)
        case 2:
            body = draw(st.binary(max_size=300))
            return number, key + varint(len(body), padding) + body
    return number, key + draw(
        st.binary(min_size=8 if wire == 1 else 4, max_size=8 if wire == 1 else 4)
    )


@settings(deadline=None)
@given(st.lists(raw_fields(), max_size=20))
def test_any_message_is_written_back_byte_for_byte(fields: list[tuple[int, bytes]]) -> None:
    data = b"".join(raw for _, raw in fields)
    message = Message.decode(data)
    assert [field.number for field in message.fields] == [number for number, _ in fields]
    assert message.encode() == data


@settings(deadline=None)
@given(st.lists(raw_fields(), max_size=20), NUMBERS, UINT64 | st.binary(max_size=300))
def test_setting_a_field_leaves_all_others_as_they_were(
    fields: list[tuple[int, bytes]], number: int, value: int | bytes
) -> None:
    message = Message.decode(b"".join(raw for _, raw in fields))
    message.set(number, value)
    again = Message.decode(message.encode())
    assert (again.integer(number) if isinstance(value, int) else again.data(number)) == value
    others = [raw for other, raw in fields if other != number]
    assert [field.raw for field in again.fields if field.number != number] == others


def test_what_protobuf_writes_we_read_and_what_we_edit_protobuf_reads() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="vma.proto", package="t", syntax="proto2")
    vma = file.message_type.add(name="vma_entry")
    kinds = descriptor_pb2.FieldDescriptorProto
    for number, name, kind in (
        (1, "start", kinds.TYPE_UINT64),
        (7, "status", kinds.TYPE_UINT32),
        (8, "fd", kinds.TYPE_SINT64),
        (6, "name", kinds.TYPE_STRING),
        (9, "ratio", kinds.TYPE_DOUBLE),
    ):
        vma.field.add(name=name, number=number, type=kind, label=kinds.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    entry = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.vma_entry"))
    theirs = entry(start=(1 << 64) - 4096, status=0x201, fd=-1, name="lib.so", ratio=0.1)
    ours = Message.decode(theirs.SerializeToString())
    assert (ours.integer(1), ours.integer(7), ours.data(6)) == ((1 << 64) - 4096, 0x201, b"lib.so")
    ours.set(7, 0x41)
    ours.set(6, b"pages")
    expected = entry(start=(1 << 64) - 4096, status=0x41, fd=-1, name="pages", ratio=0.1)
    assert entry.FromString(ours.encode()) == expected
    assert entry.FromString(Message.of({1: 300, 6: b"x"}).encode()) == entry(start=300, name="x")


def test_the_last_of_two_equal_fields_counts_and_is_the_one_replaced() -> None:
    message = Message.decode(b"\x08\x01\x08\x02")
    assert message.integer(1) == 2
    message.set(1, 3)
    assert message.encode() == b"\x08\x01\x08\x03"


@pytest.mark.parametrize(
    "data",
    [
        b"\x08",  # a number that is not there
        b"\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00",  # a number of eleven bytes
        b"\x0a\x05abc",  # three bytes of five
        b"\x09\x01",  # one byte of eight
        b"\x0b",  # a group, which CRIU has none of
    ],
)
def test_bytes_that_are_no_message_are_data_loss(data: bytes) -> None:
    with pytest.raises(DataLoss):
        Message.decode(data)


def test_a_missing_required_field_is_data_loss() -> None:
    with pytest.raises(DataLoss):
        Message.decode(b"\x08\x01").data(1)
    with pytest.raises(DataLoss):
        Message.decode(b"\x08\x01").integer(2)
    assert Message.decode(b"").integer(2, 4) == 4


@settings(deadline=None)
@given(st.sampled_from(Kind), st.lists(st.binary(max_size=100), max_size=10))
def test_records_come_back(
    tmp_path_factory: pytest.TempPathFactory, kind: Kind, records: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "records.img"
    write_records(path, kind, records)
    assert read_records(path, kind) == records


def test_a_file_that_is_cut_off_of_another_kind_or_missing_is_data_loss(tmp_path: Path) -> None:
    path = tmp_path / "mm-1.img"
    write_records(path, Kind.MM, [b"abcdef", b"gh"])
    whole = path.read_bytes()
    assert whole[:8] == struct.pack("<II", 0x54564319, 0x57492820)
    second = len(whole) - 6
    for length in set(range(len(whole))) - {8, second}:  # after whole records a file may end
        path.write_bytes(whole[:length])
        with pytest.raises(DataLoss):
            read_records(path, Kind.MM)
    path.write_bytes(whole)
    with pytest.raises(DataLoss, match="does not begin like a CRIU files image"):
        read_records(path, Kind.FILES)
    with pytest.raises(DataLoss, match="missing"):
        read_records(tmp_path / "mm-2.img", Kind.MM)
