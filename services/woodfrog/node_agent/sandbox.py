"""Sandboxes: the process tree of one replica, and a pool of them made ahead of need.

A sandbox is its init (`sandbox_init.py`) in its own PID, mount, network, IPC and UTS namespaces and its own cgroup. The
agent talks to the init over a socket pair; trees of the host come in as detached mounts (open_tree), so the sandbox
needs no path of the host.
"""

import asyncio
import ctypes
import json
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from woodfrog.errors import Unavailable
from woodfrog.host.cgroup import Cgroup, Cgroups
from woodfrog.host.folders import remove_tree

log = logging.getLogger(__name__)
INIT = Path(__file__).with_name("sandbox_init.py")
ROOT = Path("/run/woodfrog")  # inside every sandbox
WEIGHTS, SNAPSHOT, REPLICA, WORK, DUMP = (
    ROOT / name for name in ("weights", "snapshot", "replica", "work", "dump")
)
REPLY_TIMEOUT_S = 10.0
PIDS_MAX = 512
FIRST_PID = 1000  # a replica's, inside; above what the init and CRIU take
_SYS_OPEN_TREE = 428
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC, _AT_FDCWD = 1, os.O_CLOEXEC, -100
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """What every sandbox of a node has in common."""

    kdat: Path  # CRIU's probe of the kernel
    replicas_dir: Path  # each sandbox's own folder is made here
    keep: tuple[Path, ...] = ()  # folders with code, none within another, that must be seen inside


class Sandbox:
    """One sandbox. `start` makes it; `close` ends every process in it and removes its folder and cgroup."""

    def __init__(self, name: str, cgroup: Cgroup, config: SandboxConfig) -> None:
        self.name = name
        self.cgroup = cgroup
        self.folder = config.replicas_dir / name  # bind-mounted at REPLICA inside
        self.init_pid = 0  # as the host sees it
        self.ended = asyncio.Event()  # the init is gone
        self._config = config
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None
        self._replies: deque[asyncio.Future[dict[str, Any]]] = deque()
        self._exits: dict[int, int] = {}
        self._waiters: dict[int, asyncio.Future[int]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Raises Unavailable SANDBOX_FAILED."""
        self.folder.mkdir(parents=True, mode=0o700)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._socket = ours
        config = {
            "kdat": str(self._config.kdat),
            "keep": [str(path) for path in self._config.keep],
            "hostname": self.name,
            "cgroups": self.cgroup.procs_files,
        }
        ready = self._expect()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", str(INIT), str(theirs.fileno()), json.dumps(config),
                pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        self._tasks = [
            asyncio.create_task(self._read(ours), name=f"{self.name}.read"),
            asyncio.create_task(self._reap(self._process), name=f"{self.name}.reap"),
        ]
        await self._reply(ready)
        await self.place(self.folder, REPLICA)

    async def place(self, source: Path, target: Path, *, read_only: bool = False) -> None:
        """Mounts a folder of the host at `target` inside."""
        # Beside the loop: on the mount it waits for weight_fs.
        fd = await asyncio.to_thread(_open_tree, source)
        try:
            await self._ask({"op": "place", "target": str(target), "read_only": read_only}, fd)
        finally:
            os.close(fd)

    async def hide(self, files: Sequence[Path]) -> None:
        """Files of the host that must not be seen inside, such as devices; nothing opens more than /dev/null there."""
        if files:
            await self._ask({"op": "hide", "paths": [str(path) for path in files]})

    async def fill(self, source: Path, files: Sequence[Sequence[Any]]) -> None:
        """Puts files into its /tmp, each `[path, mode, size, mtime_ns]`; `source`, a path inside, has their bytes."""
        await self._ask({"op": "fill", "source": str(source), "files": files})

    async def spawn(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        stderr: Path | None = None,
        last_pid: int = 0,
    ) -> int:
        """Starts a process; its id inside. `stderr` is a path inside."""
        reply = await self._ask(
            {
                "op": "spawn",
                "argv": list(argv),
                "env": dict(env),
                "stderr": str(stderr) if stderr else None,
                "last_pid": last_pid,
            }
        )
        return int(reply["pid"])

    async def wait(self, pid: int) -> int:
        """The exit status of a process inside (negative: the signal that ended it)."""
        if pid not in self._exits:
            if self.ended.is_set():
                return -signal.SIGKILL
            future = self._waiters.setdefault(pid, asyncio.get_running_loop().create_future())
            return await asyncio.shield(future)
        return self._exits[pid]

    async def signal_all(self, signum: int) -> None:
        await self._ask({"op": "signal", "signum": int(signum)})

    def processes(self) -> dict[int, int]:
        """Those inside but its init, by their ids inside: as the host sees them."""
        found: dict[int, int] = {}
        for candidate in self.cgroup.pids():
            try:
                status = Path(f"/proc/{candidate}/status").read_text()
            except OSError:
                continue
            inside = next(line for line in status.splitlines() if line.startswith("NSpid:"))
            if len(inside.split()) > 2:  # else it is the one that made the namespaces
                found[int(inside.split()[-1])] = candidate
        found.pop(1, None)
        return found

    def host_pid(self, pid: int) -> int:
        """A process inside, as the host sees it. Raises Unavailable when it is gone."""
        if (found := self.processes().get(pid)) is not None:
            return found
        raise Unavailable("PROCESS_GONE", f"process {pid} of sandbox {self.name} is gone")

    async def close(self) -> None:
        """Ends it. Safe to call at any point, more than once."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        await asyncio.to_thread(self.cgroup.kill)
        if self._process is not None:
            await self.ended.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail("the sandbox was closed")
        await asyncio.to_thread(self._remove)

    def _remove(self) -> None:
        try:
            self.cgroup.remove()
        except OSError as error:
            log.warning("cgroup left behind", extra={"sandbox": self.name, "error": str(error)})
        remove_tree(self.folder)

    async def _ask(self, request: dict[str, Any], fd: int | None = None) -> dict[str, Any]:
        if self._socket is None or self.ended.is_set():
            raise Unavailable("SANDBOX_GONE", f"sandbox {self.name} has ended")
        future = self._expect()
        line = json.dumps(request).encode() + b"\n"
        try:
            sent = socket.send_fds(self._socket, [line], [] if fd is None else [fd])
            if sent < len(line):
                await asyncio.get_running_loop().sock_sendall(self._socket, line[sent:])
        except OSError as error:
            self._fail(f"its init cannot be reached: {error}")
        return await self._reply(future)

    def _expect(self) -> asyncio.Future[dict[str, Any]]:
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._replies.append(future)
        return future

    async def _reply(self, future: asyncio.Future[dict[str, Any]]) -> dict[str, Any]:
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                reply = await future
        except TimeoutError:
            raise Unavailable(
                "SANDBOX_FAILED", f"sandbox {self.name} did not answer in {REPLY_TIMEOUT_S:.0f} s"
            ) from None
        if not reply["ok"]:
            raise Unavailable("SANDBOX_FAILED", f"sandbox {self.name}: {reply['message']}")
        return reply

    async def _read(self, ours: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        buffer = b""
        while data := await loop.sock_recv(ours, 65536):
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                self._received(json.loads(line))

    def _received(self, message: dict[str, Any]) -> None:
        if "host_pid" in message:
            self.init_pid = message["host_pid"]
        elif "exited" in message:
            self._exits[message["exited"]] = message["status"]
            if (waiter := self._waiters.pop(message["exited"], None)) and not waiter.done():
                waiter.set_result(message["status"])
        elif self._replies and not (future := self._replies.popleft()).done():
            future.set_result(message)

    async def _reap(self, process: asyncio.subprocess.Process) -> None:
        status = await process.wait()
        self.ended.set()
        self._fail(f"its init ended with status {status}")

    def _fail(self, why: str) -> None:
        while self._replies:
            if not (future := self._replies.popleft()).done():
                future.set_result({"ok": False, "message": why})
        while self._waiters:
            _, waiter = self._waiters.popitem()
            if not waiter.done():
                waiter.set_result(-signal.SIGKILL)


class SandboxPool:
    """Keeps `size` sandboxes ready. `take` gives one at once when there is one; `refill` tops up, off the request's path."""

    def __init__(self, cgroups: Cgroups, config: SandboxConfig, size: int) -> None:
        self._cgroups = cgroups
        self._config = config
        self._size = size
        self._ready: deque[Sandbox] = deque()
        self._counter = 0

    async def take(self, memory_bytes: int) -> Sandbox:
        while self._ready:
            sandbox = self._ready.popleft()
            try:
                if not sandbox.ended.is_set():
                    self._cgroups.limit(sandbox.cgroup, memory_bytes, PIDS_MAX)
                    return sandbox
            except OSError as error:  # made anew below
                log.warning("sandbox given up", extra={"error": str(error)})
            await sandbox.close()
        return await self._make(memory_bytes)

    async def refill(self) -> None:
        while len(self._ready) < self._size:
            self._ready.append(await self._make(1 << 30))

    async def close(self) -> None:
        while self._ready:
            await self._ready.popleft().close()

    async def _make(self, memory_bytes: int) -> Sandbox:
        self._counter += 1
        name = f"s{os.getpid()}-{self._counter}"
        try:
            cgroup = self._cgroups.make(name, memory_bytes, PIDS_MAX)
        except OSError as error:
            raise _failed(name, error) from None
        sandbox = Sandbox(name, cgroup, self._config)
        try:
            await sandbox.start()
        except OSError as error:
            await sandbox.close()
            raise _failed(name, error) from None
        except BaseException:
            await sandbox.close()
            raise
        return sandbox


def _failed(name: str, error: OSError) -> Unavailable:
    return Unavailable("SANDBOX_FAILED", f"sandbox {name} cannot be made: {error}")


def _open_tree(source: Path) -> int:
    fd = _LIBC.syscall(
        _SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    )
    if fd < 0:
        error = ctypes.get_errno()
        raise Unavailable(
            "TREE_UNREACHABLE", f"cannot mount {source} into a sandbox: {os.strerror(error)}"
        )
    return int(fd)
