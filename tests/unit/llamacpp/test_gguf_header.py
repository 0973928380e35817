"""A GGUF file's header is read, or refused in one sentence, whatever its bytes are."""

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from woodfrog.errors import InvalidArgument
from woodfrog.llamacpp.gguf_header import Header


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def entry(name: str, kind: int, data: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + data


def gguf(*entries: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(entries)) + b"".join(entries)


ARCHITECTURE = entry("general.architecture", 8, text("bert"))
WORDS = entry("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b"))
NUMBERS = entry("tokenizer.ggml.scores", 9, struct.pack("<IQ2f", 6, 2, 0.5, 1.5))


def test_what_stands_behind_arrays_is_found(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(
        gguf(
            WORDS,
            ARCHITECTURE,
            NUMBERS,
            entry("bert.context_length", 4, struct.pack("<I", 512)),
            entry("bert.pooling_type", 4, struct.pack("<I", 1)),
            entry("general.quantized", 7, b"\1"),
        )
    )
    assert Header.read(tmp_path / "x.gguf") == Header(
        "bert", 512, pools=True, template=False, tools=False
    )


def test_a_model_of_texts_does_not_pool(tmp_path: Path) -> None:
    template = entry("tokenizer.chat_template", 8, text("{{ messages }}"))
    (tmp_path / "x.gguf").write_bytes(gguf(ARCHITECTURE, template, version=2))
    assert Header.read(tmp_path / "x.gguf") == Header("bert", 0, False, template=True, tools=False)
    template = entry("tokenizer.chat_template", 8, text("{{ messages }}{% if tools %}"))
    (tmp_path / "x.gguf").write_bytes(gguf(ARCHITECTURE, template))
    assert Header.read(tmp_path / "x.gguf").tools


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "ends too early"),
        (b"GGML" + bytes(20), "does not begin as GGUF"),
        (gguf(ARCHITECTURE, version=1), "version 2 or 3"),
        (gguf(ARCHITECTURE)[:-1], "ends too early"),
        (gguf(WORDS), "names no architecture"),
        (gguf(entry("x", 77, b"")), "unknown kind 77"),
        (gguf(entry("x", 9, struct.pack("<IQ", 0, 1 << 40))), "an array of"),
        (gguf(struct.pack("<Q", 1 << 60)), "a text of"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "entries"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(InvalidArgument, match=why):
        Header.read(tmp_path / "x.gguf")


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_header_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    path.write_bytes(gguf(ARCHITECTURE)[:24] + data)
    with contextlib.suppress(InvalidArgument):
        Header.read(path)
