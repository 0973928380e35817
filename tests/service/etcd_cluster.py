"""Three real etcd members, each in a network namespace of its own, which a test may cut off. Needs root.

    hub namespace: bridge 10.77.0.254 ── link0, link1, link2 ── eth0 of the members' namespaces, 10.77.0.1 to .3

Who is to talk to them runs in the hub: `nsenter --net=<hub_file> ...`. Nothing of it is seen outside.
"""

import asyncio
import contextlib
import ctypes
import os
import re
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.capabilities import ETCD

MEMBERS = 3
READY_TIMEOUT_S = 60.0
_CLONE_NEWNET = 0x40000000
_ASK_TIMEOUT_S = 1.0


class EtcdCluster:
    """`async with EtcdCluster(tmp_path) as cluster`: healthy at entering, all of it gone at leaving."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        name = f"woodfrog-{os.getpid()}"
        self._hub = f"{name}-hub"
        self._names = [f"{name}-{i}" for i in range(MEMBERS)]
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def endpoints(self) -> list[str]:
        return [f"10.77.0.{i + 1}:2379" for i in range(MEMBERS)]

    @property
    def hub_file(self) -> str:
        return f"/run/netns/{self._hub}"

    async def __aenter__(self) -> "EtcdCluster":
        try:
            self._make_networks()
            for i in range(MEMBERS):
                self._processes.append(self._spawn(i))
            deadline = time.monotonic() + READY_TIMEOUT_S
            while not all([await self._healthy(i) for i in range(MEMBERS)]):
                if time.monotonic() > deadline:
                    logs = [path.read_text()[-1000:] for path in self._folder.glob("*.log")]
                    raise AssertionError("\n".join(logs))
                await asyncio.sleep(0.05)
        except BaseException:
            self._remove()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._remove()

    def cut(self, member: int) -> None:
        """Nothing reaches it or leaves it; no connection is told."""
        _ip("-n", self._hub, "link", "set", f"link{member}", "down")

    def heal(self, member: int) -> None:
        _ip("-n", self._hub, "link", "set", f"link{member}", "up")

    async def leader(self) -> int:
        """Of the members that can be reached."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            for i in range(MEMBERS):
                if re.search(r"^etcd_server_is_leader 1$", await self._get(i, "/metrics"), re.M):
                    return i
            await asyncio.sleep(0.05)
        raise AssertionError("no member leads")

    def _make_networks(self) -> None:
        _ip("netns", "add", self._hub)
        in_hub = ("-n", self._hub)
        _ip(*in_hub, "link", "add", "bridge", "type", "bridge")
        _ip(*in_hub, "addr", "add", "10.77.0.254/24", "dev", "bridge")
        _ip(*in_hub, "link", "set", "bridge", "up")
        _ip(*in_hub, "link", "set", "lo", "up")
        for i, name in enumerate(self._names):
            _ip("netns", "add", name)
            pair = ("type", "veth", "peer", "name", "eth0", "netns", name)
            _ip(*in_hub, "link", "add", f"link{i}", *pair)
            _ip(*in_hub, "link", "set", f"link{i}", "master", "bridge", "up")
            _ip("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")

    def _spawn(self, member: int) -> subprocess.Popen[bytes]:
        peers = [f"http://10.77.0.{i + 1}:2380" for i in range(MEMBERS)]
        client = f"http://{self.endpoints[member]}"
        command = ["nsenter", f"--net=/run/netns/{self._names[member]}"]
        command += ["setpriv", "--pdeathsig", "KILL", str(ETCD), "--log-level", "warn"]
        command += ["--name", f"m{member}", "--data-dir", str(self._folder / f"etcd{member}")]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peers[member]]
        command += ["--initial-advertise-peer-urls", peers[member], "--initial-cluster"]
        command += [",".join(f"m{i}={peer}" for i, peer in enumerate(peers))]
        command += ["--heartbeat-interval", "50", "--election-timeout", "500"]
        with (self._folder / f"etcd{member}.log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _remove(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for name in (*self._names, self._hub):
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)

    async def _healthy(self, member: int) -> bool:
        return '"health":"true"' in await self._get(member, "/health")

    async def _get(self, member: int, path: str) -> str:
        """Empty when it does not answer."""
        host, _, port = self.endpoints[member].rpartition(":")
        link = self._socket_in_hub()
        with contextlib.suppress(OSError, TimeoutError), link:
            async with asyncio.timeout(_ASK_TIMEOUT_S):
                await asyncio.get_running_loop().sock_connect(link, (host, int(port)))
                reader, writer = await asyncio.open_connection(sock=link)
                try:
                    writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                    return (await reader.read()).decode()
                finally:
                    writer.close()
        return ""

    def _socket_in_hub(self) -> socket.socket:
        """A socket stays in the namespace in which its thread made it; that thread ends here."""

        def make() -> socket.socket:
            with open(self.hub_file) as hub:
                if ctypes.CDLL(None, use_errno=True).setns(hub.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            link = socket.socket()
            link.setblocking(False)
            return link

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(make).result()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
