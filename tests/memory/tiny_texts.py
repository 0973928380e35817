"""A tiny text model with random weights, whose tokenizer knows more words than it, and whose table of places is short."""

from pathlib import Path

import torch
import transformers
from tests.memory import tiny_vision

WORDS = 280  # of the model; the tokenizer has more
PLACES = 64
BEYOND = "<row_6_col_6>"  # one token, which the model lacks


def make(folder: Path) -> Path:
    """A new folder."""
    assert tiny_vision.IDS[BEYOND] >= WORDS
    torch.manual_seed(5)
    config = transformers.GPTBigCodeConfig(
        vocab_size=WORDS, n_positions=PLACES, n_embd=32, n_layer=2, n_head=2,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    transformers.GPTBigCodeForCausalLM(config).save_pretrained(folder)
    tiny_vision.tokenizer().save(str(folder / "tokenizer.json"))
    return folder
