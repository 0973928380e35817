"""A real etcd as a child process, which a test may kill, stop and start again."""

import asyncio
import signal
import subprocess
import time
from pathlib import Path

from tests.capabilities import ETCD

from woodfrog.host import ports

READY_TIMEOUT_S = 60.0


class EtcdServer:
    """`async with EtcdServer(tmp_path) as etcd`: one member on loopback, its data under `tmp_path`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._client, self._peer = ports.free(2)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._client}"

    async def __aenter__(self) -> "EtcdServer":
        try:
            await self.start()
        except BaseException:
            self.kill9()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill9()

    async def start(self) -> None:
        """Returns when it answers as healthy."""
        assert self._process is None
        self.folder.mkdir(exist_ok=True)
        self._process = self._spawn()
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not await self._healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((self.folder / "etcd.log").read_text()[-2000:])
            await asyncio.sleep(0.02)

    def _spawn(self) -> subprocess.Popen[bytes]:
        client, peer = f"http://{self.endpoint}", f"http://127.0.0.1:{self._peer}"
        command = ["setpriv", "--pdeathsig", "KILL", str(ETCD)]
        command += [
            "--name",
            "one",
            "--data-dir",
            str(self.folder / "etcd"),
            "--log-level",
            "warn",
        ]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--initial-cluster", f"one={peer}"]
        # Short, for a lease cannot be shorter than one and a half elections.
        command += ["--heartbeat-interval", "50", "--election-timeout", "500"]
        with (self.folder / "etcd.log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill9(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Its connections stay open, nothing answers."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    async def _healthy(self) -> bool:
        try:
            async with asyncio.timeout(1.0):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._client)
                try:
                    writer.write(b"GET /health HTTP/1.0\r\n\r\n")
                    return b'"health":"true"' in await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False
