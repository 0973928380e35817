"""Replicas on a simulated GPU that freeze and end: sandboxes, the vault and the driver process are real processes."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.capabilities import need
from tests.memory import simulated_cuda, simulated_gpu

from woodfrog.errors import Unavailable, WoodfrogError
from woodfrog.host.cgroup import Cgroups
from woodfrog.model.spec import ModelSpec
from woodfrog.node_agent.cuda import State
from woodfrog.node_agent.gpu_state import Bring
from woodfrog.node_agent.gpus import Adapters, Gpus
from woodfrog.node_agent.live import Live
from woodfrog.node_agent.sandbox import SandboxConfig, SandboxPool
from woodfrog.node_agent.vault.client import VaultConfig
from woodfrog.replica import layout
from woodfrog.replica.control import ControlServer

pytestmark = need("root")
ADAPTERS = Adapters(
    "tests.memory.simulated_gpu:SimulatedDevice",
    "tests.memory.simulated_gpu:SimulatedMemory",
    "tests.memory.simulated_cuda:SimulatedDriver",
)
GPU = simulated_cuda.GPUS[0]
SPEC = ModelSpec("frog", "sha256:" + "0" * 64, 1, gpu_bytes=1)
END_WITHIN_S = 2.0
WEIGHTS_BYTES = 64 << 20


@pytest.fixture
def cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The simulated driver's folder."""
    folder = tmp_path / "cuda"
    folder.mkdir()
    monkeypatch.setenv(simulated_cuda.FOLDER, str(folder))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return folder


class Replica:
    """Three processes, two of which use CUDA."""

    def __init__(self, live: Live, inside: list[int], cuda: Path) -> None:
        self.live = live
        self.inside = inside
        self.hosts = [live.sandbox.host_pid(pid) for pid in inside]
        self.parked: list[dict[str, Any]] = []
        self._cuda = cuda

    async def park(self, fields: Any) -> dict[str, Any]:
        self.parked.append(dict(fields))
        return {}

    @property
    def states(self) -> list[State]:
        return [State(int((self._cuda / str(pid)).read_text())) for pid in self.hosts]


@asynccontextmanager
async def started(tmp_path: Path, cuda: Path) -> AsyncIterator[Replica]:
    cgroups = Cgroups(f"test-{os.getpid()}")
    (tmp_path / "kdat").write_bytes(b"probe")
    pool = SandboxPool(cgroups, SandboxConfig(tmp_path / "kdat", tmp_path / "run"), size=0)
    sandbox = await pool.take(1 << 30)
    try:
        pids = [await sandbox.spawn(["/bin/sleep", "600"], {}) for _ in range(3)]
        replica = Replica(Live("r", SPEC, sandbox, False, pids[0], GPU), pids[:2], cuda)
        for pid in replica.hosts:
            (cuda / str(pid)).write_text(str(State.RUNNING.value))
            (cuda / f"{pid}.gpu").write_text(GPU)
        async with ControlServer({"park": replica.park}, sandbox.folder / "control.sock"):
            yield replica
    finally:
        await sandbox.close()
        cgroups.remove_node()


def gpus(tmp_path: Path) -> Gpus:
    config = VaultConfig(tmp_path / "log", tmp_path / "0.sock", 1 << 21, 1, ADAPTERS.vault_device)
    return Gpus([config], ADAPTERS, END_WITHIN_S)


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_every_process_that_uses_cuda_freezes(tmp_path: Path, cuda: Path) -> None:
    async with gpus(tmp_path) as node, started(tmp_path, cuda) as replica:
        frozen = await node.freeze(replica.live.sandbox)
        assert frozen == dict(zip(replica.inside, replica.hosts, strict=True))
        assert replica.states == [State.CHECKPOINTED] * 2


async def test_one_that_does_not_freeze_leaves_all_running(tmp_path: Path, cuda: Path) -> None:
    async with gpus(tmp_path) as node, started(tmp_path, cuda) as replica:
        (cuda / f"{replica.hosts[1]}.checkpoint").write_text("CUDA_ERROR_NOT_SUPPORTED")
        with pytest.raises(Unavailable, match="CUDA_ERROR_NOT_SUPPORTED"):
            await node.freeze(replica.live.sandbox)
        assert replica.states == [State.RUNNING] * 2


@pytest.mark.parametrize(
    ("driver", "state"),
    [
        ("580.159.03", State.RUNNING),
        ("590.44.01", State.CHECKPOINTED),
        ("600", State.CHECKPOINTED),
        ("unknown", State.RUNNING),
    ],
)
async def test_an_end_freezes_first_where_killing_may_hang(
    tmp_path: Path, cuda: Path, monkeypatch: pytest.MonkeyPatch, driver: str, state: State
) -> None:
    monkeypatch.setenv(simulated_gpu.DRIVER, driver)
    async with gpus(tmp_path) as node, started(tmp_path, cuda) as replica:
        await node.end(replica.live)
        assert replica.states == [state] * 2
        assert [fields["weights"] for fields in replica.parked] == (
            ["drop"] if state is State.CHECKPOINTED else []
        )
        assert not any(map(alive, replica.hosts))


@pytest.mark.parametrize("trouble", ["hang", "CUDA_ERROR_UNKNOWN"])
async def test_an_end_comes_in_time_all_the_same(
    tmp_path: Path,
    cuda: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: str,
) -> None:
    monkeypatch.setenv(simulated_gpu.DRIVER, "590.44.01")
    async with gpus(tmp_path) as node, started(tmp_path, cuda) as replica:
        (cuda / f"{replica.hosts[0]}.lock").write_text(trouble)
        start = time.monotonic()
        await node.end(replica.live)
        assert time.monotonic() - start < END_WITHIN_S + 15
        assert not any(map(alive, replica.hosts))
    assert "killed with a GPU in use" in caplog.messages


async def test_a_replica_on_the_cpu_is_just_killed(
    tmp_path: Path, cuda: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(simulated_gpu.DRIVER, "590.44.01")
    async with gpus(tmp_path) as node, started(tmp_path, cuda) as replica:
        replica.live.gpu = ""
        await node.end(replica.live)
        assert replica.parked == []
        assert replica.states == [State.RUNNING] * 2
        assert not any(map(alive, replica.hosts))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder of 64 MiB."""
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file({"t": torch.arange(WEIGHTS_BYTES // 4, dtype=torch.int32)}, folder / "m.safetensors")
    return folder


def own(**changes: Any) -> Bring:
    return replace(Bring(GPU, "w", False, weights_bytes=2 * WEIGHTS_BYTES, own=True), **changes)


class Lender:
    """Its verb lends memory as a replica that was moved does; `filled` once all of it is there."""

    def __init__(self, weights: Path) -> None:
        self._layout = layout.of_folder(weights)
        self._memory = simulated_gpu.SimulatedMemory()
        self._address = self._memory.reserve(self._layout.size_bytes)
        self.lent = asyncio.Event()

    async def lend(self, fields: Any) -> dict[str, Any]:
        self.lent.set()
        return {"fds": [self._memory.lend(self._address, self._layout.size_bytes)]}

    @property
    def filled(self) -> bool:
        tensor = self._memory.view(self._address, self._layout.size_bytes)
        at = self._layout.tensors["t"].offset
        found = tensor[at : at + WEIGHTS_BYTES].view(torch.int32)
        return bool(torch.equal(found, torch.arange(WEIGHTS_BYTES // 4, dtype=torch.int32)))


async def brought(node: Gpus, bring: Bring, weights: Path) -> None:
    node.begin(bring)
    async with node.bringing(bring, weights) as bringing:
        assert bringing is not None
        await bringing.weights


async def test_an_own_copy_takes_the_room_of_the_shared_one(
    tmp_path: Path, cuda: Path, weights: Path
) -> None:
    async with gpus(tmp_path) as node:
        shared = own(own=False)
        await brought(node, shared, weights)
        full = (await node.facts(GPU))["free_bytes"] + WEIGHTS_BYTES // 2
        bring = own(private_bytes=full, drop_device=("w",))
        node.begin(bring)
        async with node.bringing(bring, weights) as bringing:
            assert bringing is not None
            await bringing.room
        assert (await node.facts(GPU))["weights"] == {}
        assert not node.holds(bring)


async def test_what_is_forgotten_is_read_again(tmp_path: Path, cuda: Path, weights: Path) -> None:
    async with gpus(tmp_path) as node:
        shared = own(own=False)
        await brought(node, shared, weights)
        await node.forget(GPU, "w")
        assert (await node.facts(GPU))["weights"] == {}
        assert not node.holds(shared)


async def test_a_vault_that_dies_while_it_fills_is_followed_by_one_that_does_it_again(
    tmp_path: Path, cuda: Path, weights: Path
) -> None:
    async with gpus(tmp_path) as node, started(tmp_path, cuda) as replica:
        lender, before = Lender(weights), len(os.listdir("/proc/self/fd"))
        (pid,) = _vaults(tmp_path)
        path = replica.live.sandbox.folder / "control.sock"
        async with ControlServer({"lend": lender.lend}, path), node.bringing(own(), weights) as way:
            assert way is not None
            await way.weights
            os.kill(pid, signal.SIGSTOP)
            hand_over = asyncio.create_task(node.hand_over(replica.live, way, own(), weights))
            await lender.lent.wait()
            await asyncio.sleep(0.1)
            os.kill(pid, signal.SIGKILL)
            await node.died(GPU)
            await node.restart(GPU)
            assert await hand_over is None
        assert lender.filled
        assert node.current(replica.live.gpu, replica.live.vault)
        assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("trouble", ["no weights", "no lend"])
async def test_a_copy_that_fails_costs_no_descriptor(
    tmp_path: Path, cuda: Path, weights: Path, trouble: str
) -> None:
    async with gpus(tmp_path) as node, started(tmp_path, cuda) as replica:
        lender = Lender(weights)
        verbs = {"lend": lender.lend} if trouble == "no weights" else {}
        before = len(os.listdir("/proc/self/fd"))
        path = replica.live.sandbox.folder / "control.sock"
        async with ControlServer(verbs, path), node.bringing(own(), weights) as way:
            assert way is not None
            (weights / "m.safetensors").unlink()
            with pytest.raises(WoodfrogError):
                await node.hand_over(replica.live, way, own(), weights)
        assert len(os.listdir("/proc/self/fd")) <= before
        facts = await node.facts(GPU)
        assert facts["weights"] == {}
        assert facts["free_bytes"] == facts["memory_bytes"]


async def test_a_vault_that_is_stuck_is_ended_and_started_anew(tmp_path: Path, cuda: Path) -> None:
    config = VaultConfig(tmp_path / "log", tmp_path / "0.sock", 1 << 21, 1, ADAPTERS.vault_device)
    async with Gpus([config], ADAPTERS, health_s=0.2) as node:
        (uuid,) = node.uuids
        (pid,) = _vaults(tmp_path)
        os.kill(pid, signal.SIGSTOP)
        await asyncio.wait_for(node.died(uuid), 20)
        assert not alive(pid)
        await node.restart(uuid)
        assert (await node.facts(uuid))["uuid"] == uuid


def _vaults(tmp_path: Path) -> list[int]:
    """The processes of this test's vault."""
    socket = str(tmp_path / "0.sock").encode()
    folders = (folder for folder in Path("/proc").iterdir() if folder.name.isdigit())
    return [int(folder.name) for folder in folders if socket in _command(folder)]


def _command(folder: Path) -> bytes:
    try:
        return (folder / "cmdline").read_bytes()
    except OSError:
        return b""
