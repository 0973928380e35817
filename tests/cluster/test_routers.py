"""Several routers behind one gateway."""

import asyncio
import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.capabilities import GGUF, need
from tests.cluster.conftest import Running, wait
from woodfrog.cli import supervisor, up, usage
from woodfrog.cli.cluster import Cluster

NAME = "llama"
pytestmark = need("llamacpp")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Running]:
    cluster = Cluster.open(tmp_path, router_count=2)
    up.start(cluster)
    try:
        yield Running(cluster)
        pids = [int(file.read_text()) for file in (tmp_path / "pids").iterdir()]
    finally:
        supervisor.stop(tmp_path)
    assert not any(map(supervisor.alive, pids))
    assert not cluster.operators_dir.exists()
    up.check_ports(cluster)  # nobody listens


def test_routers_share_connections_and_the_death_of_one_ends_its_own_alone(pair: Running) -> None:
    pair.add(NAME, GGUF, engine="llamacpp", snapshot="never")
    of_each: tuple[list[HTTPConnection], list[HTTPConnection]] = ([], [])
    for _ in range(pair.cluster.connections):
        connection = _connect(pair.cluster)
        of_each[_router_of(pair.cluster, connection)].append(connection)
    assert all(of_each)
    dead = pair.pid("router")
    os.kill(dead, signal.SIGKILL)
    # Who connects within the moment until the kernel has closed its sockets is cut off with it.
    wait(lambda: not Path(f"/proc/{dead}").exists(), "its end")
    with ThreadPoolExecutor(1) as pool:
        back = pool.submit(asyncio.run, up.wait_ready(pair.cluster))
        asyncio.run(usage.usage(pair.cluster, usage.Span(0, 1), None, as_csv=True))  # of the other
        for connection in of_each[0]:
            with pytest.raises(ConnectionError):
                _ask(connection)
        for connection in of_each[1]:
            _ask(connection)
        asked = 0
        while not back.done():
            _ask(_connect(pair.cluster))
            asked += 1
        back.result()
    assert asked > 1
    assert pair.pid("router") != dead
    for _ in range(pair.cluster.connections):
        _ask(_connect(pair.cluster))
    assert _served(pair.cluster, "router") > 0  # of this process


def _connect(cluster: Cluster) -> HTTPConnection:
    connection = HTTPConnection("127.0.0.1", cluster.http_port, timeout=60)
    connection.connect()
    return connection


def _ask(connection: HTTPConnection) -> None:
    body = json.dumps({"model": NAME, "prompt": "One", "max_tokens": 1})
    connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    said = answer.read()
    assert answer.status == 200, said


def _router_of(cluster: Cluster, connection: HTTPConnection) -> int:
    """Asks, and sees which one counts it: 0 or 1."""
    before = [_served(cluster, router) for router in cluster.routers]
    _ask(connection)
    found: list[float] = []

    def counted() -> bool:
        found[:] = [_served(cluster, router) for router in cluster.routers]
        return found != before

    wait(counted, "a router that counts the request")
    one, other = (now - earlier for now, earlier in zip(found, before, strict=True))
    assert {one, other} == {0.0, 1.0}
    return int(other)


def _served(cluster: Cluster, router: str) -> float:
    with urllib.request.urlopen(f"http://{cluster.metrics[router]}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    counts = [line for line in lines if line.startswith("woodfrog_router_requests_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in counts)
