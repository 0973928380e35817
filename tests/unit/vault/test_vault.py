"""Weights from files onto a simulated GPU and into the arena, and away."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.memory.simulated_gpu import SIZE, SimulatedDevice, SimulatedMemory

from woodfrog.errors import (
    DataLoss,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from woodfrog.node_agent.vault.arena import BLOCK_BYTES, Arena
from woodfrog.node_agent.vault.vault import PIECE_BYTES, Vault, pieces
from woodfrog.replica import layout

NUMBERS = (70 << 20) // 4  # more than one block, no whole number of pieces


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(2):
        save_file(
            {
                f"t{index}": torch.arange(NUMBERS, dtype=torch.int32) + index,
                f"odd{index}": torch.ones(3),
            },
            tmp_path / f"m{index}.safetensors",
        )
    return tmp_path


def on_gpu(vault: Vault, weights: str, folder: Path) -> bool:
    """Whether every tensor is there, byte for byte."""
    fd, size = vault.export(weights)
    assert os.fstat(fd).st_size == size
    found = same(fd, folder)
    os.close(fd)
    return found


def same(fd: int, folder: Path) -> bool:
    found = layout.of_folder(folder)
    assert os.fstat(fd).st_size == found.size_bytes
    right = True
    for index in range(2):
        placed = found.tensors[f"t{index}"]
        raw = os.pread(fd, placed.size_bytes, placed.offset)
        expected = torch.arange(NUMBERS, dtype=torch.int32) + index
        right &= raw == expected.numpy().tobytes()
    return right


def test_weights_go_to_the_gpu_without_an_arena(folder: Path) -> None:
    vault = Vault(SimulatedDevice(), Arena(0, 1), 3)
    vault.load("w", folder, host=False)
    assert on_gpu(vault, "w", folder)
    vault.drop("w", device=True, host=True)
    assert vault.describe()["free_bytes"] == vault.describe()["memory_bytes"]
    with pytest.raises(NotFound):
        vault.export("w")


def test_weights_come_back_from_the_arena_without_their_files(folder: Path) -> None:
    vault = Vault(SimulatedDevice(), Arena(4 * BLOCK_BYTES, 2), 3)
    vault.load("w", folder, host=True)
    assert on_gpu(vault, "w", folder)
    assert vault.describe()["arena_free_bytes"] == BLOCK_BYTES
    vault.drop("w", device=True, host=False)
    for path in folder.iterdir():
        path.rename(path.with_suffix(".away"))
    vault.load("w", folder, host=True)
    for path in folder.iterdir():
        path.rename(path.with_suffix(".safetensors"))
    assert on_gpu(vault, "w", folder)
    vault.drop("w", device=True, host=True)
    assert vault.describe()["arena_free_bytes"] == 4 * BLOCK_BYTES
    assert vault.describe()["weights"] == {}


@pytest.mark.parametrize("source", ["files", "arena", "gpu"])
def test_memory_of_another_process_is_filled(folder: Path, source: str) -> None:
    vault = Vault(SimulatedDevice(), Arena(4 * BLOCK_BYTES, 2), 3)
    if source != "files":
        vault.load("w", folder, host=True)
        vault.drop("w", device=source == "arena", host=source == "gpu")
    before = vault.describe()["free_bytes"]
    lender = SimulatedMemory()
    size = layout.of_folder(folder).size_bytes
    fd = lender.lend(lender.reserve(size), size)
    vault.fill("w", folder, fd, host=source == "files")
    assert same(fd, folder)
    os.close(fd)
    facts = vault.describe()
    assert facts["free_bytes"] == before
    assert facts["weights"]["w"]["host"] == (source != "gpu")
    assert facts["weights"]["w"]["device"] == (source == "gpu")


def test_memory_is_not_filled_with_more_than_was_promised(folder: Path) -> None:
    vault = Vault(SimulatedDevice(), Arena(0, 1), 3)
    lender = SimulatedMemory()
    fd = lender.lend(lender.reserve(2 << 20), 2 << 20)
    with pytest.raises(InvalidArgument, match="promised"):
        vault.fill("w", folder, fd, host=False, size_max=2 << 20)
    os.close(fd)
    assert vault.describe()["weights"] == {}


def test_loads_of_one_model_at_once_make_one_copy(folder: Path) -> None:
    vault = Vault(SimulatedDevice(), Arena(4 * BLOCK_BYTES, 2), 3)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: vault.load("w", folder, host=True), range(4)))
    facts = vault.describe()
    assert facts["memory_bytes"] - facts["free_bytes"] == layout.of_folder(folder).size_bytes


def test_a_full_gpu_says_so_and_a_full_arena_is_done_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SIZE, str(64 << 20))
    vault = Vault(SimulatedDevice(), Arena(BLOCK_BYTES, 1), 2)
    with pytest.raises(ResourceExhausted, match=r"no .* bytes left"):
        vault.load("w", folder, host=False)
    monkeypatch.setenv(SIZE, str(1 << 30))
    vault = Vault(SimulatedDevice(), Arena(BLOCK_BYTES, 1), 2)
    vault.load("w", folder, host=True)  # it goes without the arena
    assert on_gpu(vault, "w", folder)
    assert vault.describe()["arena_free_bytes"] == BLOCK_BYTES


class CuttingDevice(SimulatedDevice):
    """Somebody shortens a file while it is read."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def copy(self, *args: Any) -> None:
        os.truncate(self.file, 1 << 20)
        super().copy(*args)


def test_a_file_that_is_cut_off_after_its_header_was_read(folder: Path) -> None:
    vault = Vault(CuttingDevice(folder / "m1.safetensors"), Arena(4 * BLOCK_BYTES, 2), 2)
    with pytest.raises(DataLoss, match=r"m1\.safetensors is shorter"):
        vault.load("w", folder, host=True)
    facts = vault.describe()
    assert facts["weights"] == {}
    assert facts["free_bytes"] == facts["memory_bytes"]
    assert facts["arena_free_bytes"] == 4 * BLOCK_BYTES


def test_pieces_cover_the_weights_once_and_cross_no_block(folder: Path) -> None:
    of = layout.of_folder(folder)
    cut = list(pieces(of))
    assert sum(piece.size_bytes for piece in cut) == sum(e.size_bytes for e in of.extents)
    for piece in cut:
        assert 0 < piece.size_bytes <= PIECE_BYTES
        last = piece.offset + piece.size_bytes - 1
        assert piece.offset // BLOCK_BYTES == last // BLOCK_BYTES


class FailingDevice(SimulatedDevice):
    """One copy fails, while others are under way."""

    def __init__(self, fails: int = 5) -> None:
        super().__init__()
        self.copies = 0
        self.fails = fails  # which one

    def copy(self, *args: Any) -> None:
        self.copies += 1
        if self.copies == self.fails:
            raise Unavailable("CUDA_FAILED", "CUDA refused a call: simulated")
        super().copy(*args)


@pytest.mark.parametrize("host", [False, True])
def test_a_copy_that_fails_leaves_nothing_behind(folder: Path, host: bool) -> None:
    vault = Vault(FailingDevice(), Arena(4 * BLOCK_BYTES, 2), 3)
    with pytest.raises(Unavailable):
        vault.load("w", folder, host=host)
    facts = vault.describe()
    assert facts["weights"] == {}
    assert facts["free_bytes"] == facts["memory_bytes"]
    assert facts["arena_free_bytes"] == 4 * BLOCK_BYTES
    vault.load("w", folder, host=host)
    assert on_gpu(vault, "w", folder)


@pytest.mark.parametrize("source", ["files", "arena"])
def test_a_fill_that_fails_leaves_nothing_behind(folder: Path, source: str) -> None:
    device = FailingDevice()
    vault = Vault(device, Arena(4 * BLOCK_BYTES, 2), 3)
    if source == "arena":
        device.fails = 0
        vault.load("w", folder, host=True)
        vault.drop("w", device=True, host=False)
        device.fails = device.copies + 2
    lender = SimulatedMemory()
    size = layout.of_folder(folder).size_bytes
    fd = lender.lend(lender.reserve(size), size)
    before = len(os.listdir("/proc/self/fd")), vault.describe()
    with pytest.raises(Unavailable):
        vault.fill("w", folder, fd, host=True)
    assert (len(os.listdir("/proc/self/fd")), vault.describe()) == before
    vault.fill("w", folder, fd, host=True)
    assert same(fd, folder)
    os.close(fd)


def test_loads_and_drops_at_once_lose_and_leak_nothing(folder: Path) -> None:
    vault = Vault(SimulatedDevice(), Arena(4 * BLOCK_BYTES, 2), 3)

    def work(index: int) -> None:
        for turn in range(6):
            if (index + turn) % 3:
                vault.load("w", folder, host=bool(turn % 2))
            else:
                vault.drop("w", device=True, host=True)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    vault.load("w", folder, host=True)
    assert on_gpu(vault, "w", folder)
    vault.drop("w", device=True, host=True)
    facts = vault.describe()
    assert facts["weights"] == {}
    assert facts["free_bytes"] == facts["memory_bytes"]
    assert facts["arena_free_bytes"] == 4 * BLOCK_BYTES
