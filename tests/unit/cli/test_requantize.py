"""A GGUF file in Q8_0: the same model, appearing whole."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize

from woodfrog.cli.requantize import to_q8
from woodfrog.llamacpp.gguf_header import Header

Q4, Q8 = GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0
NAMES = ["a", "b", "ü"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    random = np.random.default_rng(1)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(77)
    writer.add_array("tokenizer.ggml.tokens", NAMES)
    writer.add_string("tokenizer.chat_template", "{{ messages }}")
    writer.add_tensor("norm", random.random(64, dtype=np.float32))
    packed = quantize(random.random((4, 64), dtype=np.float32), Q4)
    writer.add_tensor("matrix", packed, raw_dtype=Q4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_only_the_type_of_matrices_changes(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "folder" / "small.Q8_0.gguf"
    to_q8(source, target)
    before, after = GGUFReader(source), GGUFReader(target)
    assert Header.read(target) == Header.read(source)
    assert after.fields["tokenizer.ggml.tokens"].contents() == NAMES
    assert after.fields["general.file_type"].contents() == 7
    old, new = ({t.name: t for t in reader.tensors} for reader in (before, after))
    assert (old["norm"].data == new["norm"].data).all()
    assert new["matrix"].tensor_type is Q8
    was = dequantize(old["matrix"].data, Q4)
    assert np.abs(dequantize(new["matrix"].data, Q8) - was).max() < 0.005
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_one_that_is_there_is_believed_and_a_failure_leaves_nothing(
    source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "folder" / "x.gguf"
    source.with_name("bad").write_bytes(b"GGUF")
    with pytest.raises((ValueError, IndexError)):
        to_q8(source.with_name("bad"), target)
    assert not list(target.parent.iterdir())
    target.write_bytes(b"there")
    to_q8(source, target)
    assert target.read_bytes() == b"there"
