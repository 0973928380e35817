"""`woodfrog up` and `woodfrog down`."""

import asyncio
import json
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from woodfrog.cli import doctor, health, supervisor
from woodfrog.cli.cluster import NODES_MAX, ROUTERS_MAX, Cluster, Tools, to_type
from woodfrog.cli.show import count
from woodfrog.clock import SystemClock
from woodfrog.errors import FailedPrecondition, Unavailable

READY_TIMEOUT_S = 60.0
READY_MORE_S = 10.0  # for each further node or router
_OF_SETTINGS = ("BAD_SETTING", "UNKNOWN_SETTING")
_SAID_MAX = 300  # characters of a log's line
_OTHER_S = READY_TIMEOUT_S + READY_MORE_S * (NODES_MAX + ROUTERS_MAX)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Of a cluster; what is None stays as it is."""

    port: int | None = None  # of the gateway
    nodes: int | None = None
    routers: int | None = None
    auth: str | None = None  # whether the gateway asks for keys: "none" or "keys"
    #: By a node's number: whose models alone it takes, comma between; all nodes not named take everybody's.
    tenants: Mapping[str, str] | None = None


def up(home: Path, wanted: Wanted, foreground: bool) -> int:
    check_machine()
    with _alone(home) as first:
        was_up = _chosen(home, wanted)
        cluster = Cluster.existing(home)
        if foreground and not was_up:
            check_ports(cluster)
            print(f"starting; gateway {cluster.base_url}; Ctrl-C ends it", flush=True)
            return supervisor.run(cluster.home, up=first.release)
        _start(cluster)
    print(f"the cluster in {cluster.home} {'was up already' if was_up else 'is up'}")
    if cluster.node_count > 1:
        print(f"  nodes    {cluster.node_count}")
    if cluster.router_count > 1:
        print(f"  routers  {cluster.router_count}")
    print(f"  gateway  {cluster.base_url}, gRPC at {cluster.address('router')}")
    print(f"  logs     {cluster.home}/logs")
    print(f"  stop     {to_type('down', cluster.home)}")
    return 0


def start(cluster: Cluster) -> None:
    """Starts it when it is not up, and waits until it serves. Raises Unavailable; then nothing is left running."""
    with _alone(cluster.home):
        _start(cluster)


@contextmanager
def _alone(home: Path) -> Iterator[supervisor.Lock]:
    """Who begins while another does waits, and then finds what the other made. Raises Unavailable UP_UNDER_WAY."""
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FailedPrecondition(
            "HOME_UNUSABLE", f"{home} cannot be made ({error.strerror}); name another with --home"
        ) from None
    lock = supervisor.Lock(home, supervisor.UP_LOCK)
    deadline = time.monotonic() + _OTHER_S
    while True:
        try:
            lock.take()  # tries for a moment
            break
        except FailedPrecondition:
            if time.monotonic() > deadline:
                raise Unavailable(
                    "UP_UNDER_WAY",
                    f"another woodfrog up has been starting the cluster in {home} for {_OTHER_S:.0f} s; see"
                    f" {home}/logs, or end it with: {to_type('down', home.resolve())}",
                ) from None
    try:
        yield lock
    finally:
        lock.release()


def _chosen(home: Path, wanted: Wanted) -> bool:
    """Writes down what is to be started; whether it is up already. Raises FailedPrecondition when that is another one."""
    cluster = Cluster.open(home, wanted.port, wanted.nodes or 1, wanted.routers or 1)
    was_up = supervisor.Lock(cluster.home).holder() is not None
    changed = replace(
        cluster,
        http_port=wanted.port or cluster.http_port,
        auth=wanted.auth or cluster.auth,
        tenants=cluster.tenants if wanted.tenants is None else _named(wanted.tenants),
    ).with_counts(  # with ports that an older release had not
        wanted.nodes or cluster.node_count, wanted.routers or cluster.router_count
    )
    for reason, differs, kept in (
        ("PORT_KEPT", changed.http_port != cluster.http_port, f"port {cluster.http_port}"),
        ("NODES_KEPT", changed.node_count != cluster.node_count, _nodes(cluster)),
        ("ROUTERS_KEPT", changed.router_count != cluster.router_count, _routers(cluster)),
        ("AUTH_KEPT", changed.auth != cluster.auth, f"--auth {cluster.auth}"),
        ("TENANTS_KEPT", changed.tenants != cluster.tenants, f"--node-tenants {_tenants(cluster)}"),
    ):
        if was_up and differs:
            raise FailedPrecondition(
                reason,
                f"the cluster in {cluster.home} is up with {kept}; stop it first with:"
                f" {to_type('down', cluster.home)}",
            )
    _check_tenants(changed)
    if not was_up:
        _check_apart(changed)
        changed.save()
    return was_up


def _named(tenants: Mapping[str, str]) -> Mapping[str, str]:
    return {number: names for number, names in tenants.items() if names}


def _tenants(cluster: Cluster) -> str:
    return " ".join(f"{number}={names}" for number, names in cluster.tenants.items()) or "none"


def _check_tenants(cluster: Cluster) -> None:
    for number in cluster.tenants:
        if int(number) > cluster.node_count:
            raise FailedPrecondition(
                "NODE_UNKNOWN",
                f"--node-tenants names node {number}, and the cluster has {_nodes(cluster)}; give it more with --nodes,"
                " or take all nodes back from tenants with --node-tenants 1=",
            )


def _check_apart(cluster: Cluster) -> None:
    """What is set is set for each router, and of these each must have its own."""
    for name in ("NAME", "USAGE_FILE", "OPERATOR_LISTEN", "METRICS_LISTEN", "SHARED_LISTEN"):
        variable = f"WOODFROG_ROUTER_{name}"
        if cluster.router_count > 1 and variable in os.environ:
            raise FailedPrecondition(
                "SETTINGS_UNUSABLE",
                f"{variable} is set, and would be for each of {_routers(cluster)}; unset it, or start with --routers 1",
            )


def _start(cluster: Cluster) -> None:
    started, pid = None, supervisor.Lock(cluster.home).holder()
    try:
        if pid is None:
            check_ports(cluster)
            with supervisor.uninterrupted():  # else what is started may not be known yet
                started = pid = supervisor.start_detached(cluster.home)
        asyncio.run(wait_ready(cluster, pid))
    except BaseException:
        if started is not None:
            supervisor.stop(cluster.home, started)
        raise


def down(home: Path) -> int:
    was_up = supervisor.stop(home)
    print("stopped; models and snapshots stay" if was_up else "nothing was running")
    return 0


def running(home: Path) -> Cluster:
    """Raises FailedPrecondition NO_CLUSTER, or NOT_UP when it is stopped."""
    cluster = Cluster.existing(home)
    if supervisor.Lock(cluster.home).holder() is None:
        raise FailedPrecondition(
            "NOT_UP",
            f"the cluster in {cluster.home} is not running; start it with: {to_type('up', cluster.home)}",
        )
    return cluster


def check_ports(cluster: Cluster) -> None:
    """Raises FailedPrecondition when another program listens on a port of the stopped cluster."""
    for name, port in {"gateway": cluster.http_port, **cluster.used_ports}.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                mend = "choose another with --port" if name == "gateway" else "stop what uses it"
                raise FailedPrecondition(
                    "PORT_TAKEN",
                    f"port {port} of the {name} cannot be used ({error.strerror}); {mend}",
                ) from None


def check_machine() -> None:
    """Raises FailedPrecondition with what to type for the first need that is not met."""
    for finding in doctor.examine(Tools.find()):
        if finding.needed and finding.mend:
            raise FailedPrecondition(
                "MACHINE_UNFIT",
                f"{finding.name}: {finding.said}; {finding.mend}",
                name=finding.name,
            )


async def wait_ready(cluster: Cluster, supervisor_pid: int | None = None) -> None:
    """Until every service answers SERVING and the gateway is ready.

    Raises Unavailable, at once when the supervisor ends; FailedPrecondition when a service cannot run with its settings.
    """
    began, deadline = SystemClock().wall(), time.monotonic() + _ready_timeout_s(cluster)

    async def wait(child: str) -> None:
        if supervisor_pid is not None and not supervisor.alive(supervisor_pid):
            raise Unavailable(
                "ENDED",
                f"the cluster in {cluster.home} ended while it started: somebody stopped it, or"
                f" {cluster.home}/logs/supervisor.log says why",
            )
        _check_settings(cluster, child, began)
        if time.monotonic() > deadline:
            raise _not_ready(cluster, child)
        await asyncio.sleep(0.05)

    for child in cluster.children:
        while not await _serving(cluster.own_address(child)):
            await wait(child)
    while not await _serving(cluster.address("router")):
        await wait("router")
    while not await asyncio.to_thread(_gateway_ready, cluster):
        await wait("router")


async def _serving(address: str) -> bool:
    return await health.ask(address, timeout_s=1.0) == health.SERVING


def _gateway_ready(cluster: Cluster) -> bool:
    """Whichever router answers."""
    try:
        for _ in range(cluster.connections):
            urllib.request.urlopen(
                f"http://127.0.0.1:{cluster.http_port}/ready", timeout=1.0
            ).close()
    except (urllib.error.URLError, OSError):
        return False
    return True


def _ready_timeout_s(cluster: Cluster) -> float:
    return READY_TIMEOUT_S + READY_MORE_S * (cluster.node_count + cluster.router_count - 2)


def _nodes(cluster: Cluster) -> str:
    return _so_many(cluster.node_count, "node")


def _routers(cluster: Cluster) -> str:
    return _so_many(cluster.router_count, "router")


def _so_many(number: int, noun: str) -> str:
    return f"one {noun}" if number == 1 else count(number, noun)


def _not_ready(cluster: Cluster, child: str) -> Unavailable:
    log = _log(cluster, child)
    last = _last(log)
    said = _said(last) if last else "it wrote no log"
    return Unavailable(
        "NOT_READY",
        f"{child} is not ready after {_ready_timeout_s(cluster):.0f} s: {said}; see {log}",
    )


def _check_settings(cluster: Cluster, child: str, began: float) -> None:
    """Raises FailedPrecondition SETTINGS_UNUSABLE when the child's last word since `began` (wall) is that: no start mends it."""
    log = _log(cluster, child)
    if not log.exists() or log.stat().st_mtime < began:
        return
    last = _last(log)
    if _fields(last).get("reason") in _OF_SETTINGS:
        raise FailedPrecondition(
            "SETTINGS_UNUSABLE", f"{child} cannot start: {_said(last)}; see {log}"
        )


def _log(cluster: Cluster, child: str) -> Path:
    return cluster.home / "logs" / f"{child}.log"


def _last(log: Path) -> str:
    """Its last line; empty where there is none."""
    return (log.read_text().strip().splitlines() or [""])[-1] if log.exists() else ""


def _said(line: str) -> str:
    """What a line of a log says to people."""
    fields = _fields(line)
    text = str(fields.get("error") or fields.get("message") or line)
    return text if len(text) <= _SAID_MAX else text[: _SAID_MAX - 1] + "…"


def _fields(line: str) -> dict[str, Any]:
    """Empty where it is none of ours."""
    try:
        fields = json.loads(line)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}
