"""Where a local cluster lives: its folder, its ports, and the environment of each of its processes.

A child is called after its service; those of the second node and later ones have the node's number behind it, `weight_fs-2`,
and so do routers beyond the first: `router-2`.
"""

import hashlib
import json
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from woodfrog.cli import shares
from woodfrog.errors import FailedPrecondition
from woodfrog.host import ports

SERVICES = (
    "snapshot_store",
    "weight_fs",
    "node_agent",
    "scheduler",
    "router",
)  # in the order of start
AUTH = ("none", "keys")
NODES_MAX = ROUTERS_MAX = 16
HOME = Path(os.environ.get("WOODFROG_HOME", ".woodfrog"))
HTTP_PORT = 8321
_OF_A_NODE = ("weight_fs", "node_agent")
_METRICS = (
    "metrics:"  # before a child's name: its port of them; a folder of an older release has none
)
_PORTS = ("etcd", "etcd_peer", "chunks", "traces", *SERVICES)
_ASKED_EACH = 8  # connections for each of several routers


@dataclass(frozen=True, slots=True)
class Tools:
    """Programs that are not Python packages."""

    criu: Path
    etcd: Path

    @staticmethod
    def find() -> "Tools":
        """From WOODFROG_TOOLS, or .tools beside the source; both made by deploy/setup.sh."""
        beside = Path(__file__).resolve().parents[3] / ".tools"
        root = Path(os.environ.get("WOODFROG_TOOLS", beside))
        return Tools(root / "criu.sh", root / "etcd" / "usr" / "bin" / "etcd")


@dataclass(frozen=True, slots=True)
class LocalNode:
    """A node of a local cluster: its name, its folders and the addresses of its two services."""

    name: str
    folder: Path
    run_dir: Path  # short: a socket's path has 107 bytes at most
    agent: str
    weight_fs: str

    @property
    def mount_dir(self) -> Path:
        return self.folder / "mount"


@dataclass(frozen=True, slots=True)
class Cluster:
    """One local cluster. `home` holds all its state; the ports are chosen once and kept there."""

    home: Path
    http_port: int
    ports: Mapping[str, int]
    node_count: int = 1
    router_count: int = 1  # processes behind the gateway's port
    auth: str = "none"  # whether its gateway asks for keys: "none" or "keys"
    tenants: Mapping[str, str] = field(
        default_factory=dict
    )  # by a node's number: whose models alone it takes, comma between

    @staticmethod
    def open(
        home: Path, http_port: int | None = None, node_count: int = 1, router_count: int = 1
    ) -> "Cluster":
        """The cluster of `home`, made when there is none. Raises FailedPrecondition when its file is damaged."""
        home = home.resolve()
        file = home / "cluster.json"
        if file.exists():
            return Cluster.existing(home)
        names = _names(node_count, router_count)
        http_port = http_port or _free_port(HTTP_PORT)
        free = dict(zip(names, ports.free(len(names), {http_port}), strict=True))
        cluster = Cluster(home, http_port, free, node_count, router_count)
        cluster.save()
        return cluster

    def with_counts(self, node_count: int, router_count: int) -> "Cluster":
        """The same with so many nodes and routers; one that was there before finds its folder and its ports again."""
        new = [name for name in _names(node_count, router_count) if name not in self.ports]
        free = ports.free(len(new), {self.http_port, *self.ports.values()})
        more = dict(zip(new, free, strict=True))
        return replace(
            self,
            node_count=node_count,
            router_count=router_count,
            ports={**self.ports, **more},
        )

    def save(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        value = {
            "http_port": self.http_port, "nodes": self.node_count, "routers": self.router_count,
            "auth": self.auth, "tenants": dict(self.tenants), "ports": self.ports,
        }  # fmt: skip
        temporary = self.home / "cluster.new"
        temporary.write_text(json.dumps(value, indent=1))
        temporary.rename(self.home / "cluster.json")

    @staticmethod
    def existing(home: Path) -> "Cluster":
        """Raises FailedPrecondition NO_CLUSTER when there is none."""
        home = home.resolve()
        try:
            value = json.loads((home / "cluster.json").read_text())
            return _read(home, value)
        except FileNotFoundError:
            raise FailedPrecondition(
                "NO_CLUSTER",
                f"there is no cluster in {home}; start one with: {to_type('up', home)}",
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise FailedPrecondition(
                "CLUSTER_DAMAGED",
                f"{home}/cluster.json cannot be read; remove it and run: {to_type('up', home)}",
            ) from None

    @property
    def key(self) -> str:
        """Tells this cluster's sandboxes and mounts from another's on the machine."""
        return hashlib.sha256(str(self.home).encode()).hexdigest()[:8]

    @property
    def node(self) -> str:
        """Name of the first one."""
        return self.local_node(1).name

    @property
    def nodes(self) -> tuple[LocalNode, ...]:
        return tuple(self.local_node(number) for number in range(1, self.node_count + 1))

    def local_node(self, number: int) -> LocalNode:
        """From 1 to NODES_MAX; the first one is called as if it was alone."""
        end = _end(number)
        agent, weight_fs = (
            f"127.0.0.1:{self.ports.get(f'{service}{end}', 0)}"
            for service in ("node_agent", "weight_fs")
        )
        run_dir = Path("/run/woodfrog") / f"{self.key}{end}"
        return LocalNode(
            f"node-{self.key}{end}", self.home / f"node{end}", run_dir, agent, weight_fs
        )

    @property
    def children(self) -> tuple[str, ...]:
        """The services' processes, in the order of start."""
        return _children(self.node_count, self.router_count)

    @property
    def routers(self) -> tuple[str, ...]:
        """Those of the children that share the gateway's addresses."""
        return _routers(self.router_count)

    @property
    def connections(self) -> int:
        """So many new ones to the gateway reach each router, all but surely: the kernel deals them as it likes."""
        return 1 if self.router_count == 1 else _ASKED_EACH * self.router_count

    @property
    def used_ports(self) -> dict[str, int]:
        """By name; `ports` may hold more, of nodes that it had once."""
        names = _names(self.node_count, self.router_count)
        return {name: self.ports[name] for name in names if name in self.ports}

    @property
    def metrics(self) -> dict[str, str]:
        """Where each child serves them, host:port."""
        return {
            child: self.address(_METRICS + child)
            for child in self.children
            if _METRICS + child in self.ports
        }

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}/v1"

    @property
    def mount_dir(self) -> Path:
        """Of the first node, as `run_dir` is."""
        return self.local_node(1).mount_dir

    @property
    def run_dir(self) -> Path:
        return self.local_node(1).run_dir

    @property
    def operators_dir(self) -> Path:
        """Of the sockets at which services answer operators, who need no key: only the user who started them may open it."""
        return Path("/run/woodfrog") / f"{self.key}-operators"

    def operators(self, child: str) -> str:
        """Where a router tells all usage, and the scheduler takes tenants and keys; a gRPC address."""
        return f"unix:{self.operators_dir}/{child}.sock"

    def own_address(self, child: str) -> str:
        """At which no other child answers, as another router may at the gateway's; gRPC."""
        return self.operators(child) if child in self.routers else self.address(child)

    @property
    def traces_file(self) -> Path:
        return self.home / "traces.jsonl"

    def address(self, name: str) -> str:
        return f"127.0.0.1:{self.ports[name]}"

    def etcd_argv(self, tools: Tools) -> list[str]:
        client, peer = (f"http://{self.address(n)}" for n in ("etcd", "etcd_peer"))
        return [
            str(tools.etcd), "--name", "etcd", "--data-dir", str(self.home / "etcd"),
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", f"etcd={peer}", "--log-level", "warn",
            "--auto-compaction-retention", "1h",
        ]  # fmt: skip

    def environment(self, child: str, tools: Tools) -> dict[str, str]:
        """Of one child: the standard OTEL_* variables and what its service's Settings name."""
        service, number = _parsed(child)
        prefix = f"WOODFROG_{service.upper()}_"
        settings = {**self._settings(service, number, tools)}
        settings["metrics_listen"] = self.metrics.get(child, "")
        # Where code and a GPU's libraries are found, and what a user set.
        passed_on = (prefix, "OTEL_", "PYTHONPATH", "LD_LIBRARY_PATH", "SIMULATED_")
        given = {k: v for k, v in os.environ.items() if k.startswith(passed_on)}
        if service == "node_agent":
            given |= shares.gpus(given, number, self.node_count)
        return {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": os.environ.get("HOME", "/"),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "GRPC_ENABLE_FORK_SUPPORT": "false",  # children are started by exec only
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{self.address('traces')}",
            "OTEL_EXPORTER_OTLP_INSECURE": "true",
            **{prefix + name.upper(): str(value) for name, value in settings.items()},
            **given,
        }

    def _settings(self, service: str, number: int, tools: Tools) -> Mapping[str, object]:
        """`number` is the node's, of a service that each node has, or the router's."""
        node = self.local_node(number)
        store = self.address("snapshot_store")
        match service:
            case "snapshot_store":
                return {
                    "listen": store,
                    "chunks_listen": self.address("chunks"),
                    "data_dir": self.home / "store",
                }
            case "weight_fs":
                return {
                    "listen": node.weight_fs,
                    "store": store,
                    "cache_dir": node.folder / "cache",
                    "mount_dir": node.mount_dir,
                }
            case "node_agent":
                return {
                    "listen": node.agent,
                    "node": node.name,
                    "etcd": self.address("etcd"),
                    "store": store,
                    "weight_fs": node.weight_fs,
                    "state_dir": node.folder / "agent",
                    "run_dir": node.run_dir,
                    "criu": tools.criu,
                    "tenants": self.tenants.get(str(number), ""),
                    **shares.memory(self.node_count),
                }
            case "scheduler":
                return {
                    "listen": self.address("scheduler"),
                    "etcd": self.address("etcd"),
                    "operator_listen": self.operators("scheduler"),
                }
            case "router":
                end = _end(number)
                return {
                    "listen": f"127.0.0.1:{self.http_port}",
                    "grpc_listen": self.address("router"),
                    "shared_listen": self.router_count > 1,
                    "etcd": self.address("etcd"),
                    "scheduler": self.address("scheduler"),
                    "operator_listen": self.operators(f"router{end}"),
                    "usage_file": self.home / "router" / f"usage{end}.db",
                    "auth": self.auth,
                }
        raise AssertionError(f"unknown service {service!r}")

    def argv(self, child: str) -> list[str]:
        return [sys.executable, "-m", f"woodfrog.{_parsed(child)[0]}"]


def _read(home: Path, value: Any) -> Cluster:
    """The cluster that `save` wrote, of an older release too. Raises what reading the wrong value raises."""
    node_count, router_count = int(value.get("nodes", 1)), int(value.get("routers", 1))
    if not (1 <= node_count <= NODES_MAX and 1 <= router_count <= ROUTERS_MAX):
        raise ValueError(node_count, router_count)
    kept = {str(name): int(port) for name, port in value["ports"].items()}
    names = _names(node_count, router_count)
    if not kept.keys() >= {name for name in names if not name.startswith(_METRICS)}:
        raise ValueError(kept)
    auth = str(value.get("auth", "none"))
    if auth not in AUTH:
        raise ValueError(auth)
    tenants = {str(number): str(names) for number, names in value.get("tenants", {}).items()}
    return Cluster(home, int(value["http_port"]), kept, node_count, router_count, auth, tenants)


def _children(node_count: int, router_count: int) -> tuple[str, ...]:
    found: list[str] = []
    for service in SERVICES:
        if service == "router":
            found += _routers(router_count)
        elif service not in _OF_A_NODE:
            found.append(service)
        elif service == _OF_A_NODE[0]:
            found += [f"{s}{_end(n)}" for n in range(1, node_count + 1) for s in _OF_A_NODE]
    return tuple(found)


def _routers(count: int) -> tuple[str, ...]:
    return tuple(f"router{_end(number)}" for number in range(1, count + 1))


def _end(number: int) -> str:
    """Of a name: the first of several is called as if it was alone."""
    return "" if number == 1 else f"-{number}"


def _parsed(child: str) -> tuple[str, int]:
    """Its service, and the number of its node, or of the router."""
    service, _, number = child.partition("-")
    return service, int(number or 1)


def _names(node_count: int, router_count: int) -> tuple[str, ...]:
    """Of the ports of so many nodes and routers, all of which have the first one's gRPC."""
    children = _children(node_count, router_count)
    own = (child for child in children if child not in (*_PORTS, *_routers(router_count)))
    return (*_PORTS, *own, *(_METRICS + child for child in children))


def to_type(verb: str, home: Path) -> str:
    """The command for the cluster in `home`, as whoever runs this one would type it."""
    typed = sys.argv[0]
    program = typed if Path(typed).name == "woodfrog" else ".venv/bin/woodfrog"
    return f"{program} {verb}" if home == HOME.resolve() else f"{program} --home {home} {verb}"


def _free_port(wanted: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return ports.free(1)[0]
    return wanted
