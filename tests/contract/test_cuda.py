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
HERE, THERE = simulated_cuda.GPUS
ELSEWHERE = "GPU-e15e37e5-0000-4000-8000-000000000000"  # of another machine


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The simulated GPU's folder, with two processes on it."""
    monkeypatch.setenv(simulated_cuda.FOLDER, str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    for pid in ("1", "2"):
        (tmp_path / pid).write_text("0")
        (tmp_path / f"{pid}.gpu").write_text(HERE)
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


@pytest.mark.parametrize("op", ["lock", "checkpoint"])
async def test_one_that_cannot_freeze_leaves_all_running(
    cuda: CudaCheckpoints, gpu: Path, op: str
) -> None:
    (gpu / f"2.{op}").write_text("CUDA_ERROR_NOT_SUPPORTED")
    with pytest.raises(Unavailable, match=f"cannot {op} process 2: CUDA_ERROR_NOT_SUPPORTED"):
        await cuda.freeze(1, 2)
    assert await cuda.state(1) is State.RUNNING
    assert await cuda.state(2) is State.RUNNING
    assert (gpu / "1.gpu").read_text() == HERE


async def test_none_is_checkpointed_before_all_are_locked(cuda: CudaCheckpoints, gpu: Path) -> None:
    (gpu / "2").write_text(str(State.LOCKED.value))  # somebody else did
    (gpu / "1.checkpoint").write_text("die")  # when it is called
    with pytest.raises(Unavailable, match="cannot lock process 2: CUDA_ERROR_ILLEGAL_STATE"):
        await cuda.freeze(1, 2)
    assert (gpu / "1.checkpoint").exists()
    assert await cuda.state(1) is State.RUNNING


async def test_one_that_died_does_not_keep_the_other_frozen(
    cuda: CudaCheckpoints, gpu: Path
) -> None:
    (gpu / "2.checkpoint").write_text("gone")
    with pytest.raises(Unavailable, match="cannot checkpoint process 2"):
        await cuda.freeze(1, 2)
    assert await cuda.state(1) is State.RUNNING


async def test_it_wakes_on_another_gpu(cuda: CudaCheckpoints, gpu: Path) -> None:
    await cuda.freeze(1, 2)
    await cuda.wake(1, 2, moved={HERE: THERE})
    assert [(gpu / f"{pid}.gpu").read_text() for pid in (1, 2)] == [THERE, THERE]
    await cuda.freeze(1)
    await cuda.wake(1)
    assert (gpu / "1.gpu").read_text() == THERE


async def test_what_another_machine_froze_wakes_on_a_gpu_that_is_here(
    cuda: CudaCheckpoints, gpu: Path
) -> None:
    await cuda.freeze(1)
    (gpu / "1.gpu").write_text(ELSEWHERE)
    with pytest.raises(Unavailable, match="cannot restore process 1: CUDA_ERROR_INVALID_VALUE"):
        await cuda.wake(1)
    await cuda.wake(1, moved={ELSEWHERE: HERE})
    assert (gpu / "1.gpu").read_text() == HERE


@pytest.mark.parametrize(
    ("moved", "error"),
    [
        ({THERE: HERE}, "CUDA_ERROR_INVALID_VALUE"),  # it was not on that one
        ({HERE: THERE, THERE: HERE}, "CUDA_ERROR_INVALID_VALUE"),  # it could not open the other
        ({HERE: ELSEWHERE}, "CUDA_ERROR_INVALID_VALUE"),  # there is no such one here
        ({HERE: "GPU-7"}, "'GPU-7' is not the uuid of a GPU"),
        ({"frog": THERE}, "'frog' is not the uuid of a GPU"),
    ],
)
async def test_a_move_that_cannot_be_says_why(
    cuda: CudaCheckpoints, gpu: Path, moved: dict[str, str], error: str
) -> None:
    await cuda.freeze(1)
    with pytest.raises(Unavailable, match=f"cannot restore process 1: {error}"):
        await cuda.wake(1, moved=moved)
    assert await cuda.state(1) is State.CHECKPOINTED


async def test_who_uses_cuda_is_known(cuda: CudaCheckpoints, gpu: Path) -> None:
    assert await cuda.users([1, 2, 77]) == {1, 2}
    (gpu / "2.state").write_text("CUDA_ERROR_UNKNOWN")
    with pytest.raises(Unavailable, match="CUDA_ERROR_UNKNOWN"):
        await cuda.users([1, 2, 77])


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


async def test_two_that_hang_run_on(gpu: Path) -> None:
    for pid in (1, 2):
        (gpu / f"{pid}.checkpoint").write_text("hang")
    async with CudaCheckpoints(DRIVER, call_timeout_s=1.0) as cuda:
        with pytest.raises(Unavailable):
            await cuda.freeze(1, 2)
        assert [await cuda.state(pid) for pid in (1, 2)] == [State.RUNNING] * 2


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
