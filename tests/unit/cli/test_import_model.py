"""The importer: once, whole, and never over something else."""

import json
import stat
from pathlib import Path

import pytest
from tests.capabilities import MODEL, need

from woodfrog.cli.import_model import SOURCE_FILE, find_smollm2, import_gguf, main
from woodfrog.errors import FailedPrecondition, NotFound, WoodfrogError
from woodfrog.model import digest


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF and no model at all")
    return path


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"nothing\.gguf"):
        import_gguf(tmp_path / "nothing.gguf", tmp_path / "out")


def test_a_folder_from_the_same_file_is_left_as_it_is(gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    source = {"gguf": gguf.name, "digest": digest.of_file(gguf)}
    (out / SOURCE_FILE).write_text(json.dumps(source))
    import_gguf(gguf, out)
    assert [path.name for path in out.iterdir()] == [SOURCE_FILE]


@pytest.mark.parametrize("source", [None, '{"gguf": "model.gguf", "digest": "sha256:0"}', "{"])
def test_a_folder_of_something_else_is_never_touched(
    gguf: Path, tmp_path: Path, source: str | None
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if source is not None:
        (out / SOURCE_FILE).write_text(source)
    with pytest.raises(FailedPrecondition) as refusal:
        import_gguf(gguf, out)
    assert refusal.value.reason == "FOLDER_IN_USE"


@pytest.mark.parametrize("content", [b"", b"something else", b"GGUF and no model at all"])
def test_a_file_that_is_no_model_leaves_nothing_behind(
    gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    pytest.importorskip("transformers")
    gguf.write_bytes(content)
    with pytest.raises(WoodfrogError) as refusal:
        import_gguf(gguf, tmp_path / "out")
    assert refusal.value.reason == "GGUF_UNREADABLE"
    assert [path.name for path in tmp_path.iterdir()] == [gguf.name]
    assert main([str(gguf), str(tmp_path / "out")]) == 1
    assert "model.gguf" in capsys.readouterr().err


@need("model")
def test_the_imported_folder_is_what_a_manifest_may_hold() -> None:
    assert find_smollm2().stat().st_size > 50 << 20
    names = {path.name for path in MODEL.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert {stat.S_IMODE(path.stat().st_mode) for path in MODEL.iterdir()} == {0o644}
    assert json.loads((MODEL / "config.json").read_text())["dtype"] == "bfloat16"
    assert (MODEL / "generation_config.json").is_file()
