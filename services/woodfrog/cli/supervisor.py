"""Runs etcd and the services of one local cluster as its children, and restarts what dies.

Run as `python -m woodfrog.cli.supervisor HOME`. It holds a lock on HOME for as long as it lives; SIGTERM and SIGINT end
everything. Children get SIGKILL when the supervisor itself is killed, and a sandbox ends with its node agent, so
nothing outlives it but a dead mount, which the next `up` or `down` removes.
"""

import asyncio
import fcntl
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from woodfrog import telemetry
from woodfrog.cli import health, scrape, trace_file
from woodfrog.cli.cluster import NODES_MAX, Cluster, LocalNode, Tools
from woodfrog.errors import FailedPrecondition, Unavailable
from woodfrog.host.cgroup import Cgroups
from woodfrog.host.folders import remove_tree

log = logging.getLogger(__name__)
STOP_TIMEOUT_S = 10.0
UP_LOCK = "up.lock"  # of who starts a cluster, until it is ready
_BEGIN_S = 10.0  # until its supervisor has a lock of its own
_LOOK_S = 0.1
_RESTART_S = (0.1, 0.2, 0.5, 1.0, 2.0)
_ASK_EACH_S = 2.0
_ANSWERS_S = 5.0
_SILENT_MAX = 6  # questions without an answer; not a time, as a machine may be paused
_CALM_S = 10.0  # a child that lived so long starts again at the shortest pause
_LOG_BYTES_MAX = 32 << 20


class Lock:
    """One of HOME's locks, the supervisor's if not said otherwise; its file holds the holder's id."""

    def __init__(self, home: Path, name: str = "supervisor.lock") -> None:
        self._path = home / name
        self._file: TextIO | None = None

    def take(self) -> None:
        """Until it is released, or this process ends. Raises FailedPrecondition ALREADY_UP."""
        file = self._path.open("a+")
        deadline = time.monotonic() + _LOOK_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:  # who only asks for the holder is soon gone
                    time.sleep(_LOOK_S / 10)
                    continue
                file.close()
                raise FailedPrecondition(
                    "ALREADY_UP", f"the cluster in {self._path.parent} is up"
                ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def holder(self) -> int | None:
        """Id of the process that holds it; None when none does."""
        try:
            with self._path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(file.read() or 0) or None
        except FileNotFoundError:
            pass
        return None


class Supervisor:
    def __init__(self, cluster: Cluster, tools: Tools) -> None:
        self._cluster = cluster
        self._tools = tools
        self._children: dict[str, asyncio.subprocess.Process] = {}

    async def run(self, stop: asyncio.Event) -> None:
        scrape.write(self._cluster)
        traces = await trace_file.serve(self._cluster.traces_file, self._cluster.address("traces"))
        keepers: list[asyncio.Task[None]] = []
        try:
            for name in ("etcd", *self._cluster.children):
                keepers.append(asyncio.create_task(self._keep(name), name=name))
            stopping = asyncio.create_task(stop.wait(), name="stop")
            done, _ = await asyncio.wait([*keepers, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            for task in done & set(keepers):
                task.result()
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            # At once, since each lets its answers end.
            await asyncio.gather(*(self._stop(name) for name in self._cluster.routers))
            for name in reversed(("etcd", *self._cluster.children)):
                await self._stop(name)
            await traces.stop(1.0)
            clean(self._cluster)

    async def _keep(self, name: str) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            process = await self._start(name)
            watching = asyncio.create_task(self._watch(name, process), name=f"watch {name}")
            try:
                status = await process.wait()
            finally:
                watching.cancel()
            failures = 0 if time.monotonic() - began > _CALM_S else failures + 1
            pause = _RESTART_S[min(failures, len(_RESTART_S) - 1)]
            log.warning(
                "child ended", extra={"child": name, "status": status, "restart_in_s": pause}
            )
            await asyncio.sleep(pause)

    async def _watch(self, name: str, process: asyncio.subprocess.Process) -> None:
        """Kills a child that has answered and no longer does: its share of the connections would wait for ever."""
        address, silent = self._cluster.own_address(name), -math.inf
        while silent < _SILENT_MAX:
            await asyncio.sleep(_ASK_EACH_S)
            answer = await health.ask(address, _ANSWERS_S)
            silent = 0 if answer is not None else silent + 1
        log.error("child hangs", extra={"child": name, "silent_s": _SILENT_MAX * _ANSWERS_S})
        process.kill()

    async def _start(self, name: str) -> asyncio.subprocess.Process:
        if name == "etcd":
            argv, env = self._cluster.etcd_argv(self._tools), {"PATH": os.environ["PATH"]}
        else:
            argv = self._cluster.argv(name)
            env = self._cluster.environment(name, self._tools)
        with open_log(self._cluster, name) as file:
            process = await asyncio.create_subprocess_exec(
                "setpriv", "--pdeathsig", "KILL", *argv,
                env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip
        self._children[name] = process
        log.info("child started", extra={"child": name, "child_pid": process.pid})
        pids = self._cluster.home / "pids"
        pids.mkdir(exist_ok=True)
        new = self._cluster.home / f"{name}.pid.new"
        new.write_text(str(process.pid))
        new.replace(pids / name)  # whoever reads it reads a number
        return process

    async def _stop(self, name: str) -> None:
        process = self._children.get(name)
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            log.warning("child did not stop", extra={"child": name})
            process.kill()
            await process.wait()


def open_log(cluster: Cluster, name: str) -> TextIO:
    path = cluster.home / "logs" / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > _LOG_BYTES_MAX:
        path.replace(path.with_suffix(".log.1"))
    return path.open("a")


def clean(cluster: Cluster) -> None:
    """Removes what killed processes left: sandboxes, their folders, mounts. Of all nodes that there may have been."""
    for number in range(1, NODES_MAX + 1):
        _clean(cluster.local_node(number))
    remove_tree(cluster.operators_dir)


def _clean(node: LocalNode) -> None:
    cgroups = Cgroups(node.name)
    for cgroup in cgroups.leftovers():
        cgroup.kill()
        cgroup.remove()
    cgroups.remove_node()
    for folder in node.run_dir.iterdir() if node.run_dir.exists() else ():
        remove_tree(folder)
    remove_tree(node.run_dir)
    for _ in range(8):  # a killed weight_fs may have left one mount on the other
        mounted = Path("/proc/self/mounts").read_text().replace("\\040", " ")
        if f" {node.mount_dir} " not in mounted:
            return
        subprocess.run(["umount", "-l", str(node.mount_dir)], check=False, capture_output=True)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """An interrupt that comes in it is told at its end. Only a process's main thread has interrupts to hold back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told: list[int] = []
    before = signal.signal(signal.SIGINT, lambda signum, _: told.append(signum))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if told:
            signal.raise_signal(signal.SIGINT)


def start_detached(home: Path) -> int:
    """Starts a supervisor that outlives its starter; its id."""
    log_path = home / "logs" / "supervisor.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "woodfrog.cli.supervisor", str(home)],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    return process.pid


def stop(home: Path, started: int | None = None, begin_s: float = _BEGIN_S) -> bool:
    """Ends the cluster of `home` and cleans up; whether one was up. Raises Unavailable when it does not end.

    `started` is the supervisor's id, of a caller that has just started it, and has UP_LOCK: it may not have its own yet.
    """
    deadline = time.monotonic() + begin_s
    while not (home / "cluster.json").exists() and time.monotonic() < deadline:
        if Lock(home, UP_LOCK).holder() is None:
            break
        time.sleep(0.02)  # somebody is about to make it
    cluster = Cluster.existing(home)
    lock = Lock(cluster.home)
    pid = started or lock.holder() or _begun(cluster.home, begin_s)
    if pid is not None:
        with suppress(ProcessLookupError):  # it has ended by now
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S * (len(cluster.children) + 1)
        while alive(pid) or lock.holder() == pid:  # a killed one's last threads may still have it
            if time.monotonic() > deadline:
                raise Unavailable("NOT_DOWN", f"the supervisor {pid} does not end; see {home}/logs")
            time.sleep(0.05)
    starts = Lock(cluster.home, UP_LOCK)
    if started is None:
        try:
            starts.take()
        except FailedPrecondition:  # whoever starts it cleans up, and nobody else
            return pid is not None
    try:
        if lock.holder() is None:
            clean(cluster)
    finally:
        starts.release()
    return pid is not None


def _begun(home: Path, within_s: float) -> int | None:
    """The supervisor that somebody is about to start; None when nobody is."""
    deadline = time.monotonic() + within_s
    while Lock(home, UP_LOCK).holder() is not None and time.monotonic() < deadline:
        if (pid := Lock(home).holder()) is not None:
            return pid
        time.sleep(0.02)
    return None


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


async def _main(home: Path, up: Callable[[], None]) -> None:
    stopping = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stopping.set)
    cluster = Cluster.open(home)
    lock = Lock(cluster.home)
    lock.take()
    up()
    clean(cluster)
    await Supervisor(cluster, Tools.find()).run(stopping)


def run(home: Path, up: Callable[[], None] = lambda: None) -> int:
    """Until it is told to end; its exit status. Calls `up` when it has the lock, so that all others see it."""
    telemetry.init("supervisor")
    try:
        asyncio.run(_main(home, up))
    except FailedPrecondition as error:
        log.error("cannot run", extra={"error": error.message})
        return 1
    except KeyboardInterrupt:  # before it had started anything
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
