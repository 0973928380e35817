"""Folders of small text models with random weights, no two alike: some megabytes each, so that a machine holds many."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
_END = "<end>"
_CONTEXT_TOKENS = 512


def make(folder: Path, seed: int) -> Path:
    """A new folder with a Llama of 2.8 million parameters, whose tokens are bytes."""
    words = {word: token for token, word in enumerate([*_LETTERS, _END])}
    config = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=256, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=_CONTEXT_TOKENS,
        eos_token_id=words[_END], pad_token_id=words[_END], bos_token_id=words[_END],
    )  # fmt: skip
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(seed)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE(words, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_END])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
