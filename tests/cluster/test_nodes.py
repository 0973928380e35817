"""Several nodes on one machine."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE, STDOUT

import pytest

from tests.cluster.conftest import Running, replica_pid, wait
from woodfrog.catalog import Catalog
from woodfrog.cli import commands, supervisor, up
from woodfrog.cli.cluster import Cluster
from woodfrog.cli.nodes import drain
from woodfrog.clients.node_agent import NodeAgentClient
from woodfrog.coordination import Session
from woodfrog.errors import FailedPrecondition, ResourceExhausted

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


def test_a_tenants_node_takes_no_others_models_and_a_dedicated_one_goes_nowhere_else() -> None:
    with tempfile.TemporaryDirectory(prefix="woodfrog-test-") as folder:
        plain = Cluster.open(Path(folder), node_count=2)
        cluster = replace(plain, tenants={"2": "acme"})
        cluster.save()
        up.start(cluster)
        try:
            both = Running(cluster)
            both.add("own", tenant="acme", dedicated=True)
            both.add("open")
            for name, number in (("own", 1), ("open", 0)):
                both.ask(QUESTION, name)
                assert {r.node for r in both.replicas(name)} == {cluster.nodes[number].name}
                asyncio.run(_refused(cluster, name, cluster.nodes[1 - number].agent))
        finally:
            supervisor.stop(cluster.home)


async def _refused(cluster: Cluster, model: str, node_agent: str) -> None:
    """Whatever a scheduler asks."""
    async with Session([cluster.address("etcd")]) as session:
        spec = await Catalog(session).get_model(model)
    async with NodeAgentClient(node_agent) as agent:
        with pytest.raises(ResourceExhausted) as climb:
            await agent.climb(spec, None, None, request_id="test", timeout_s=30.0)
        assert climb.value.reason == "NODE_OF_OTHERS"
        with pytest.raises(FailedPrecondition) as prefetch:
            await agent.prefetch(spec, None)
        assert prefetch.value.reason == "NODE_OF_OTHERS"


def test_a_request_leaves_a_node_that_hangs(pair: Running) -> None:
    """Nothing closes its connections: the scheduler tells that the node is lost."""
    pair.add()
    expected = pair.ask(QUESTION)
    wait(lambda: bool(pair.snapshots()), "the snapshot")
    (replica,) = pair.replicas()
    end = replica.node.removeprefix(pair.cluster.node)
    (node,) = [node for node in pair.cluster.nodes if node.name == replica.node]
    (socket,) = node.run_dir.glob("*/engine.sock")
    hung = [pair.pid(f"node_agent{end}"), pair.pid(f"weight_fs{end}"), replica_pid(socket)]
    for pid in hung:
        os.kill(pid, signal.SIGSTOP)
    try:
        answer = pair.ask(QUESTION)
    finally:
        for pid in hung:
            os.kill(pid, signal.SIGCONT)
    assert answer.text == expected.text
    assert answer.replica != expected.replica


@pytest.mark.parametrize("second", ["2", "1"])
def test_two_ups_at_once_make_one_cluster(second: str) -> None:
    """The later one waits, and judges what the other made."""
    with tempfile.TemporaryDirectory(prefix="woodfrog-test-") as folder:
        command = [sys.executable, "-m", "woodfrog.cli", "--home", folder, "up", "--nodes"]
        ups = [
            subprocess.Popen([*command, count], stdout=PIPE, stderr=STDOUT, text=True)
            for count in ("1", second)
        ]
        try:
            said = [process.communicate(timeout=120)[0] for process in ups]
            statuses = [process.returncode for process in ups]
            cluster = Cluster.existing(Path(folder))
            (first,) = [n for n in (0, 1) if "is up\n" in said[n]]
            assert statuses[first] == 0
            assert cluster.node_count == int(("1", second)[first])
            if second == "1":
                assert "was up already" in said[1 - first]
                assert statuses[1 - first] == 0
            else:
                number = ("one node", "2 nodes")[first]
                assert f"is up with {number}; stop it first with:" in said[1 - first]
                assert statuses[1 - first] == 1
            view = asyncio.run(commands.describe(cluster))
            assert len(view.nodes) == cluster.node_count
        finally:
            supervisor.stop(Path(folder))


def test_what_begins_and_is_ended_at_once_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C meets the supervisor before it has its lock."""
    command = [sys.executable, "-m", "woodfrog.cli", "--home", str(tmp_path), "up"]
    starting = subprocess.Popen(command, stdout=PIPE, stderr=STDOUT, text=True)
    wait((tmp_path / "logs" / "supervisor.log").exists, "it begins")
    starting.send_signal(signal.SIGINT)
    starting.communicate(timeout=60)
    assert starting.returncode == 130
    assert supervisor.Lock(tmp_path).holder() is None
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            assert f"woodfrog.cli.supervisor\0{tmp_path}" not in process.read_text()


@pytest.mark.parametrize("when", ["up.lock", "supervisor.lock", "pids/router"])
def test_down_ends_an_up_that_has_not_come_far(when: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "woodfrog.cli", "--home", str(tmp_path), "up"]
    starting = subprocess.Popen(command, stdout=PIPE, stderr=STDOUT, text=True)
    wait((tmp_path / when).exists, "it begins")
    assert supervisor.stop(tmp_path)
    said, _ = starting.communicate(timeout=up.READY_TIMEOUT_S / 2)
    assert starting.returncode == 1
    assert "ended while it started: somebody stopped it" in said
    assert supervisor.Lock(tmp_path).holder() is None
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert not Cluster.existing(tmp_path).run_dir.exists()


def test_down_sweeps_nothing_away_while_somebody_starts_it(tmp_path: Path) -> None:
    """What it would sweep may be the new one's."""
    left = Cluster.open(tmp_path).run_dir / "left"
    left.mkdir(parents=True)
    starts = supervisor.Lock(tmp_path, supervisor.UP_LOCK)
    starts.take()
    try:
        assert not supervisor.stop(tmp_path, begin_s=0.05)
        assert left.exists()
    finally:
        starts.release()
        assert not supervisor.stop(tmp_path)
    assert not left.exists()


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
    assert not any(tree.exists() for tree in trees)  # that of the one that served until then, too
