"""How children are stopped; what a supervisor that was killed leaves is cleaned, however slowly it dies."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from woodfrog.cli import health, supervisor, up
from woodfrog.cli.cluster import Cluster, Tools
from woodfrog.errors import FailedPrecondition

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

# A child that says it is well.
ANSWERING = """
import sys
from concurrent.futures import ThreadPoolExecutor
import grpc
from grpc_health.v1 import health, health_pb2_grpc
server = grpc.server(ThreadPoolExecutor(1))
health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
server.add_insecure_port(sys.argv[1])
server.start()
server.wait_for_termination()
"""


class Made(Cluster):
    """Its routers are such children; all else sleeps."""

    def argv(self, child: str) -> list[str]:
        if child not in self.routers:
            return ["sleep", "100"]
        return ["bash", "-c", ENDING, str(self.home / "ends" / child)]

    def etcd_argv(self, tools: Tools) -> list[str]:
        return ["sleep", "100"]


class Answering(Made):
    """Its scheduler answers."""

    def argv(self, child: str) -> list[str]:
        if child != "scheduler":
            return ["sleep", "100"]
        return [sys.executable, "-c", ANSWERING, self.own_address(child)]


async def test_a_child_that_hangs_is_replaced_and_one_that_never_answered_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "clean", lambda cluster: None)
    monkeypatch.setattr(supervisor, "_ASK_EACH_S", 0.05)
    monkeypatch.setattr(supervisor, "_ANSWERS_S", 0.5)
    plain = Cluster.open(tmp_path)
    cluster = Answering(plain.home, plain.http_port, plain.ports)
    address, stop = cluster.own_address("scheduler"), asyncio.Event()
    running = asyncio.create_task(supervisor.Supervisor(cluster, Tools.find()).run(stop))

    def pids() -> dict[str, str]:
        return {path.name: path.read_text() for path in (tmp_path / "pids").glob("*")}

    async with asyncio.timeout(60):
        while await health.ask(address, 0.5) is None:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)  # the supervisor too has asked it
        before = pids()
        os.kill(int(before["scheduler"]), signal.SIGSTOP)
        while await health.ask(address, 0.5) is None or pids() == before:
            await asyncio.sleep(0.05)
        stop.set()
        await running
    after = pids()
    assert not supervisor.alive(int(before["scheduler"]))
    assert {name for name in before if after[name] != before[name]} == {"scheduler"}


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


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_interrupted_while_it_starts_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Ctrl-C comes while the supervisor's process is made, and before its id is known."""
    begun: list[subprocess.Popen[str]] = []

    class Interrupted(subprocess.Popen[str]):
        def __init__(self, *_: object, **__: object) -> None:
            if when == "before":
                signal.raise_signal(signal.SIGINT)
            super().__init__(["sleep", "100"], text=True)
            begun.append(self)
            if when == "after":
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(supervisor, "clean", lambda cluster: None)
    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        up.start(Cluster.open(tmp_path))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [process.wait(timeout=30) for process in begun] == [-signal.SIGTERM]


def test_who_stops_what_is_about_to_be_made_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "clean", lambda cluster: None)
    starting = supervisor.Lock(tmp_path, supervisor.UP_LOCK)
    starting.take()

    def make() -> None:
        Cluster.open(tmp_path)
        starting.release()

    made = threading.Timer(0.3, make)
    made.start()
    assert not supervisor.stop(tmp_path)
    made.join()
    (tmp_path / "cluster.json").unlink()
    with pytest.raises(FailedPrecondition, match="there is no cluster"):
        supervisor.stop(tmp_path)


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
