"""Two simulated GPUs, each with room for one replica: what was frozen on one wakes on the other."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.cluster.conftest import Running, descend, wait
from tests.cluster.test_gpu_ladder import GPU_BYTES, QUESTION, lowered, simulated_gpus
from tests.memory import simulated_cuda

HERE, THERE = simulated_cuda.GPUS
MOST_BYTES = GPU_BYTES * 5 // 8


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[Running]:
    with simulated_gpus("0,1") as running:
        running.add("gpu", gpu_bytes=MOST_BYTES, memory_bytes=3 << 30)
        for name in ("other", "more"):
            running.add(name, gpu_bytes=MOST_BYTES, memory_bytes=3 << 30, snapshot="never")
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
    two_gpus.ask(
        QUESTION, "other"
    )  # where most is free, which is not where the first one's weights are
    two_gpus.ask(QUESTION, "more")
    ended(two_gpus, "other")
    before = places(two_gpus)
    for rung in ("frozen", "hot", "parked", "frozen"):
        if two_gpus.replicas("gpu"):
            lowered(two_gpus, rung)
        woken = two_gpus.ask(QUESTION, "gpu")
        assert (woken.rung, woken.text) == (rung, cold.text)
    after = places(two_gpus)
    assert {after[pid] for pid in after.keys() - before.keys()} == {THERE}
    ended(two_gpus, "more")
    lowered(two_gpus, "frozen")
    two_gpus.ask(QUESTION, "gpu")
    newest = places(two_gpus)
    assert {newest[pid] for pid in newest.keys() - after.keys()} == {HERE}  # it is at home there


def ended(running: Running, name: str) -> None:
    (replica,) = running.replicas(name)
    asyncio.run(descend(running.cluster, replica.replica_id, "frozen"))
    wait(lambda: not running.replicas(name), f"the end of {name}")
