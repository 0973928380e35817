"""What the agent may rely on of CUDA's checkpoints, here against a simulated driver in a real process."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.memory import simulated_cuda

from woodfrog.errors import Unavailable
from woodfrog.node_agent.cuda import CudaCheckpoints, State

DRIVER = "tests.memory.simulated_cuda:SimulatedDriver"


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The simulated GPU's folder, with two processes on it."""
    monkeypatch.setenv(simulated_cuda.FOLDER, str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    for pid in ("1", "2"):
        (tmp_path / pid).write_text("0")
    return tmp_path


@pytest.fixture
async def cuda(gpu: Path) -> AsyncIterator[CudaCheckpoints]:
    async with CudaCheckpoints(DRIVER) as started:
        yield started


async def test_a_process_freezes_and_wakes(cuda: CudaCheckpoints) -> None:
    assert await cuda.state(1) is State.RUNNING
    await cuda.freeze(1)
    assert await cuda.state(1) is State.CHECKPOINTED
    await cuda.wake(1)
    assert await cuda.state(1) is State.RUNNING


async def test_none_goes_on_before_all_are_back(cuda: CudaCheckpoints, gpu: Path) -> None:
    await asyncio.gather(cuda.freeze(1), cuda.freeze(2))
    (gpu / "2.restore").write_text("CUDA_ERROR_OUT_OF_MEMORY")
    with pytest.raises(Unavailable, match="cannot restore process 2: CUDA_ERROR_OUT_OF_MEMORY"):
        await cuda.wake(1, 2)
    assert await cuda.state(1) is State.LOCKED


async def test_a_failed_checkpoint_leaves_the_process_running(
    cuda: CudaCheckpoints, gpu: Path
) -> None:
    (gpu / "1.checkpoint").write_text("CUDA_ERROR_NOT_SUPPORTED")
    with pytest.raises(Unavailable) as caught:
        await cuda.freeze(1)
    assert caught.value.reason == "CUDA_CHECKPOINT_FAILED"
    assert await cuda.state(1) is State.RUNNING


async def test_what_is_no_process_of_cuda_says_so(cuda: CudaCheckpoints) -> None:
    with pytest.raises(Unavailable, match="CUDA_ERROR_INVALID_VALUE"):
        await cuda.freeze(77)


async def test_a_driver_that_hangs_is_left_behind(gpu: Path) -> None:
    (gpu / "1.checkpoint").write_text("hang")
    async with CudaCheckpoints(DRIVER, call_timeout_s=1.0) as cuda:
        with pytest.raises(Unavailable) as caught:
            await cuda.freeze(1)
        assert caught.value.reason == "CUDA_HANGS"
        await cuda.freeze(2)
        assert await cuda.state(2) is State.CHECKPOINTED


async def test_a_process_that_dies_fails_its_calls_and_comes_back(
    cuda: CudaCheckpoints, gpu: Path
) -> None:
    (gpu / "1.state").write_text("die")
    with pytest.raises(Unavailable, match="the driver process died"):
        await cuda.state(1)
    assert await cuda.state(1) is State.RUNNING


async def test_a_node_without_a_gpu_says_so(gpu: Path) -> None:
    (gpu / "no-driver").touch()
    with pytest.raises(Unavailable, match="cannot be used on this node: CUDA_ERROR_NO_DEVICE"):
        async with CudaCheckpoints(DRIVER):
            pass


async def test_the_real_driver_is_asked_for_by_default(gpu: Path) -> None:
    """Here it is not installed, or there is no GPU; where there is one it starts."""
    if os.path.exists("/dev/nvidia0"):
        async with CudaCheckpoints():
            return
    with pytest.raises(Unavailable, match="CUDA cannot be used on this node"):
        async with CudaCheckpoints():
            pass
