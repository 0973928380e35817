"""A module's weights in memory of another process, here simulated GPU memory filled through a real vault."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model
from tests.memory.simulated_gpu import UUID, SimulatedDevice, SimulatedMemory
from tests.unit.replica.test_control import MemoryEngine

from woodfrog.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, Unavailable
from woodfrog.node_agent.vault.arena import Arena
from woodfrog.node_agent.vault.vault import Vault
from woodfrog.replica import layout
from woodfrog.replica.logs import LogRing
from woodfrog.replica.replica import Replica
from woodfrog.replica.weights import WeightMemory, private_tensors, take_out


class Net(torch.nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(32, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.head = torch.nn.Linear(8, 32, bias=False)
        self.head.weight = self.embed.weight  # tied
        self.register_buffer("scale", torch.full((8,), 2.0), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed(ids)) * self.scale)


@pytest.fixture
def vault() -> Vault:
    return Vault(SimulatedDevice(), Arena(0, 1), 2)


def opened(vault: Vault, folder: Path) -> WeightMemory:
    vault.load("w", folder, host=False)
    weights = WeightMemory()
    weights.give(vault.export("w")[0])
    weights.open(SimulatedMemory(), layout.of_folder(folder), 1.0)
    return weights


def test_a_module_computes_the_same_from_shared_memory_and_after_it_was_away(
    tmp_path: Path, vault: Vault
) -> None:
    torch.manual_seed(1)
    original = Net().eval()
    save_model(original, str(tmp_path / "model.safetensors"))
    ids = torch.arange(6)
    expected = original(ids)
    weights = opened(vault, tmp_path)
    other = Net().eval()
    take_out(other, weights.tensors())
    assert torch.equal(other(ids), expected)
    assert other.head.weight is other.embed.weight
    assert weights.holds(other.embed.weight)
    assert weights.holds(other.norm.running_mean)
    assert private_tensors(other, weights) == {}
    address = other.embed.weight.data_ptr()
    weights.detach()
    weights.detach()
    assert not weights.attached
    weights.give(vault.export("w")[0])
    assert other.embed.weight.data_ptr() == address
    assert torch.equal(other(ids), expected)


def test_a_process_that_was_moved_lends_memory_for_its_weights(
    tmp_path: Path, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    original = Net().eval()
    save_model(original, str(tmp_path / "model.safetensors"))
    expected = original(torch.arange(6))
    weights = opened(vault, tmp_path)
    other = Net().eval()
    take_out(other, weights.tensors())
    weights.detach()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", UUID + "1")  # where it was frozen
    with pytest.raises(Unavailable, match="INVALID_DEVICE"):
        weights.give(vault.export("w")[0])
    fd = weights.lend()
    vault.fill("w", tmp_path, fd, host=False)
    os.close(fd)
    assert torch.equal(other(torch.arange(6)), expected)
    weights.detach()
    assert not weights.attached


async def test_only_a_parked_replica_without_its_weights_lends_memory(
    tmp_path: Path, vault: Vault
) -> None:
    save_model(Net(), str(tmp_path / "model.safetensors"))
    weights = opened(vault, tmp_path)
    replica = Replica(MemoryEngine(), LogRing(), weights)
    replica.loaded()
    for rest in (None, "keep"):
        if rest:
            await replica.verbs["park"]({"weights": rest})
        with pytest.raises(FailedPrecondition, match="without its weights") as refusal:
            await replica.verbs["lend"]({})
        assert refusal.value.reason == "WRONG_STATE"
    await replica.verbs["park"]({"weights": "drop"})
    [fd] = (await replica.verbs["lend"]({}))["fds"]
    os.close(fd)
    with pytest.raises(FailedPrecondition):
        await replica.verbs["lend"]({})


def test_a_meta_module_is_filled(tmp_path: Path, vault: Vault) -> None:
    torch.manual_seed(2)
    original = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4, bias=False))
    save_model(original, str(tmp_path / "model.safetensors"))
    with torch.device("meta"):
        other = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4, bias=False))
    take_out(other, opened(vault, tmp_path).tensors())
    assert torch.equal(other(torch.ones(4)), original(torch.ones(4)))


@pytest.mark.parametrize("module", [torch.nn.Linear(5, 4), torch.nn.Linear(4, 4).half()])
def test_tensors_that_do_not_fit_the_module_are_named(
    tmp_path: Path, vault: Vault, module: torch.nn.Module
) -> None:
    save_model(torch.nn.Linear(4, 4), str(tmp_path / "model.safetensors"))
    with pytest.raises(InvalidArgument, match=r"tensor weight is torch\.float32"):
        take_out(module, opened(vault, tmp_path).tensors())


def test_a_tensor_that_is_missing_is_named(tmp_path: Path, vault: Vault) -> None:
    save_model(torch.nn.Linear(4, 4, bias=False), str(tmp_path / "model.safetensors"))
    with pytest.raises(InvalidArgument, match="lack tensor bias"):
        take_out(torch.nn.Linear(4, 4), opened(vault, tmp_path).tensors())


def test_weights_that_nobody_brings_are_not_waited_for_for_ever(tmp_path: Path) -> None:
    save_model(torch.nn.Linear(4, 4), str(tmp_path / "model.safetensors"))
    with pytest.raises(DeadlineExceeded, match="nobody gave"):
        WeightMemory().open(SimulatedMemory(), layout.of_folder(tmp_path), 0.01)


def test_a_large_tensor_of_the_modules_own_is_told(tmp_path: Path, vault: Vault) -> None:
    save_model(torch.nn.Linear(4, 4), str(tmp_path / "model.safetensors"))
    weights = opened(vault, tmp_path)
    module = torch.nn.Linear(4, 4)
    take_out(module, weights.tensors())
    module.register_buffer("table", torch.zeros(1 << 19))
    assert private_tensors(module, weights) == {"table": 1 << 21}
