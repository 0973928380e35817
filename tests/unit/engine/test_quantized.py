"""Quantized models, against the same weights unpacked by Transformers and computed plainly."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tests.memory import simulated_int4, tiny_quantized
from tests.memory.simulated_gpu import SimulatedDevice, SimulatedMemory
from tests.memory.tiny_quantized import SCHEMES

from woodfrog.engine import quantized
from woodfrog.engine.batching import Batcher
from woodfrog.engine.brief import BriefCanary
from woodfrog.engine.loading import load_model, load_onto
from woodfrog.engine.request import GREEDY
from woodfrog.engine.sampling import Sampler
from woodfrog.engine.settings import EngineArguments
from woodfrog.errors import InvalidArgument
from woodfrog.node_agent.vault.arena import Arena
from woodfrog.node_agent.vault.vault import Vault
from woodfrog.replica import layout
from woodfrog.replica.weights import WeightMemory, private_tensors

PROMPT = [2 + 7 * n % 90 for n in range(40)]
DEADLINE_S = 180.0


TILED = ("int4 tiled", "int4-groups-of-32 tiled", "int4-channels tiled")


@pytest.fixture(scope="module", params=(*SCHEMES, *TILED))
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("quantized"), request.param)


def made(parent: Path, name: str) -> Path:
    name, _, tiled = name.partition(" ")
    folder = tiny_quantized.make(parent / name, name)
    return tiny_quantized.tile(folder, parent / "tiled") if tiled else folder


@pytest.fixture
def int4(tmp_path: Path) -> Path:
    return tiny_quantized.make(tmp_path, "int4")


def unpacked(folder: Path) -> Any:
    """As bfloat16, by the library and Transformers alone; of a tiled folder, the one that it was made of."""
    if folder.name == "tiled":
        (folder,) = (each for each in folder.parent.iterdir() if each != folder)
    config = transformers.LlamaConfig.from_pretrained(folder)
    said = {**config.quantization_config, "quantization_status": "compressed"}
    config.quantization_config = {**said, "dequantize": True}
    model = transformers.LlamaForCausalLM.from_pretrained(
        folder, config=config, dtype="auto", attn_implementation="sdpa"
    )
    assert not any("packed" in name or "scale" in name for name, _ in model.named_parameters())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([PROMPT])).logits


def shared(folder: Path) -> tuple[Any, WeightMemory]:
    vault = Vault(SimulatedDevice(), Arena(0, 1), 2)
    vault.load("w", folder, host=False)
    weights, memory = WeightMemory(), SimulatedMemory()
    weights.give(vault.export("w")[0])
    weights.open(memory, layout.of_folder(folder), 1.0)
    return load_onto(folder, memory, weights), weights


def test_it_computes_what_unpacked_weights_do(folder: Path) -> None:
    model = load_model(folder)
    assert len(quantized.layers_of(model)) == 3 * 7
    expected = logits(unpacked(folder))
    assert expected.std() > 0.1
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model), expected)  # the first pass left everything as it was


def test_parameters_are_those_of_the_file_after_a_pass_too(folder: Path) -> None:
    model = load_model(folder)
    logits(model)
    filed = load_file(folder / "model.safetensors")
    parameters = dict(model.named_parameters())
    assert {n for n in filed if not n.endswith("input_scale")} <= parameters.keys() <= filed.keys()
    assert all(torch.equal(value, filed[name]) for name, value in parameters.items())
    assert all(value.dtype == filed[name].dtype for name, value in parameters.items())


def test_weights_stay_in_the_files_mapping(int4: Path) -> None:
    model = load_model(int4)
    logits(model)
    lines = Path("/proc/self/maps").read_text().splitlines()
    ends = [line.split()[0].split("-") for line in lines if str(int4) in line]
    mapped = [range(int(begin, 16), int(end, 16)) for begin, end in ends]
    for name, value in model.named_parameters():
        if value.nbytes > 4096:
            assert any(value.data_ptr() in part for part in mapped), name


def test_no_thread_is_left_behind(int4: Path) -> None:
    code = (
        "import sys, threading, pathlib; from woodfrog.engine import loading; loading.prepare(1);"
        " loading.load_model(pathlib.Path(sys.argv[1])); print(threading.active_count())"
    )
    argv = [sys.executable, "-c", code, str(int4)]
    assert subprocess.run(argv, capture_output=True, check=True).stdout == b"1\n"


def test_shared_memory_holds_all_that_is_computed_from(folder: Path) -> None:
    model, weights = shared(folder)
    assert torch.equal(logits(model), logits(load_model(folder)))
    assert all(weights.holds(parameter) for parameter in model.parameters())
    assert private_tensors(model, weights) == {}


async def test_the_batching_manager_gives_the_same_tokens(folder: Path) -> None:
    model, _ = shared(folder)
    canary = BriefCanary(model, PROMPT)
    with torch.inference_mode():
        output = unpacked(folder).generate(
            torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False, eos_token_id=-1
        )
    expected = output[0][len(PROMPT) :].tolist()
    assert len(set(expected)) > 3
    batcher = Batcher(model, [1], EngineArguments(context_tokens=64, slots=2, threads=1))
    batcher.start()
    try:
        ranked = canary.tokens()
        async with asyncio.timeout(DEADLINE_S):
            generation = batcher.submit(PROMPT, Sampler(GREEDY, PROMPT), 12, ignore_eos=True)
            assert [t async for tokens in generation.tokens() for t in tokens] == expected
        assert canary.tokens() == ranked
    finally:
        batcher.stop()


def test_the_brief_canary_computes_from_the_same_memory(folder: Path) -> None:
    model, weights = shared(folder)
    found = BriefCanary(model, PROMPT)
    assert all(weights.holds(parameter) for parameter in found._model.parameters())
    assert all(weights.holds(parameter) for parameter in model.parameters())
    assert found.tokens() == BriefCanary(unpacked(folder), PROMPT).tokens()


@pytest.mark.parametrize("name", ["int4 tiled", "int4-groups-of-32 tiled"])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_int4_by_the_gpus_kernel(tmp_path: Path, name: str, rows: int) -> None:
    for layer in quantized.layers_of(load_model(made(tmp_path, name))).values():
        assert layer._kernel == layer._by_int4
        x = torch.randn(rows, 2 * layer.in_features).bfloat16()[:, : layer.in_features]
        with simulated_int4.kernels(), torch.inference_mode():
            found = layer._by_int4(x)
        expected = x.float() @ layer.unpacked().float().t()
        torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.01)


def test_scales_of_any_sign_have_no_zero_points(tmp_path: Path) -> None:
    layer = next(iter(quantized.layers_of(load_model(made(tmp_path, "int4 tiled"))).values()))
    layer.weight_scale.data = -layer.weight_scale.data
    x = torch.randn(3, layer.in_features).bfloat16()
    with simulated_int4.kernels(), torch.inference_mode():
        found = layer._by_int4(x)
    expected = x.float() @ layer.unpacked().float().t()
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("name", ["fp8", "fp8-tensors"])
def test_fp8_by_the_gpus_kernel(tmp_path: Path, name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    for layer in quantized.layers_of(load_model(tiny_quantized.make(tmp_path, name))).values():
        assert layer._kernel == layer._by_fp8
        x = torch.randn(5, layer.in_features).bfloat16()
        with torch.inference_mode():
            found = layer._by_fp8(x).float()
        expected = x.float() @ layer.unpacked().float().t()
        assert (found - expected).norm() < 0.05 * expected.norm()
        assert (found - expected).norm() > 0  # activations are quantized too


def test_what_no_kernel_takes_is_unpacked(tmp_path: Path) -> None:
    for name in ("int4", "int4-channels", "int4-channels tiled", "fp8", "fp8-weights", "int8"):
        model = load_model(made(tmp_path / name, name))
        assert all(layer._kernel is None for layer in quantized.layers_of(model).values()), name


def test_a_layer_that_does_not_fit_is_packed_in_a_tiled_folder_too(tmp_path: Path) -> None:
    """Which layers are tiled follows from their shapes alone."""
    layers = quantized.layers_of(load_model(made(tmp_path, "int4-channels tiled")))
    tiled = {name.rpartition(".")[2]: layer._tiled for name, layer in layers.items()}
    assert [name for name, each in tiled.items() if not each] == ["down_proj"]


GROUP = {"targets": ["Linear"], "weights": {"num_bits": 4, "symmetric": False}}
EIGHT: dict[str, Any] = {"targets": ["Linear"], "weights": {"num_bits": 8}}


def with_weights(**said: Any) -> dict[str, Any]:
    return {"config_groups": {"a": {"targets": ["Linear"], "weights": {"num_bits": 4, **said}}}}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"quant_method": "gptq"}, "quantized by 'gptq'"),
        ({"quant_method": None}, "quantized by 'None'"),
        ({"format": "nvfp4-pack-quantized"}, "the format 'nvfp4-pack-quantized'"),
        ({"format": "pack-quantized-m16n8k32"}, "the format 'pack-quantized-m16n8k32'"),
        ({"format": ["pack-quantized-m16n8k16"]}, "the format"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "its KV cache is quantized"),
        ({"sparsity_config": {"format": "sparse-bitmask"}}, "sparse or transformed"),
        ({"sparsity_config": "x"}, "sparse or transformed"),
        ({"transform_config": {"a": 1}}, "sparse or transformed"),
        ({"config_groups": {}}, "no groups of layers"),
        ({"config_groups": {"a": 5}}, "something else than its weights"),
        ({"config_groups": {"a": GROUP}}, "packed weights have zero points"),
        ({"config_groups": {"a": {**EIGHT, "targets": ["Embedding"]}}}, "its embeddings are"),
        ({"config_groups": {"a": EIGHT}}, "pack-quantized with 8 bits"),
        ({"config_groups": {"a": {**GROUP, "targets": 5}}}, "no list of targets"),
        (with_weights(dynamic=True), "while it computes"),
        (with_weights(type="float"), "no integers"),
        (with_weights(strategy="group", group_size=0), "group_size to be set to a positive"),
        (with_weights(strategy="group", group_size="x"), "refuses them"),
        (with_weights(strategy="none"), "not a valid QuantizationStrategy"),
        ({"config_groups": {"a": {**EIGHT, "format": "int-quantized"}}}, "several formats"),
    ],
)
def test_what_it_cannot_compute_with_is_refused(
    int4: Path, change: dict[str, Any], why: str
) -> None:
    config = json.loads((int4 / "config.json").read_text())
    config["quantization_config"].update(change)
    (int4 / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidArgument, match=why) as caught:
        load_model(int4)
    assert caught.value.reason == "UNKNOWN_QUANTIZATION"
    assert "take a folder with the model's plain weights" in str(caught.value)


@pytest.mark.parametrize("size", [64, 96])
def test_groups_of_another_size_than_the_files_are_told(int4: Path, size: int) -> None:
    config = json.loads((int4 / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = size
    (int4 / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        InvalidArgument, match="lack 21 tensors of LlamaForCausalLM, or have"
    ) as caught:
        load_model(int4)
    assert caught.value.reason == "WEIGHTS_MISSING"


def test_a_quantized_layer_that_is_not_linear_is_named(tmp_path: Path) -> None:
    model = load_model(tiny_quantized.make(tmp_path, "int8"))
    model.model.norm.quantization_scheme = object()
    with pytest.raises(InvalidArgument, match=r"model\.norm is quantized and a LlamaRMSNorm"):
        quantized.install(model, tiled=False)


def test_fp8_with_zero_points_is_unpacked(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    layer = next(
        iter(quantized.layers_of(load_model(tiny_quantized.make(tmp_path, "fp8"))).values())
    )
    assert layer._kernel_of(layer._scheme)[0] is not None
    layer._scheme.weights.symmetric = False
    assert layer._kernel_of(layer._scheme)[0] is None


def test_experts_are_refused_and_plain_weights_are_not(int4: Path) -> None:
    said = json.loads((int4 / "config.json").read_text())["quantization_config"]
    mixture = transformers.MixtralConfig(num_local_experts=4, quantization_config=said)
    with pytest.raises(InvalidArgument, match="mixture of experts"):
        quantized.quantization_of(mixture, int4)
    assert quantized.quantization_of(transformers.LlamaConfig(), int4) is None
