"""Two simulated GPUs, each with room for one replica: what was frozen on one wakes on the other."""

from collections.abc import Iterator

import pytest

from tests.cluster.conftest import Running, wait
from tests.cluster.test_gpu_ladder import GPU_BYTES, QUESTION, lowered, simulated_gpus
from tests.memory import simulated_cuda

HERE, THERE = simulated_cuda.GPUS
MOST_BYTES = GPU_BYTES * 5 // 8


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[Running]:
    with simulated_gpus("0,1") as running:
        running.add("gpu", gpu_bytes=MOST_BYTES, memory_bytes=3 << 30)
        running.add("other", gpu_bytes=MOST_BYTES, memory_bytes=3 << 30, snapshot="never")
        yield running


def places(running: Running) -> dict[str, str]:
    """The GPU of each process that CUDA restored."""
    folder = running.cluster.home / "simulated-cuda"
    return {path.stem: path.read_text() for path in folder.glob("*.gpu")}


def test_a_replica_wakes_on_the_gpu_that_has_room(two_gpus: Running) -> None:
    cold = two_gpus.ask(QUESTION, "gpu")
    wait(lambda: bool(two_gpus.snapshots("gpu")), "its snapshot")
    assert sorted(places(two_gpus).values()) == [HERE, THERE]  # itself and its snapshot's proof
    lowered(two_gpus, "frozen")
    two_gpus.ask(QUESTION, "other")  # takes the first one's place
    before = places(two_gpus)
    woken = two_gpus.ask(QUESTION, "gpu")
    assert (woken.rung, woken.text) == ("frozen", cold.text)
    after = places(two_gpus)
    assert [after[pid] for pid in after.keys() - before.keys()] == [THERE]
