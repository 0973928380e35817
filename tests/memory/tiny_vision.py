"""Folders of tiny vision-language models with random weights, each with a processor and a tokenizer of bytes."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTEXT_TOKENS = 512
TILE = 32  # pixels of a side
_TILES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
_SPECIAL = [
    "<end>", "<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *_TILES,
    "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
_LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
IDS = {word: token for token, word in enumerate([*_LETTERS, *_SPECIAL])}
EOS = IDS["<end>"]
_TEXT = {
    "vocab_size": len(IDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
    "initializer_range": 0.3, "eos_token_id": EOS, "pad_token_id": EOS, "bos_token_id": EOS,
    "tie_word_embeddings": False,
}  # fmt: skip
_SEEN = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": TILE, "patch_size": 8, "initializer_range": 0.3,
}  # fmt: skip
_RGB = {
    "do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True,
    "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255,
}  # fmt: skip
_CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def make(folder: Path, name: str = "Idefics3ForConditionalGeneration") -> Path:
    """A new folder. `name` is Idefics3's, Llava's or Qwen2VL's class."""
    config, processor, mark = {
        "Idefics3ForConditionalGeneration": _idefics,
        "LlavaForConditionalGeneration": _llava,
        "Qwen2VLForConditionalGeneration": _qwen,
    }[name]()
    torch.manual_seed(5)
    model = getattr(transformers, name)(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:  # norms stay as they are
            torch.nn.init.normal_(parameter, 0.0, 0.3)
    model.save_pretrained(folder)
    transformers.GenerationConfig(eos_token_id=EOS, pad_token_id=EOS).save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    files = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "pad_token": "<end>",
        },
        "preprocessor_config.json": {**processor, **_RGB},
        "processor_config.json": {
            key: processor[key] for key in ("processor_class", *_PROCESSOR) if key in processor
        },
    }  # fmt: skip
    for file, value in files.items():
        (folder / file).write_text(json.dumps(value))
    (folder / "chat_template.jinja").write_text(_CHAT.replace("IMAGE", mark))
    return folder


_PROCESSOR = ("image_seq_len", "patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")  # fmt: skip


def _idefics() -> tuple[Any, dict[str, Any], str]:
    config = transformers.Idefics3Config(
        text_config={"model_type": "llama", **_TEXT}, vision_config=_SEEN, scale_factor=2,
        image_token_id=IDS["<image>"], tie_word_embeddings=False, pad_token_id=EOS,
    )  # fmt: skip
    processor = {
        "image_processor_type": "Idefics3ImageProcessor", "processor_class": "Idefics3Processor",
        "do_image_splitting": True, "do_pad": True, "size": {"longest_edge": 4 * TILE},
        "max_image_size": {"longest_edge": TILE}, "image_seq_len": 4,
    }  # fmt: skip
    return config, processor, "<image>"


def _llava() -> tuple[Any, dict[str, Any], str]:
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**_TEXT),
        vision_config=transformers.CLIPVisionConfig(**_SEEN),
        image_token_index=IDS["<image>"], tie_word_embeddings=False,
    )  # fmt: skip
    processor = {
        "image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor",
        "size": {"shortest_edge": TILE}, "crop_size": {"height": TILE, "width": TILE},
        "do_center_crop": True, "patch_size": 8, "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }  # fmt: skip
    return config, processor, "<image>"


def _qwen() -> tuple[Any, dict[str, Any], str]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = transformers.Qwen2VLConfig(
        text_config={**_TEXT, "rope_parameters": rope},
        vision_config={
            "depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2,
            "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        image_token_id=IDS["<|image_pad|>"], video_token_id=IDS["<|video_pad|>"],
        vision_start_token_id=IDS["<|vision_start|>"], vision_end_token_id=IDS["<|vision_end|>"],
        tie_word_embeddings=False,
    )  # fmt: skip
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor",
        "min_pixels": TILE * TILE, "max_pixels": 16 * TILE * TILE, "patch_size": 8,
        "temporal_patch_size": 2, "merge_size": 2,
    }  # fmt: skip
    return config, processor, "<|vision_start|><|image_pad|><|vision_end|>"


def tokenizer() -> Tokenizer:
    words = {word: token for word, token in IDS.items() if word not in _SPECIAL}
    made = Tokenizer(models.BPE(words, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in _SPECIAL])
    assert made.get_vocab() == IDS
    return made
