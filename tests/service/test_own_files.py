"""A process that loaded a library from its own /tmp: dumped, restored twice at once in sandboxes of the node agent."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.capabilities import CRIU, need
from tests.service import own_files_process

from woodfrog.errors import FailedPrecondition, Unavailable
from woodfrog.host.cgroup import Cgroups
from woodfrog.node_agent.criu import IMAGES, Criu
from woodfrog.node_agent.engines import code_folders
from woodfrog.node_agent.image import rewrite
from woodfrog.node_agent.own_files import OWN, OwnFile, keep, rows
from woodfrog.node_agent.sandbox import (
    DUMP,
    FIRST_PID,
    REPLICA,
    SNAPSHOT,
    Sandbox,
    SandboxConfig,
    SandboxPool,
)

pytestmark = need("root", "criu")
TEXT = Path(own_files_process.__file__).read_text()
GIB = 1 << 30


@pytest.fixture
async def criu(tmp_path: Path) -> Criu:
    criu = Criu(CRIU)
    await criu.probe(tmp_path / "kdat")
    return criu


@pytest.fixture
async def pool(tmp_path: Path, criu: Criu) -> AsyncIterator[SandboxPool]:
    cgroups = Cgroups(f"test-own-{os.getpid()}")
    config = SandboxConfig(tmp_path / "kdat", tmp_path / "run", code_folders(CRIU))
    pool = SandboxPool(cgroups, config, size=0)
    yield pool
    assert cgroups.leftovers() == []
    cgroups.remove_node()


def _ask(sandbox: Sandbox, word: str) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(sandbox.folder / "own.sock"))
        connection.sendall(word.encode())
        return connection.recv(500).decode()


async def ask(sandbox: Sandbox, word: str) -> str:
    deadline = asyncio.get_running_loop().time() + 30
    while True:
        try:
            return await asyncio.to_thread(_ask, sandbox, word)
        except OSError:  # not listening yet
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.02)


async def frozen(pool: SandboxPool, criu: Criu, folder: Path) -> tuple[Path, list[OwnFile]]:
    """The tree of a snapshot, and its own files."""
    (folder / "dump").mkdir()
    tree = folder / "tree"
    tree.mkdir()
    sandbox = await pool.take(GIB)
    try:
        argv = [sys.executable, "-I", "-S", "-c", TEXT, str(REPLICA)]
        env = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
        pid = await sandbox.spawn(argv, env, stderr=REPLICA / "stderr", last_pid=FIRST_PID - 1)
        assert await ask(sandbox, "twice") == "42", (sandbox.folder / "stderr").read_text()
        await sandbox.place(folder / "dump", DUMP)
        await criu.dump(sandbox, pid)
        assert await ask(sandbox, "log") == repr("compiled\nagain\n")  # it has grown since the dump
        own = await asyncio.to_thread(keep, folder / "dump", sandbox.init_pid, tree / OWN)
    finally:
        await sandbox.close()
    rewrite(folder / "dump", tree / IMAGES, tree / "pages", str(SNAPSHOT / "pages"))
    return tree, own


async def woken(
    pool: SandboxPool, criu: Criu, tree: Path, own: list[OwnFile], into: list[Sandbox]
) -> None:
    sandbox = await pool.take(GIB)
    into.append(sandbox)
    await sandbox.place(tree, SNAPSHOT, read_only=True)
    if own:
        await sandbox.fill(SNAPSHOT / OWN, rows(own))
    await criu.restore(sandbox)


async def test_clones_call_into_a_library_of_their_own_tmp(
    pool: SandboxPool, criu: Criu, tmp_path: Path
) -> None:
    tree, own = await frozen(pool, criu, tmp_path)
    assert [file.path for file in own] == [
        "compile.log",
        "empty",
        "torchinductor_root",
        "torchinductor_root/ab",
        "torchinductor_root/ab/kernel.so",
    ]
    clones: list[Sandbox] = []
    try:
        await asyncio.gather(*(woken(pool, criu, tree, own, clones) for _ in range(2)))
        for clone in clones:
            assert await ask(clone, "twice") == "42"
            assert await ask(clone, "sum") == str(7 * 256)
            assert await ask(clone, "unlinked") == "still here"
            assert await ask(clone, "here") == repr(
                ("0o100744", 1_700_000_000_123_456_789, "0o40700", ["kernel.so"], [])
            )
        log = [await ask(clone, "log") for clone in (clones[0], clones[0], clones[1])]
        assert "again" in log[1]
        assert log[0] == log[2]  # each has its own
    finally:
        for clone in clones:
            await clone.close()


async def test_without_them_criu_refuses(pool: SandboxPool, criu: Criu, tmp_path: Path) -> None:
    """What the files are for; a version of CRIU that does not need them would let us drop all this."""
    tree, _ = await frozen(pool, criu, tmp_path)
    clones: list[Sandbox] = []
    try:
        with pytest.raises(
            Unavailable, match=r"criu restore .*tmp/(torchinductor_root|compile.log|empty)"
        ):
            await woken(pool, criu, tree, [], clones)
    finally:
        for clone in clones:
            await clone.close()


async def test_their_memory_is_the_sandbox_s(pool: SandboxPool, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / OWN).write_bytes(bytes(40 << 20))
    own = [OwnFile("x", 0o100600, 40 << 20, 1)]
    small, large = await pool.take(32 << 20), await pool.take(GIB)
    try:
        for sandbox in (small, large):
            await sandbox.place(tree, SNAPSHOT, read_only=True)
        await large.fill(SNAPSHOT / OWN, rows(own))
        kept = Path(f"/proc/{large.init_pid}/root/tmp/x").stat()
        assert (kept.st_size, kept.st_mode, kept.st_mtime_ns) == (40 << 20, 0o100600, 1)
        with pytest.raises(Unavailable):
            await small.fill(SNAPSHOT / OWN, rows(own))
        assert small.cgroup.out_of_memory()
    finally:
        await small.close()
        await large.close()


async def test_a_tree_that_is_too_short_is_one_sentence(pool: SandboxPool, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / OWN).write_bytes(b"short")
    sandbox = await pool.take(GIB)
    try:
        await sandbox.place(tmp_path / "tree", SNAPSHOT, read_only=True)
        with pytest.raises(Unavailable, match="too short for '/tmp/x'"):
            await sandbox.fill(SNAPSHOT / OWN, [["x", 0o100600, 6, 1]])
    finally:
        await sandbox.close()


async def test_a_link_to_the_host_s_files_leads_nowhere(
    pool: SandboxPool, criu: Criu, tmp_path: Path
) -> None:
    """A replica that puts a link in place of its library once it is dumped."""
    (tmp_path / "dump").mkdir()
    sandbox = await pool.take(GIB)
    try:
        argv = [sys.executable, "-I", "-S", "-c", TEXT, str(REPLICA)]
        pid = await sandbox.spawn(argv, {"PATH": "/usr/bin:/bin"}, last_pid=FIRST_PID - 1)
        await ask(sandbox, "twice")
        await sandbox.place(tmp_path / "dump", DUMP)
        await criu.dump(sandbox, pid)
        cache = own_files_process.CACHE
        script = f"rm -r {cache} && ln -s /etc {cache}"
        linked = await sandbox.spawn(["/bin/sh", "-c", script], {"PATH": "/usr/bin:/bin"})
        assert await sandbox.wait(linked) == 0
        with pytest.raises(FailedPrecondition, match=r"kernel.*symbolic links"):
            keep(tmp_path / "dump", sandbox.init_pid, tmp_path / OWN)
    finally:
        await sandbox.close()
