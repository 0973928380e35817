"""A real process tree: checkpointed, its image rewritten, restored twice at once.

Sandboxes here are the least that CRIU needs; the node agent's own are tested with it.
"""

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from tests.capabilities import CRIU, need
from tests.service import mapped_image_process

from woodfrog.node_agent.image import Rewritten, rewrite
from woodfrog.node_agent.image.touched import in_file, touched

pytestmark = need("root", "criu")

SANDBOX = "/run/woodfrog"
PAGES = f"{SANDBOX}/snapshot/pages"
WEIGHTS_BYTES = 8 << 20
PROGRAM = Path(mapped_image_process.__file__)

INIT = """
import os, subprocess, sys
os.closerange(3, 1024)
null = os.open(os.devnull, os.O_RDWR)
subprocess.Popen(sys.argv[1:], stdin=null, stdout=null, stderr=null, start_new_session=True)
try:
    while True:
        os.wait()
except ChildProcessError:
    pass
"""

MOUNTS = f"""
set -e
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
cp "$1" /run/criu.kdat
mkdir -p {SANDBOX}/weights {SANDBOX}/snapshot {SANDBOX}/replica
mount --bind "$2" {SANDBOX}/weights
mount --bind "$3" {SANDBOX}/snapshot
mount --bind "$4" {SANDBOX}/replica
echo "$5" > /proc/sys/kernel/ns_last_pid
shift 5
exec "$@"
"""


@dataclass
class Folders:
    root: Path

    def __getattr__(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        return folder


@dataclass
class Snapshot:
    folders: Folders
    kdat: Path
    before: dict[str, str]  # what each process answered before the dump
    rewritten: Rewritten

    @property
    def pids(self) -> set[int]:
        """As the processes themselves see them; the child's is the larger."""
        return {area.pid for area in self.rewritten.areas}


T = TypeVar("T")


def until(condition: Callable[[], T], what: str, timeout_s: float = 20.0) -> T:
    """The first true value of `condition`; a condition that raises OSError is not true yet."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if value := condition():
                return value
        except OSError:
            pass
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.01)


def ask(folder: Path, name: str, word: str) -> str:
    def connected() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(20)
        try:
            connection.connect(str(folder / f"{name}.sock"))
        except OSError:
            connection.close()
            raise
        return connection

    with until(connected, f"{name} listens") as connection:
        connection.sendall(word.encode())
        return connection.recv(200).decode()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def sandbox(
    folders: Folders, kdat: Path, replica: Path, *command: str, last_pid: int = 1
) -> Iterator[int]:
    """A running sandbox: yields its init's pid. It ends, with all that is in it, when the block does."""
    unshare = ["unshare", "-pfmnui", "--kill-child", "--mount-proc", "--propagation", "private"]
    mounts = ["sh", "-c", MOUNTS, "sh", str(kdat)]
    mounts += [str(folders.weights), str(folders.snapshot), str(replica), str(last_pid)]
    init = [sys.executable, "-I", "-c", INIT]
    with (replica / "sandbox.log").open("wb") as log:
        process = subprocess.Popen(
            [*unshare, *mounts, *init, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        init_pid = until(lambda: children(process.pid), "sandbox starts")[0]
        ended = os.pidfd_open(init_pid)  # readable when the init and all that it held have ended
    except BaseException:
        process.kill()
        process.wait()
        raise
    try:
        yield init_pid
    finally:
        process.kill()
        process.wait()
        readable, _, _ = select.select([ended], [], [], 20)
        os.close(ended)
        assert readable, "sandbox did not end"


def dump(init_pid: int, folder: Path) -> None:
    """Checkpoints the only child of the init, which ends by it."""
    pid = children(init_pid)[0]
    status = Path(f"/proc/{pid}/status").read_text()
    inside = next(line.split()[-1] for line in status.splitlines() if line.startswith("NSpid"))
    enter = ["nsenter", "-t", str(pid), "-p", "-m", "-n", "-u", "-i"]
    criu = [str(CRIU), "dump", "-t", inside, "-D", str(folder), "-o", "dump.log", "-v1"]
    done = subprocess.run([*enter, *criu], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (folder / "dump.log").read_text() + done.stderr


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    root = tmp_path_factory.mktemp("mapped")
    folders = Folders(root)
    kdat = root / "criu.kdat"
    probe = f'mount -t tmpfs tmpfs /run && "{CRIU}" check && cp /run/criu.kdat "{kdat}"'
    command = ["unshare", "-m", "--propagation", "private", "sh", "-c", probe]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    weights = folders.weights / "model.safetensors"
    weights.write_bytes(os.urandom(WEIGHTS_BYTES))
    program = [sys.executable, "-I", str(PROGRAM), f"{SANDBOX}/replica"]
    program.append(f"{SANDBOX}/weights/model.safetensors")
    # Above the ids that an init and CRIU take in the sandboxes of the restores.
    with sandbox(folders, kdat, folders.first, *program, last_pid=999) as init_pid:
        before = {name: ask(folders.first, name, "digest") for name in ("parent", "child")}
        dump(init_pid, folders.dump)
    pages = folders.snapshot / "pages"
    rewritten = rewrite(folders.dump, folders.snapshot / "images", pages, PAGES)
    with pages.open("rb") as file:
        os.fsync(file.fileno())  # a page that waits to be written counts as private in smaps
    return Snapshot(folders, kdat, before, rewritten)


@dataclass
class Clone:
    folder: Path
    init_pid: int

    def ask(self, name: str, word: str = "digest") -> str:
        return ask(self.folder, name, word)

    @property
    def pids(self) -> dict[str, int]:
        """As the host sees them. Until CRIU has ended, they are children of it and not of the init."""
        python = os.path.realpath(sys.executable)
        parent = until(
            lambda: [p for p in children(self.init_pid) if os.readlink(f"/proc/{p}/exe") == python],
            "CRIU ends",
        )[0]
        return {"parent": parent, "child": children(parent)[0]}


@contextmanager
def clones(snapshot: Snapshot, *names: str) -> Iterator[list[Clone]]:
    """Restored at the same time, each in its own sandbox."""
    folders = snapshot.folders
    with ExitStack() as stack:
        started = []
        for name in names:
            folder = getattr(folders, name)
            criu = [str(CRIU), "restore", "-D", f"{SANDBOX}/snapshot/images", "-d"]
            criu += ["-W", f"{SANDBOX}/replica", "-o", "restore.log", "-v1"]
            init_pid = stack.enter_context(sandbox(folders, snapshot.kdat, folder, *criu))
            started.append(Clone(folder, init_pid))
        yield started


def mapped_kib(pid: int) -> dict[str, int]:
    """Sums of /proc/PID/smaps over what the process maps from the `pages` file."""
    result: dict[str, int] = {}
    mine = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        key, *values = line.split()
        if not key.endswith(":"):
            mine = line.endswith(PAGES)
        elif mine and values[-1] == "kB":
            result[key[:-1]] = result.get(key[:-1], 0) + int(values[0])
    return result


def test_two_clones_at_once_have_the_memory_of_the_first_and_share_it(snapshot: Snapshot) -> None:
    with clones(snapshot, "one", "two") as (one, two):
        for clone in (one, two):
            for name, answer in snapshot.before.items():
                assert clone.ask(name) == answer
        for clone in (one, two):
            for pid in clone.pids.values():
                kib = mapped_kib(pid)
                assert kib["Rss"] > 60 << 10  # the block, which was read as a whole
                assert kib["Anonymous"] < 4 << 10
                assert kib["Shared_Clean"] > 60 << 10
                assert kib["Pss"] < 0.6 * kib["Rss"]


def test_what_a_clone_writes_is_its_own(snapshot: Snapshot) -> None:
    pages = snapshot.folders.snapshot / "pages"
    with clones(snapshot, "one", "two") as (one, two):
        digest = one.ask("parent", "write")
        assert digest != snapshot.before["parent"]
        assert one.ask("parent") == digest
        assert two.ask("parent") == snapshot.before["parent"]
        assert one.ask("child") == snapshot.before["child"]
        kib = mapped_kib(one.pids["parent"])
        assert mapped_image_process.WRITTEN_BYTES >> 10 <= kib["Anonymous"] < 6 << 10
    assert pages.stat().st_size == snapshot.rewritten.pages_bytes
    with clones(snapshot, "three") as (three,):
        assert three.ask("parent") == snapshot.before["parent"]


def test_a_block_that_moved_can_grow(snapshot: Snapshot) -> None:
    """realloc() grows it by mremap(), past its area in the file."""
    with clones(snapshot, "one") as (one,):
        for name in ("parent", "child"):
            _, length, _ = one.ask(name, "grow").split()
            assert int(length) == mapped_image_process.BLOCK_BYTES + (48 << 20)


def test_what_was_touched_is_seen(snapshot: Snapshot) -> None:
    with clones(snapshot, "one") as (one,):
        one.ask("parent", "write")
        host_pid = one.pids["parent"]
        extents = touched(snapshot.rewritten.areas, host_pid)
        areas = [a for a in snapshot.rewritten.areas if a.pid == min(snapshot.pids)]
    written = [extent for extent in extents if extent.kind == "write"]
    assert all(any(a.address <= e.address < a.address + a.length for a in areas) for e in extents)
    assert any(e.length >= mapped_image_process.WRITTEN_BYTES for e in written)
    assert sum(e.length for e in written) < 6 << 20
    block = max(areas, key=lambda area: area.length)
    in_pages = in_file(extents, areas)
    assert sum(length for _, length in in_pages) >= mapped_image_process.BLOCK_BYTES
    assert any(offset <= block.file_offset + (1 << 20) < offset + n for offset, n in in_pages)


def test_weights_are_not_in_the_image(snapshot: Snapshot) -> None:
    assert snapshot.rewritten.weights_bytes_in_image == 0
    weights = (snapshot.folders.weights / "model.safetensors").read_bytes()
    samples = [weights[at : at + 64] for at in range(0, WEIGHTS_BYTES, 1 << 20)]
    folder = snapshot.folders.snapshot
    end = max(area.file_offset + area.length for area in snapshot.rewritten.areas)
    for path in (folder / "pages", *(folder / "images").iterdir()):
        with path.open("rb") as file:
            content = file.read(end)
        assert not any(sample in content for sample in samples), path


def test_the_image_is_small(snapshot: Snapshot) -> None:
    rewritten = snapshot.rewritten
    assert rewritten.image_bytes < 4 << 20
    assert rewritten.pages_moved * 4096 >= 2 * (63 << 20)  # a block each, without the zeros in it
    assert rewritten.zero_pages_dropped >= 2 * 256
