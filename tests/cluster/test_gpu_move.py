"""Two simulated GPUs, each with room for one replica: what was frozen on one wakes on the other."""

import asyncio
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, contextmanager

import pytest

from tests.cluster.conftest import Answer, Running, descend, wait
from tests.cluster.test_gpu_ladder import (
    GPU_BYTES,
    QUESTION,
    lowered,
    simulated_gpus,
    vault,
    vault_pid,
)
from tests.memory import simulated_cuda
from woodfrog.clients.node_agent import NodeAgentClient
from woodfrog.model.node import NodeUpdate

HERE, THERE = simulated_cuda.GPUS
MOST_BYTES = GPU_BYTES * 27 // 32  # with weights of its own nothing else is left


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[Running]:
    with simulated_gpus("0,1") as running:
        running.add("gpu", gpu_bytes=MOST_BYTES, memory_bytes=3 << 30)
        for name, size in (("other", MOST_BYTES), ("more", MOST_BYTES), ("small", 1 << 28)):
            running.add(name, gpu_bytes=size, memory_bytes=3 << 30, snapshot="never")
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


def test_a_hot_one_serves_again_when_weights_that_lie_idle_must_go(two_gpus: Running) -> None:
    moved(two_gpus)
    lowered(two_gpus, "hot")
    two_gpus.ask(QUESTION, "small")
    assert gpu_of(two_gpus, "small") == THERE
    ended(two_gpus, "small")
    assert device_copies(two_gpus) == 1
    assert two_gpus.ask(QUESTION, "gpu").rung == "hot"
    assert device_copies(two_gpus) == 0


def test_a_vault_that_dies_over_a_move_is_followed_by_one_that_ends_it(two_gpus: Running) -> None:
    moved(two_gpus)
    for rung in ("frozen", "parked"):
        lowered(two_gpus, rung)
        with asked_and_held(two_gpus) as answer:
            os.kill(vault_pid(two_gpus, 1), signal.SIGKILL)
        # One that has a process ends with its vault, and is restored.
        assert answer.result().rung == "frozen"
        assert gpu_of(two_gpus, "gpu") == THERE
        assert device_copies(two_gpus) == 0


def test_a_replica_that_dies_over_a_move_is_started_cold_and_shares(two_gpus: Running) -> None:
    moved(two_gpus)
    lowered(two_gpus, "frozen")
    before = places(two_gpus)
    with asked_and_held(two_gpus) as answer:
        after = places(two_gpus)
        (pid,) = (pid for pid in after.keys() - before.keys() if after[pid] == THERE)
        os.kill(int(pid), signal.SIGKILL)
    assert answer.result().rung == "absent"
    assert answer.result().fallback
    assert gpu_of(two_gpus, "gpu") == THERE
    assert device_copies(two_gpus) == 1
    lowered(two_gpus, "frozen")
    # The copy that it shared has to go for the one that it makes now.
    assert two_gpus.ask(QUESTION, "gpu").rung == "frozen"
    assert device_copies(two_gpus) == 0


def moved(running: Running) -> None:
    """The model `gpu` serves on the second GPU, and another one on the first."""
    if running.replicas("gpu"):
        lowered(running, "frozen")
    for name in ("other", "more"):
        running.ask(QUESTION, name)
    for name in ("other", "more"):
        if gpu_of(running, name) == THERE:
            ended(running, name)
    assert running.ask(QUESTION, "gpu").rung == "frozen"
    assert gpu_of(running, "gpu") == THERE


@contextmanager
def asked_and_held(running: Running) -> Iterator["Future[Answer]"]:
    """Within, the second GPU's vault is about to fill what the woken replica lends; the answer comes afterwards."""
    hold = running.cluster.home / "hold"
    hold.touch()
    try:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(running.ask, QUESTION, "gpu")
            wait(lambda: hold.read_text() == "held", "a copy that has begun")
            yield answer
            hold.unlink()
    finally:
        hold.unlink(missing_ok=True)


def device_copies(running: Running) -> int:
    """Weights on the second GPU that replicas can share."""
    return sum(each["device"] for each in vault(running, 1)["weights"].values())


def gpu_of(running: Running, name: str) -> str:
    async def first() -> NodeUpdate:
        async with NodeAgentClient(running.cluster.address("node_agent")) as agent:
            async with aclosing(agent.watch()) as updates:
                return await anext(updates)

    (gpu,) = (each.gpu for each in asyncio.run(first()).replicas if each.model == name)
    return gpu


def ended(running: Running, name: str) -> None:
    (replica,) = running.replicas(name)
    asyncio.run(descend(running.cluster, replica.replica_id, "frozen"))
    wait(lambda: not running.replicas(name), f"the end of {name}")
