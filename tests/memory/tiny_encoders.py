"""Folders of tiny encoders and decoders with random weights, and a tokenizer of a few words, for what needs a real model."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", "frog", "ice", "winter"]
CONTEXT_TOKENS = 160
SIZE = 32
SHAPE = {
    "vocab_size": len(WORDS), "hidden_size": SIZE, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 2, "max_position_embeddings": CONTEXT_TOKENS, "pad_token_id": 0,
    "initializer_range": 0.3,
}  # fmt: skip


def make(folder: Path, name: str = "BertModel", pooling: dict[str, Any] | None = None) -> Path:
    """A new folder. `pooling` becomes the file of sentence-transformers."""
    kind = getattr(transformers, name)
    torch.manual_seed(5)
    model = kind(kind.config_class(**SHAPE)).eval()
    model.save_pretrained(folder)
    write_tokenizer(folder)
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def write_tokenizer(folder: Path) -> None:
    """Its file asks for padding and truncation, as published ones do."""
    fast = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    fast.pre_tokenizer = Whitespace()
    fast.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast.enable_truncation(12)
    fast.enable_padding(length=12)
    fast.save(str(folder / "tokenizer.json"))
