"""A whole local cluster, every process real: etcd, the five services, sandboxes, CRIU, FUSE and a language model."""

import asyncio
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.capabilities import MODEL, need
from woodfrog.cli import commands, models, supervisor, trace_file, up
from woodfrog.cli.cluster import Cluster
from woodfrog.clients.node_agent import NodeAgentClient
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec

NAME = "smollm2"
WAIT_S = 60.0
NO_WEIGHTS = "sha256:" + "0" * 64


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/cluster" in str(item.path):
            item.add_marker(need("root", "fuse", "criu", "etcd", "model"))
            item.add_marker(pytest.mark.timeout(600))


class Running:
    """One cluster that is up, and what a test asks of it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.client = openai.OpenAI(
            base_url=cluster.base_url, api_key="none", max_retries=0, timeout=120
        )

    def add(self, name: str = NAME, folder: Path = MODEL, **changes: Any) -> None:
        spec = ModelSpec(
            **{
                "name": name,
                "weights": NO_WEIGHTS,
                "weights_bytes": 0,
                "engine_args": {"context_tokens": 1024},
                "park_after_s": 600.0,
                "freeze_after_s": 600.0,
                **changes,
            }
        )

        async def work() -> None:
            async with models.connect(self.cluster) as cell:
                await models.add(cell, spec, folder, lambda line: None)
            await commands.wait_known(self.cluster, name)

        asyncio.run(work())

    def remove(self, name: str) -> None:
        async def work() -> None:
            async with models.connect(self.cluster) as cell:
                await models.remove(cell, name)

        asyncio.run(work())

    def ask(self, question: str, name: str = NAME, max_tokens: int = 16, **more: Any) -> "Answer":
        raw = self.client.chat.completions.with_raw_response.create(
            model=name,
            messages=[{"role": "user", "content": question}],
            max_tokens=max_tokens,
            temperature=0,
            **more,
        )
        return Answer(raw.parse().choices[0].message.content or "", dict(raw.headers))

    def snapshots(self, name: str = NAME) -> list[SnapshotPointer]:
        async def work() -> list[SnapshotPointer]:
            async with models.connect(self.cluster) as cell:
                return list(await cell.catalog.list_snapshots(name))

        return asyncio.run(work())

    def replicas(self, name: str = NAME) -> list[Any]:
        view = asyncio.run(commands.describe(self.cluster))
        return [
            replica for model in view.models if model.model == name for replica in model.replicas
        ]

    def freeze(self, name: str = NAME) -> None:
        """Ends every replica, once the snapshot is there, as the scheduler would when they are idle."""
        wait(lambda: bool(self.snapshots(name)), "a snapshot")
        for replica in self.replicas(name):
            asyncio.run(descend(self.cluster, replica.replica_id))
        wait(lambda: not self.replicas(name), "no replica")

    def spans(self, trace_id: str) -> list[dict[str, Any]]:
        """The spans of one request, when the root and all parents have arrived."""

        def whole() -> bool:
            found = trace_file.read(self.cluster.traces_file, trace_id)
            ids = {span["span_id"] for span in found}
            return bool(found) and all(not s["parent_id"] or s["parent_id"] in ids for s in found)

        wait(whole, f"the whole trace {trace_id}")
        return trace_file.read(self.cluster.traces_file, trace_id)

    def pid(self, child: str) -> int:
        return int((self.cluster.home / "pids" / child).read_text())

    def kill9(self, child: str) -> None:
        """Kills a service, and waits until the supervisor has it back and the cluster is ready."""
        before = self.pid(child)
        os.kill(before, signal.SIGKILL)
        wait(lambda: self.pid(child) != before, f"{child} restarted")
        asyncio.run(up.wait_ready(self.cluster))

    def log(self, service: str) -> list[dict[str, Any]]:
        lines = (self.cluster.home / "logs" / f"{service}.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


class Answer:
    def __init__(self, text: str, headers: dict[str, str]) -> None:
        self.text = text
        self.rung = headers["x-woodfrog-rung"]
        self.climb_ms = float(headers["x-woodfrog-climb-ms"])
        self.fallback = headers.get("x-woodfrog-fallback", "")
        self.trace_id = headers["x-woodfrog-trace-id"]
        self.replica = headers["x-woodfrog-replica"]


async def descend(cluster: Cluster, replica_id: str, rung: str = "frozen") -> None:
    async with NodeAgentClient(cluster.address("node_agent")) as agent:
        await agent.descend(replica_id, Rung(rung))


def wait(condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.05)


def replica_pid(replica_socket: Path) -> int:
    """The replica's process, as the host sees it: who listens on its socket's folder is found by its cgroup."""
    sandbox = replica_socket.parent.name
    for procs in Path("/sys/fs/cgroup").rglob(f"{sandbox}/cgroup.procs"):
        for pid in map(int, procs.read_text().split()):
            status = Path(f"/proc/{pid}/status").read_text()
            inside = next(line for line in status.splitlines() if line.startswith("NSpid:"))
            if inside.split()[-1] == "1000":
                return pid
    raise AssertionError(f"no replica in sandbox {sandbox}")


@pytest.fixture(scope="session")
def home(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Kept, with its logs, when a test failed."""
    folder = Path(tempfile.mkdtemp(prefix="woodfrog-test-"))
    yield folder
    if not request.session.testsfailed:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def running(home: Path) -> Iterator[Running]:
    """One cluster for all tests of the session; a test that changes it puts it back."""
    cluster = Cluster.open(home)
    up.start(cluster)
    try:
        yield Running(cluster)
    finally:
        supervisor.stop(home)
        assert str(cluster.mount_dir) not in Path("/proc/self/mounts").read_text()


@pytest.fixture(scope="session")
def frog(running: Running) -> Running:
    """The cluster with the model, asked once cold and with its snapshot made."""
    running.add()
    running.ask("What is the capital of France?")
    wait(lambda: bool(running.snapshots()), "the first snapshot")
    return running
