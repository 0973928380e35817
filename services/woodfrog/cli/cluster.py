"""Where a local cluster lives: its folder, its ports, and the environment of each of its processes."""

import hashlib
import json
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from woodfrog.errors import FailedPrecondition

SERVICES = (
    "snapshot_store",
    "weight_fs",
    "node_agent",
    "scheduler",
    "router",
)  # in the order of start
HOME = Path(os.environ.get("WOODFROG_HOME", ".woodfrog"))
HTTP_PORT = 8321
_PORTS = ("etcd", "etcd_peer", "chunks", "traces", *SERVICES)


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
class Cluster:
    """One local cluster. `home` holds all its state; the ports are chosen once and kept there."""

    home: Path
    http_port: int
    ports: Mapping[str, int]

    @staticmethod
    def open(home: Path, http_port: int | None = None) -> "Cluster":
        """The cluster of `home`, made when there is none. Raises FailedPrecondition when its file is damaged."""
        home = home.resolve()
        file = home / "cluster.json"
        if file.exists():
            return Cluster.existing(home)
        cluster = Cluster(home, http_port or _free_port(HTTP_PORT), _free_ports())
        cluster.save()
        return cluster

    def save(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        value = {"http_port": self.http_port, "ports": self.ports}
        temporary = self.home / "cluster.new"
        temporary.write_text(json.dumps(value, indent=1))
        temporary.rename(self.home / "cluster.json")

    @staticmethod
    def existing(home: Path) -> "Cluster":
        """Raises FailedPrecondition NO_CLUSTER when there is none."""
        home = home.resolve()
        try:
            value = json.loads((home / "cluster.json").read_text())
            return Cluster(
                home, int(value["http_port"]), {n: int(value["ports"][n]) for n in _PORTS}
            )
        except FileNotFoundError:
            raise FailedPrecondition(
                "NO_CLUSTER",
                f"there is no cluster in {home}; start one with: {to_type('up', home)}",
            ) from None
        except (ValueError, KeyError, TypeError):
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
        return f"node-{self.key}"

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}/v1"

    @property
    def mount_dir(self) -> Path:
        return self.home / "node" / "mount"

    @property
    def run_dir(self) -> Path:
        """Short: a socket's path has 107 bytes at most."""
        return Path("/run/woodfrog") / self.key

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

    def environment(self, service: str, tools: Tools) -> dict[str, str]:
        """Of one service's process: the standard OTEL_* variables and what its Settings name."""
        node = self.home / "node"
        own: dict[str, dict[str, object]] = {
            "snapshot_store": {
                "chunks_listen": self.address("chunks"),
                "data_dir": self.home / "store",
            },
            "weight_fs": {
                "store": self.address("snapshot_store"),
                "cache_dir": node / "cache",
                "mount_dir": self.mount_dir,
            },
            "node_agent": {
                "node": self.node,
                "etcd": self.address("etcd"),
                "store": self.address("snapshot_store"),
                "weight_fs": self.address("weight_fs"),
                "mount_dir": self.mount_dir,
                "state_dir": node / "agent",
                "run_dir": self.run_dir,
                "criu": tools.criu,
            },
            "scheduler": {"etcd": self.address("etcd")},
            "router": {
                "listen": f"127.0.0.1:{self.http_port}",
                "grpc_listen": self.address("router"),
                "etcd": self.address("etcd"),
                "scheduler": self.address("scheduler"),
            },
        }
        prefix = f"WOODFROG_{service.upper()}_"
        settings = {"listen": self.address(service), **own[service]}
        # Where code and a GPU's libraries are found, and what a user set.
        passed_on = (prefix, "OTEL_", "PYTHONPATH", "LD_LIBRARY_PATH", "SIMULATED_")
        given = {k: v for k, v in os.environ.items() if k.startswith(passed_on)}
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

    def argv(self, service: str) -> list[str]:
        return [sys.executable, "-m", f"woodfrog.{service}"]


def to_type(verb: str, home: Path) -> str:
    """The command for the cluster in `home`, as whoever runs this one would type it."""
    typed = sys.argv[0]
    program = typed if Path(typed).name == "woodfrog" else ".venv/bin/woodfrog"
    return f"{program} {verb}" if home == HOME.resolve() else f"{program} --home {home} {verb}"


def _free_ports() -> dict[str, int]:
    sockets = {name: socket.socket() for name in _PORTS}
    try:
        for held in sockets.values():  # all held at once, so that no port comes twice
            held.bind(("127.0.0.1", 0))
        return {name: held.getsockname()[1] for name, held in sockets.items()}
    finally:
        for held in sockets.values():
            held.close()


def _free_port(wanted: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
