"""Model folders of true size with random weights, so that what is measured needs no download.

    python -m loadtest.shapes NAME FOLDER [--tokenizer DIR]

Names and shapes of tensors are those of the library's own model, so `from_pretrained` finds every weight. Weights are
like normal(0, 0.02), norms are ones, biases zeros; the same name gives the same bytes. A tokenizer is copied and filled
up with words to the model's vocabulary, because random weights choose any token and each must have a text. Quantized
models have the format in which compressed-tensors publishes them.
"""

import importlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.quantizers.auto import AutoHfQuantizer

from loadtest.random_weights import tensors_of, write_weights
from woodfrog.cli import options

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja",
)  # fmt: skip
_VLM_WORDS = 49152  # of the text model's own tokenizer; above them come the words around images


@dataclass(frozen=True, slots=True)
class Shape:
    """A model of Transformers. `config` takes the size of the vocabulary and the ids of special tokens."""

    model: str
    dtype: torch.dtype
    config: Callable[..., Any]
    vocabulary: int = 0  # at least; 0 when the model reads no text
    files: Callable[[], Mapping[str, Any]] = dict  # JSON or text to be put beside the weights
    special: Callable[[], Mapping[int, str]] = (
        dict  # tokens that the tokenizer must have at their ids
    )
    quantization: Mapping[str, Any] | None = None  # as config.json says it


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _llama(
    hidden: int, inter: int, layers: int, heads: int, kv: int, tied: bool = True
) -> Callable[..., Any]:
    """Llama 3.1's, except that the head may be tied to the embeddings in all sizes."""
    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    return lambda **known: transformers.LlamaConfig(
        hidden_size=hidden, intermediate_size=inter, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv, max_position_embeddings=131072,
        rms_norm_eps=1e-5, rope_parameters=rope, tie_word_embeddings=tied, **known,
    )  # fmt: skip


def _quantized(format: str, weights: Mapping[str, Any], inputs: Any = None) -> dict[str, Any]:
    """All linear layers but the head, as published models have it."""
    known = {"dynamic": False, "symmetric": True, "block_structure": None, "observer": "minmax"}
    group = {"targets": ["Linear"], "weights": {**known, **weights}, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed",
        "config_groups": {"group_0": {**group, "output_activations": None}}, "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }  # fmt: skip


def int4(group: int) -> dict[str, Any]:
    """As in the files; `models add` tiles them for a GPU."""
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": group}
    return _quantized("pack-quantized", weights)


INT4 = int4(128)
FP8 = _quantized(
    "float-quantized",
    {"num_bits": 8, "type": "float", "strategy": "channel"},
    {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "symmetric": True},
)


def _vit(**known: Any) -> Any:
    return transformers.ViTConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        num_labels=1000, **known,
    )  # fmt: skip


def _vlm(vocab_size: int, **known: Any) -> Any:
    """SmolVLM 500M's."""
    text = {
        "model_type": "llama", "hidden_size": 960, "intermediate_size": 2560,
        "num_hidden_layers": 32, "num_attention_heads": 15, "num_key_value_heads": 5,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "vocab_size": vocab_size,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "tie_word_embeddings": False, **known,
    }  # fmt: skip
    vision = {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "image_size": 512, "patch_size": 16,
    }  # fmt: skip
    image = next(token for token, word in _vlm_special().items() if word == "<image>")
    return transformers.Idefics3Config(
        text_config=text, vision_config=vision, image_token_id=image, scale_factor=4,
        tie_word_embeddings=False,
    )  # fmt: skip


def _vlm_special() -> dict[int, str]:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    words = ["<global-img>", *tiles, "<fake_token_around_image>", "<image>"]
    return dict(enumerate(words, _VLM_WORDS)) | {49279: "<end_of_utterance>"}


_NORMALIZE = {
    "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip
_VLM_CHAT = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}: "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def _vit_files() -> dict[str, Any]:
    size = {"height": 224, "width": 224}
    processor = {"image_processor_type": "ViTImageProcessor", "size": size, "resample": 2}
    return {"preprocessor_config.json": processor | _NORMALIZE}


def _vlm_files() -> dict[str, Any]:
    processor = {
        "image_processor_type": "Idefics3ImageProcessor", "processor_class": "Idefics3Processor",
        "do_convert_rgb": True, "do_image_splitting": True, "do_pad": True, "resample": 1,
        "size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512},
    }  # fmt: skip
    return {
        "preprocessor_config.json": processor | _NORMALIZE,
        "processor_config.json": {"processor_class": "Idefics3Processor", "image_seq_len": 64},
        "chat_template.jinja": _VLM_CHAT,
    }


_TINY = _llama(256, 512, 2, 4, 2, tied=False)
_SEVENTY = _llama(8192, 28672, 80, 64, 8, tied=False)
_BF16, _F32 = torch.bfloat16, torch.float32
SHAPES: Mapping[str, Shape] = {
    "llama-tiny": Shape("LlamaForCausalLM", _BF16, _llama(256, 512, 2, 4, 2), 2048),
    "llama-1b": Shape("LlamaForCausalLM", _BF16, _llama(2048, 8192, 16, 32, 8), 128256),
    "llama-8b": Shape("LlamaForCausalLM", _BF16, _llama(4096, 14336, 32, 32, 8), 128256),
    "llama-quantized-tiny": Shape("LlamaForCausalLM", _BF16, _TINY, 2048, quantization=INT4),
    "llama-fp8-tiny": Shape("LlamaForCausalLM", _BF16, _TINY, 2048, quantization=FP8),
    "llama-70b": Shape("LlamaForCausalLM", _BF16, _SEVENTY, 128256, quantization=INT4),
    "llama-70b-fp8": Shape("LlamaForCausalLM", _BF16, _SEVENTY, 128256, quantization=FP8),
    "vit": Shape("ViTForImageClassification", _F32, _vit, files=_vit_files),
    "vlm": Shape("Idefics3ForConditionalGeneration", _BF16, _vlm, 49280, _vlm_files, _vlm_special),
    "embeddings": Shape("BertModel", _F32, lambda **known: transformers.BertConfig(**known), 30522),
}
PIPELINES = ("sdxl", "sdxl-tiny")
NAMES = (*SHAPES, *PIPELINES)


def make(name: str, folder: Path, tokenizer: Path | None = None) -> int:
    """Fill a new or empty folder; gives the bytes of its weights. Models without text and pipelines take no tokenizer.

    Raises ValueError for an unknown name and for a tokenizer that the model has no room for, FileExistsError when
    something is in the folder. What was written before an error stays.
    """
    if name not in NAMES:
        raise ValueError(f"{name!r} is none of {', '.join(NAMES)}")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    if name in PIPELINES:
        return _make_pipeline(name, folder)
    return _make_model(SHAPES[name], folder, tokenizer)


def _make_model(shape: Shape, folder: Path, tokenizer: Path | None) -> int:
    known: dict[str, Any] = {}
    if shape.vocabulary:
        known["vocab_size"] = shape.vocabulary
        if tokenizer is not None:
            known |= _tokens(shape, tokenizer)
            copy_tokenizer(tokenizer, folder, known["vocab_size"], shape.special())
    config = shape.config(**known)
    model = hollow(shape, config)
    total = write_weights(folder, "model", tensors_of(model, shape.dtype))
    _save_config(config, shape.model, shape.dtype, folder)
    if model.can_generate():
        ids = {key: value for key, value in known.items() if key != "vocab_size"}
        settings = ids or {key: getattr(config.get_text_config(), key) for key in _IDS}
        transformers.GenerationConfig(**settings).save_pretrained(folder)
    for name, value in shape.files().items():
        if isinstance(value, str):
            (folder / name).write_text(value)
        else:
            _write_json(folder / name, value)
    return total


_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def _tokens(shape: Shape, tokenizer: Path) -> dict[str, Any]:
    """The vocabulary that the model needs for this tokenizer, and the tokenizer's special ids."""
    words = transformers.AutoTokenizer.from_pretrained(tokenizer)
    if shape.special() and len(words) > min(shape.special()):
        raise ValueError(f"{tokenizer} has {len(words)} tokens, room is for {min(shape.special())}")
    ids = {key: getattr(words, key) for key in _IDS}
    return {"vocab_size": max(shape.vocabulary, len(words))} | ids


def copy_tokenizer(source: Path, target: Path, vocabulary: int, special: Mapping[int, str]) -> None:
    """Its files; tokens are added until there are `vocabulary`. None of them is ever made out of text, but `special`."""
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    value = json.loads((target / "tokenizer.json").read_text())
    words, added = value["model"]["vocab"], value["added_tokens"]
    taken = {*words.values(), *(token["id"] for token in added)}
    for token in (token for token in range(vocabulary) if token not in taken):
        words[special.get(token, f"Ġw{token}")] = token
        if token in special:
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            added.append({"id": token, "content": special[token], **flags, "special": True})
    (target / "tokenizer.json").write_text(json.dumps(value, ensure_ascii=False))


def _hollow(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The library's own model, without memory for its weights."""
    with torch.device("meta"):
        return model(*args, **kwargs)


def hollow(shape: Shape, config: Any) -> Any:
    """The model of a shape without memory, with the parameters that its files have. Quantization joins the config."""
    model = _hollow(getattr(transformers, shape.model), config)
    if shape.quantization is not None:
        config.quantization_config = dict(shape.quantization)
        known = transformers.CompressedTensorsConfig(**shape.quantization)
        quantizer = AutoHfQuantizer.from_config(known)
        quantizer.validate_environment()
        quantizer.preprocess_model(model)
    return model


def _save_config(config: Any, model: str, dtype: torch.dtype, folder: Path) -> None:
    config.architectures = [model]
    config.dtype = dtype
    config.save_pretrained(folder)


_SDXL_UNET = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
_TINY_UNET = _SDXL_UNET | {
    "sample_size": 32, "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4), "cross_attention_dim": 64,
    "transformer_layers_per_block": (1, 2), "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
}  # fmt: skip


def _vae(channels: tuple[int, ...], layers: int, sample: int) -> dict[str, Any]:
    return {
        "block_out_channels": channels, "layers_per_block": layers, "sample_size": sample,
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "scaling_factor": 0.13025, "force_upcast": True,
    }  # fmt: skip


def _clip(vocabulary: int, hidden: int, layers: int, heads: int, act: str) -> dict[str, Any]:
    """Both text encoders' of SDXL; their last token is the end of the text."""
    return {
        "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "hidden_act": act,
        "projection_dim": hidden, "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1,
        "pad_token_id": 1,
    }  # fmt: skip


_PIPELINE_PARTS: Mapping[str, tuple[dict[str, Any], ...]] = {
    "sdxl": (
        _SDXL_UNET, _vae((128, 256, 512, 512), 2, 1024),
        _clip(49408, 768, 12, 12, "quick_gelu"), _clip(49408, 1280, 32, 20, "gelu"),
    ),
    "sdxl-tiny": (
        _TINY_UNET, _vae((32, 64), 1, 128),
        _clip(1000, 32, 5, 4, "quick_gelu"), _clip(1000, 32, 5, 4, "gelu"),
    ),
}  # fmt: skip


def _make_pipeline(name: str, folder: Path) -> int:
    """A folder of diffusers, in half precision, as SDXL is published."""
    diffusers: Any = importlib.import_module("diffusers")
    unet, vae, *texts = _PIPELINE_PARTS[name]
    classes = (transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection)
    encoders = [
        _hollow(model, transformers.CLIPTextConfig(**config))
        for model, config in zip(classes, texts, strict=True)
    ]
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
        timestep_spacing="leading",
    )  # fmt: skip
    pipeline = diffusers.StableDiffusionXLPipeline(
        unet=_hollow(diffusers.UNet2DConditionModel, **unet),
        vae=_hollow(diffusers.AutoencoderKL, **vae),
        text_encoder=encoders[0], text_encoder_2=encoders[1],
        tokenizer=_clip_tokenizer(texts[0]["vocab_size"], "<|endoftext|>"),
        tokenizer_2=_clip_tokenizer(texts[1]["vocab_size"], "!"),
        scheduler=scheduler, add_watermarker=False,
    )  # fmt: skip
    pipeline.save_config(folder)
    total = 0
    for part, value in pipeline.components.items():
        if isinstance(value, torch.nn.Module):
            (folder / part).mkdir()
            text = isinstance(value, transformers.PreTrainedModel)
            stem = "model" if text else "diffusion_pytorch_model"
            total += write_weights(folder / part, stem, tensors_of(value, torch.float16))
            if text:
                _save_config(value.config, type(value).__name__, torch.float16, folder / part)
            else:
                value.save_config(folder / part)
        elif value is not None:
            value.save_pretrained(folder / part)
    return total


def _clip_tokenizer(vocabulary: int, pad: str) -> Any:
    """Every byte is a token; the other words fill the vocabulary up."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [*map(chr, printable), *map(chr, range(256, 256 + 256 - len(printable)))]
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += [f"w{token}</w>" for token in range(len(words), vocabulary - 2)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        vocab={word: token for token, word in enumerate(words)}, merges=[], model_max_length=77,
        pad_token=pad,
    )  # fmt: skip


def main() -> None:
    parser = options.Parser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("folder", type=options.folder)
    parser.add_argument("--tokenizer", type=options.folder, help="folder of tokenizer.json")
    args = parser.parse_args()
    began = time.perf_counter()
    total = make(args.name, args.folder, args.tokenizer)
    took = time.perf_counter() - began
    print(f"{args.folder}: {total / 1e9:.2f} GB of weights in {took:.1f} s")


if __name__ == "__main__":
    main()
