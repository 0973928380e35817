"""Where tensors lie, from headers made by safetensors itself and by hand."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from woodfrog.errors import InvalidArgument
from woodfrog.replica import layout
from woodfrog.replica.layout import ALIGN_BYTES, SIZE_BYTES


def write(path: Path, header: object, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def assemble(folder: Path, of: layout.Layout) -> bytearray:
    block = bytearray(of.size_bytes)
    for extent in of.extents:
        data = (folder / extent.path).read_bytes()
        piece = data[extent.file_offset : extent.file_offset + extent.size_bytes]
        assert len(piece) == extent.size_bytes
        block[extent.offset : extent.offset + extent.size_bytes] = piece
    return block


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([torch.bfloat16, torch.float32, torch.uint8, torch.int64, torch.bool]),
            st.lists(st.integers(0, 40), max_size=3),
            st.booleans(),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_each_tensor_is_found_aligned_in_the_block(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[torch.dtype, list[int], bool]]
) -> None:
    folder = tmp_path_factory.mktemp("weights")
    (folder / "unet").mkdir()
    tensors = {
        f"t{index}": torch.randint(0, 2, shape).to(dtype)
        for index, (dtype, shape, _) in enumerate(drawn)
    }
    inside = {name for name, (_, _, sub) in zip(tensors, drawn, strict=True) if sub}
    save_file({n: t for n, t in tensors.items() if n not in inside}, folder / "a.safetensors")
    save_file({n: t for n, t in tensors.items() if n in inside}, folder / "unet/b.safetensors")
    if not any(tensor.nbytes for tensor in tensors.values()):
        with pytest.raises(InvalidArgument):
            layout.of_folder(folder)
        return
    found = layout.of_folder(folder)
    block = assemble(folder, found)
    assert found.size_bytes % SIZE_BYTES == 0
    assert found.tensors.keys() == {f"unet/{n}" if n in inside else n for n in tensors}
    for name, placed in found.tensors.items():
        tensor = tensors[name.removeprefix("unet/")]
        assert placed.offset % ALIGN_BYTES == 0
        assert placed.shape == tuple(tensor.shape)
        raw = bytes(block[placed.offset : placed.offset + placed.size_bytes])
        assert raw == tensor.flatten().view(torch.uint8).numpy().tobytes()
    ends = [extent.offset + extent.size_bytes for extent in found.extents]
    assert all(end <= extent.offset for end, extent in zip(ends, found.extents[1:], strict=False))


def test_aligned_neighbours_are_read_in_one_piece(tmp_path: Path) -> None:
    save_file(
        {f"t{i}": torch.zeros(256, dtype=torch.uint8) for i in range(5)}, tmp_path / "m.safetensors"
    )
    assert [extent.size_bytes for extent in layout.of_folder(tmp_path).extents] == [1280]


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"", b""),
        (b"{", b""),
        (b"[]", b""),
        ({"t": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"short"),
        ({"t": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}}, b"x" * 16),
        ({"t": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}, b"x" * 16),
        ({"t": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}}, b"x" * 16),
        ({"t": {"dtype": "U8", "shape": [4], "data_offsets": [-4, 0]}}, b"x" * 16),
        ({"t": {"dtype": "U8", "shape": [4]}}, b"x" * 16),
        ({"t": {"dtype": "U8", "shape": [4.0], "data_offsets": [0, 4]}}, b"x" * 16),
        ({"t": {"dtype": "U8", "shape": [4], "data_offsets": [0.0, 4.0]}}, b"x" * 16),
        ({"t": {"dtype": "U8", "shape": [True] * 4, "data_offsets": [0, 1]}}, b"x" * 16),
        ({"t": {"dtype": "U8", "shape": [1] * 65, "data_offsets": [0, 1]}}, b"x" * 16),
        ({"t": {"dtype": "U8", "shape": [0, 10**4000], "data_offsets": [0, 0]}}, b"x" * 16),
        (b'{"t": {"dtype": "U8", "shape": [Infinity], "data_offsets": [0, 0]}}', b"x" * 16),
        ({"t": 7}, b"x" * 16),
        (
            {
                "a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]},
                "b": {"dtype": "U8", "shape": [8], "data_offsets": [4, 12]},
            },
            b"x" * 16,
        ),
        (b"[" * 5000, b""),
    ],
)
def test_a_file_that_lies_is_named(tmp_path: Path, header: object, data: bytes) -> None:
    write(tmp_path / "m.safetensors", header, data)
    with pytest.raises(InvalidArgument, match=r"m\.safetensors is not safetensors"):
        layout.of_folder(tmp_path)


def test_a_header_longer_than_its_file(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    with pytest.raises(InvalidArgument, match="its header has"):
        layout.of_folder(tmp_path)


def test_one_tensor_in_two_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"t": torch.zeros(4)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(InvalidArgument, match="two files have tensor t"):
        layout.of_folder(tmp_path)
