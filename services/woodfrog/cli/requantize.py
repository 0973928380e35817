"""A GGUF file anew, with all its matrices in Q8_0: of the types that llama.cpp computes prompts with quickest on a CPU.

It has kernels of their own for several tokens at once for few types, and of Q4_1, for one, it has none. Needs no PyTorch.
"""

import os
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize

_TYPE = GGMLQuantizationType.Q8_0
_FLOATS = (GGMLQuantizationType.F32, GGMLQuantizationType.F16)
_MADE = {"general.architecture", "general.file_type"}  # the writer's, and ours


def to_q8(source: Path, target: Path) -> None:
    """`target` appears whole or not at all; one that is there is believed. Takes seconds and the memory of both."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        _write(GGUFReader(source), partial)
        os.rename(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _write(reader: GGUFReader, path: Path) -> None:
    writer = GGUFWriter(path, reader.fields["general.architecture"].contents())
    writer.add_file_type(7)  # mostly Q8_0
    for name, field in reader.fields.items():
        if name in _MADE or name.startswith("GGUF."):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind is GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    for tensor in reader.tensors:
        data, kept = np.array(tensor.data), tensor.tensor_type
        if len(tensor.shape) > 1 and kept is not _TYPE:
            data, kept = quantize(dequantize(data, kept), _TYPE), _TYPE
        writer.add_tensor(tensor.name, data, raw_dtype=None if kept in _FLOATS else kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
