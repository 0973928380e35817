"""Several nodes on one machine."""

import asyncio
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import Running, wait
from woodfrog.cli import commands, supervisor, up
from woodfrog.cli.cluster import Cluster
from woodfrog.cli.nodes import drain

QUESTION = "What is the capital of France?"


@pytest.fixture
def pair() -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="woodfrog-test-") as folder:
        cluster = Cluster.open(Path(folder), node_count=2)
        up.start(cluster)
        try:
            yield Running(cluster)
        finally:
            supervisor.stop(cluster.home)
        mounts = Path("/proc/self/mounts").read_text()
        for node in cluster.nodes:
            assert str(node.mount_dir) not in mounts
            assert not node.run_dir.exists()
            assert not list(Path("/sys/fs/cgroup").rglob(f"woodfrog/{node.name}"))


def test_a_drain_brings_a_models_bytes_to_the_other_node_first(pair: Running) -> None:
    pair.add()
    expected = pair.ask(QUESTION).text
    wait(lambda: bool(pair.snapshots()), "the snapshot")
    (replica,) = pair.replicas()
    asyncio.run(drain(pair.cluster, replica.node, 120.0))
    assert not pair.replicas()
    (pointer,) = pair.snapshots()
    (other,) = [node for node in pair.cluster.nodes if node.name != replica.node]
    assert (other.folder / "cache" / pointer.manifest.removeprefix("sha256:")).exists()
    moved = pair.ask(QUESTION)
    assert (moved.rung, moved.text) == ("frozen", expected)  # nothing of it came from the store now
    (there,) = pair.replicas()
    assert there.node == other.name


def test_a_model_whose_node_dies_wakes_on_the_other(pair: Running) -> None:
    nodes = {node.name: node for node in pair.cluster.nodes}
    view = asyncio.run(commands.describe(pair.cluster))
    assert [node.node for node in view.nodes] == sorted(nodes)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert sum(node.memory_bytes for node in view.nodes) <= memory * 4 // 5
    pair.add()
    expected = pair.ask(QUESTION).text
    wait(lambda: bool(pair.snapshots()), "the snapshot")
    (replica,) = pair.replicas()
    end = replica.node.removeprefix(pair.cluster.node)
    for child in (f"node_agent{end}", f"weight_fs{end}"):
        os.kill(pair.pid(child), signal.SIGKILL)
    answer = pair.ask(QUESTION)
    assert answer.text == expected
    wait(lambda: {r.node for r in pair.replicas()} == {*nodes} - {replica.node}, "it on the other")
    asyncio.run(up.wait_ready(pair.cluster))
    (pointer,) = pair.snapshots()
    trees = [
        node.folder / "cache" / pointer.manifest.removeprefix("sha256:") for node in nodes.values()
    ]
    assert all(tree.exists() for tree in trees)
    pair.remove("smollm2")
    # The other one's may be in use until its replica has ended.
    assert not (nodes[replica.node].folder / "cache" / trees[0].name).exists()
