"""Models of many kinds, in parts and with padding, against the same models as they are; the GPU is simulated."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tests.memory.simulated_gpu import SimulatedMemory

from woodfrog.engine import islands
from woodfrog.engine.sequence_cache import SequenceCache

IMAGE = 150  # the token
LENGTH, ROOM, NEW = 64, 128, 20  # tokens of the padded prompt, of the cache, of an answer
TEXT = {
    "vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
SIGHT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
QWEN_TEXT = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}  # fmt: skip
QWEN_SIGHT = {
    "depth": 3, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 64,
    "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
QWEN_WORDS = {
    "image_token_id": IMAGE, "video_token_id": 151, "vision_start_token_id": 152,
    "vision_end_token_id": 153,
}  # fmt: skip
Made = tuple[Any, dict[str, Any], int, str | None]  # model, images, their tokens, what names them


def qwen2_5() -> Made:
    sight = {**QWEN_SIGHT, "window_size": 32, "fullatt_block_indexes": [1]}
    config = transformers.Qwen2_5_VLConfig(text_config=QWEN_TEXT, vision_config=sight, **QWEN_WORDS)
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    return model, _patches(), 8, "mm_token_type_ids"


def qwen3() -> Made:
    sight = {**QWEN_SIGHT, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    config = transformers.Qwen3VLConfig(text_config=QWEN_TEXT, vision_config=sight, **QWEN_WORDS)
    model = transformers.Qwen3VLForConditionalGeneration(config)
    return model, _patches(), 8, "mm_token_type_ids"


def _patches() -> dict[str, Any]:
    return {"pixel_values": torch.randn(32, 384), "image_grid_thw": torch.tensor([[1, 4, 8]])}


def llava_next() -> Made:
    config = transformers.LlavaNextConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=transformers.CLIPVisionConfig(**SIGHT),
        image_token_index=IMAGE, image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
    )  # fmt: skip
    images = {"pixel_values": _tiles(3)[None], "image_sizes": torch.tensor([[32, 64]])}
    model = transformers.LlavaNextForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.image_newline)
    return model, images, 52, None


def internvl() -> Made:
    config = transformers.InternVLConfig(
        text_config=transformers.Qwen2Config(**TEXT),
        vision_config={**SIGHT, "image_size": [32, 32], "patch_size": [8, 8]},
        image_token_id=IMAGE, downsample_ratio=0.5, image_seq_length=4,
    )  # fmt: skip
    model = transformers.InternVLForConditionalGeneration(config)
    return model, {"pixel_values": _tiles(7)}, 28, None


def mistral3() -> Made:
    config = transformers.Mistral3Config(
        text_config=transformers.MistralConfig(**TEXT),
        vision_config=transformers.PixtralVisionConfig(**SIGHT, head_dim=16),
        image_token_index=IMAGE, spatial_merge_size=2,
    )  # fmt: skip
    images = {"pixel_values": _tiles(1), "image_sizes": torch.tensor([[32, 32]])}
    return transformers.Mistral3ForConditionalGeneration(config), images, 4, None


def gemma3() -> Made:
    layers = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
    config = transformers.Gemma3Config(
        text_config={**TEXT, **layers}, vision_config=transformers.SiglipVisionConfig(**SIGHT),
        mm_tokens_per_image=4, image_token_index=IMAGE, boi_token_index=151, eoi_token_index=152,
    )  # fmt: skip
    model = transformers.Gemma3ForConditionalGeneration(config)
    return model, {"pixel_values": _tiles(2)}, 8, "token_type_ids"


def _tiles(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32)


@pytest.mark.parametrize(
    ("make", "plain"),
    [(qwen2_5, True), (qwen3, True), (llava_next, True), (internvl, True), (mistral3, True), (gemma3, False)],
)  # fmt: skip
def test_in_parts_and_padded_it_says_the_same(make: Callable[[], Made], plain: bool) -> None:
    torch.manual_seed(1)
    model, images, count, kinds = make()
    model.eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:  # norms stay as they are
            torch.nn.init.normal_(parameter, 0.0, 0.3)
    ids = torch.tensor([[3, 4, 5, *[IMAGE] * count, 7, 8, 9]])
    each = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if kinds is not None:
        each[kinds] = (ids == IMAGE).long()
    model.generation_config = transformers.GenerationConfig()
    config = transformers.GenerationConfig(
        max_new_tokens=NEW, do_sample=False, pad_token_id=0, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip

    def said(**inputs: Any) -> tuple[list[int], torch.Tensor]:
        with torch.inference_mode():
            output = model.generate(**inputs, **images, generation_config=config)
        return output.sequences[0, -NEW:].tolist(), torch.stack(output.logits)

    tokens, logits = said(**each)
    cache = SequenceCache(model, ROOM, SimulatedMemory())
    assert cache.plain == plain
    islands.split(model, cache, "cpu", None)
    assert model.device.type == "cpu"
    padding = (LENGTH - ids.shape[1], 0)
    padded = {name: torch.nn.functional.pad(value, padding) for name, value in each.items()}
    for _ in range(2):
        cache.begin()
        found, near = said(**padded, cache=cache)
        assert found == tokens
        torch.testing.assert_close(near, logits, rtol=1e-3, atol=1e-3)


def test_tiles_are_cut_into_few_sizes() -> None:
    sizes: list[int] = []

    def double(values: torch.Tensor, *, mask: torch.Tensor, word: str) -> dict[str, Any]:
        sizes.append(len(values))
        return {"values": values * 2, "mask": mask, "word": word}

    rows = islands.Rows(double, double)
    values, mask = torch.randn(39, 2, 3), torch.randn(39, 4, 1)
    output = rows(values, mask=mask, word="w")
    assert sizes == [*islands.ROWS, 16, 16, 4, 1, 1, 1]  # all of them at the first call
    assert torch.equal(output["values"], values * 2)
    assert torch.equal(output["mask"], mask)
    assert output["word"] == "w"


def test_what_is_no_tiles_stays_whole() -> None:
    def whole(*args: Any, **kwargs: Any) -> str:
        return "whole"

    def batched(*args: Any, **kwargs: Any) -> str:
        return "batched"

    rows = islands.Rows(whole, batched)
    tiles = torch.randn(2, 3, 4)
    assert rows(tiles) == "batched"
    assert rows(tiles[0]) == "whole"
    assert rows(tiles, torch.randn(2, 2)) == "whole"
    assert rows(tiles, torch.randn(3, 3, 4)) == "whole"
    assert rows(tiles[:0]) == "whole"
    assert rows() == "whole"
