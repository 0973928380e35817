"""How children are stopped; what a supervisor that was killed leaves is cleaned, however slowly it dies."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from woodfrog.cli import supervisor
from woodfrog.cli.cluster import Cluster, Tools

# Its first thread ends, and with it what dies with its parent; the process is a zombie whose other thread has its files.
DYING = """
import ctypes, signal, sys, threading, time
from pathlib import Path
from woodfrog.cli.supervisor import Lock
signal.signal(signal.SIGTERM, signal.SIG_IGN)
lock = Lock(Path(sys.argv[1]))
lock.take()
threading.Thread(target=lambda: time.sleep(1.0)).start()
print("has it", flush=True)
ctypes.CDLL(None).syscall(60, 0)  # exit, of this thread alone
"""
# A child that, told to end, first waits for the other two to be told.
ENDING = """
trap 'touch "$0.told"; for _ in $(seq 200); do
    if [ $(ls "${0%/*}" | grep -c told) = 3 ]; then touch "$0.together"; exit; fi; sleep 0.05; done; exit' TERM
touch "$0.up"; while :; do sleep 0.05; done
"""


class Made(Cluster):
    """Its routers are such children; all else sleeps."""

    def argv(self, child: str) -> list[str]:
        if child not in self.routers:
            return ["sleep", "100"]
        return ["bash", "-c", ENDING, str(self.home / "ends" / child)]

    def etcd_argv(self, tools: Tools) -> list[str]:
        return ["sleep", "100"]


async def test_routers_are_told_to_end_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each lets its answers end: one after the other would take a multiple of that."""
    monkeypatch.setattr(supervisor, "clean", lambda cluster: None)
    plain = Cluster.open(tmp_path, router_count=3)
    cluster = Made(plain.home, plain.http_port, plain.ports, router_count=3)
    ends, stop = tmp_path / "ends", asyncio.Event()
    ends.mkdir()
    running = asyncio.create_task(supervisor.Supervisor(cluster, Tools.find()).run(stop))
    async with asyncio.timeout(60):
        while len([*ends.glob("*.up")]) < len(cluster.routers):
            await asyncio.sleep(0.05)
        stop.set()
        await running
    assert {each.stem for each in ends.glob("*.together")} == {*cluster.routers}


def test_what_a_dying_supervisor_left_is_cleaned_once_it_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster.open(tmp_path)
    cleaned: list[Cluster] = []
    monkeypatch.setattr(supervisor, "clean", cleaned.append)
    with subprocess.Popen(
        [sys.executable, "-c", DYING, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "has it\n"
        deadline = time.monotonic() + 30
        while supervisor.alive(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert supervisor.Lock(tmp_path).holder() == process.pid
        assert supervisor.stop(tmp_path)
    assert cleaned == [cluster]
