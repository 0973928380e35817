"""Real sandboxes: what they see, what they cannot do, and that nothing of them stays."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.capabilities import need

from woodfrog.errors import Unavailable
from woodfrog.host.cgroup import Cgroups
from woodfrog.node_agent.recovery import recover
from woodfrog.node_agent.sandbox import (
    FIRST_PID,
    REPLICA,
    WEIGHTS,
    Sandbox,
    SandboxConfig,
    SandboxPool,
)

pytestmark = need("root")
ENV = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
GIB = 1 << 30


@pytest.fixture
async def cgroups(tmp_path: Path) -> AsyncIterator[Cgroups]:
    cgroups = Cgroups(f"test-{os.getpid()}")
    yield cgroups
    assert cgroups.leftovers() == []
    cgroups.remove_node()


@pytest.fixture
async def pool(tmp_path: Path, cgroups: Cgroups) -> AsyncIterator[SandboxPool]:
    kdat = tmp_path / "kdat"
    kdat.write_bytes(b"probe")
    pool = SandboxPool(cgroups, SandboxConfig(kdat, tmp_path / "run"), size=1)
    yield pool
    await pool.close()
    assert list((tmp_path / "run").iterdir()) == []


async def shell(sandbox: Sandbox, script: str) -> tuple[int, str]:
    """Exit status and output of a script inside."""
    pid = await sandbox.spawn(["/bin/sh", "-c", f"exec >&2; {script}"], ENV, stderr=REPLICA / "out")
    status = await sandbox.wait(pid)
    out = sandbox.folder / "out"
    said = out.read_text()
    out.unlink()
    return status, said


async def test_it_sees_its_own_world_only(pool: SandboxPool, tmp_path: Path) -> None:
    sandbox = await pool.take(GIB)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w").write_text("heavy")
    await sandbox.place(tmp_path / "weights", WEIGHTS, read_only=True)
    status, said = await shell(
        sandbox,
        "cat /run/woodfrog/weights/w; echo; hostname; ls /proc | grep -c '^[0-9]'; ls /sys/class/net | wc -l; cat /run/criu.kdat",
    )
    assert status == 0
    weight, hostname, processes, _, kdat = said.split("\n")
    assert (weight, hostname, kdat) == ("heavy", sandbox.name, "probe")
    assert int(processes) <= 5
    _, links = await shell(sandbox, "cat /proc/net/dev | tail -n +3 | cut -d: -f1")
    assert links.split() == ["lo"]
    await sandbox.close()


async def test_it_cannot_write_to_the_host(pool: SandboxPool, tmp_path: Path) -> None:
    sandbox = await pool.take(GIB)
    await sandbox.place(tmp_path, WEIGHTS, read_only=True)
    for target in ("/etc/x", str(tmp_path / "x"), "/run/woodfrog/weights/x", "/root/x"):
        status, said = await shell(sandbox, f"touch {target}")
        assert status != 0, said
    assert not (tmp_path / "x").exists()
    assert (await shell(sandbox, "touch /tmp/x /dev/shm/x /run/woodfrog/replica/x"))[0] == 0
    assert (sandbox.folder / "x").exists()
    await sandbox.close()


async def test_it_keeps_no_mount_of_a_weight_fs_alive(cgroups: Cgroups, tmp_path: Path) -> None:
    """Several nodes of one machine have one each."""
    folder = tmp_path / "a node's mount"
    folder.mkdir()
    (tmp_path / "kdat").write_text("probe")
    mounted = await asyncio.create_subprocess_exec("mount", "-t", "tmpfs", "woodfrog", folder)
    assert await mounted.wait() == 0
    try:
        (folder / "weights").write_text("heavy")
        pool = SandboxPool(cgroups, SandboxConfig(tmp_path / "kdat", tmp_path / "run"), size=0)
        sandbox = await pool.take(GIB)
        assert await shell(sandbox, "grep ^woodfrog /proc/mounts") == (1, "")
        assert (folder / "weights").read_text() == "heavy"
        await sandbox.close()
    finally:
        unmounted = await asyncio.create_subprocess_exec("umount", folder)
        assert await unmounted.wait() == 0


async def test_a_device_can_be_hidden_from_it(pool: SandboxPool) -> None:
    sandbox = await pool.take(GIB)
    await sandbox.hide([Path("/dev/zero")])
    assert await shell(sandbox, "head -c 4 /dev/zero | wc -c; ls /dev/zero") == (
        0,
        "0\n/dev/zero\n",
    )
    with Path("/dev/zero").open("rb") as zeros:  # the host's is as it was
        assert zeros.read(4) == bytes(4)
    with pytest.raises(Unavailable, match="no-such"):
        await sandbox.hide([Path("/dev/no-such")])
    await sandbox.close()


async def test_code_that_lies_in_a_hidden_folder_is_kept_visible(
    cgroups: Cgroups, tmp_path: Path
) -> None:
    """pytest's folder is below /tmp, as a checkout may be."""
    assert str(tmp_path).startswith("/tmp/")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "engine").write_text("here")
    (tmp_path / "kdat").touch()
    config = SandboxConfig(tmp_path / "kdat", tmp_path / "run", (tmp_path / "code",))
    pool = SandboxPool(cgroups, config, size=0)
    sandbox = await pool.take(GIB)
    assert await shell(sandbox, f"cat {tmp_path}/code/engine") == (0, "here")
    _status, said = await shell(sandbox, f"touch {tmp_path}/code/x; ls {tmp_path}")
    assert said.splitlines()[-1] == "code"
    assert not (tmp_path / "code" / "x").exists()
    await sandbox.close()


async def test_processes_start_where_they_are_told_and_are_reaped(pool: SandboxPool) -> None:
    sandbox = await pool.take(GIB)
    pid = await sandbox.spawn(
        ["/bin/sh", "-c", "sleep 60 & exec sleep 60"], ENV, last_pid=FIRST_PID - 1
    )
    assert pid == FIRST_PID
    os.kill(sandbox.host_pid(pid), signal.SIGKILL)
    assert await sandbox.wait(pid) == -signal.SIGKILL
    _, said = await shell(sandbox, "ps -e -o stat= | grep -c Z")
    assert said.strip() == "0"
    await sandbox.close()


async def test_the_limits_bite(pool: SandboxPool) -> None:
    sandbox = await pool.take(64 << 20)
    status, said = await shell(sandbox, f"{sys.executable} -c 'bytearray(1 << 28); print(1)'")
    assert status != 0, said
    many = "i=0; while [ $i -lt 600 ]; do sleep 5 & i=$((i+1)); done; echo made"
    status, said = await shell(sandbox, many)
    assert "made" not in said
    await sandbox.close()


async def test_a_killed_init_ends_everything_and_callers_are_told(pool: SandboxPool) -> None:
    sandbox = await pool.take(GIB)
    pid = await sandbox.spawn(["/bin/sleep", "60"], ENV)
    host_pid = sandbox.host_pid(pid)
    waiting = asyncio.create_task(sandbox.wait(pid))
    os.kill(sandbox.init_pid, signal.SIGKILL)
    assert await asyncio.wait_for(waiting, 10) == -signal.SIGKILL
    with pytest.raises(Unavailable):
        await sandbox.spawn(["/bin/true"], ENV)
    await sandbox.close()
    assert not Path(f"/proc/{host_pid}").exists()


async def test_what_cannot_be_done_is_one_sentence(pool: SandboxPool, tmp_path: Path) -> None:
    sandbox = await pool.take(GIB)
    with pytest.raises(Unavailable, match="cannot mount"):
        await sandbox.place(tmp_path / "nowhere", WEIGHTS)
    with pytest.raises(Unavailable, match="mount on"):
        await sandbox.place(tmp_path, Path("/run/nowhere"))
    pid = await sandbox.spawn(["/no/such/program"], ENV, stderr=REPLICA / "out")
    assert await sandbox.wait(pid) == 127
    assert (
        sandbox.folder / "out"
    ).read_text() == "cannot start /no/such/program: No such file or directory\n"
    await sandbox.close()


async def test_the_pool_gives_a_sandbox_that_is_ready_and_skips_a_dead_one(
    pool: SandboxPool,
) -> None:
    await pool.refill()
    first = await pool.take(GIB)
    os.kill(first.init_pid, signal.SIGKILL)
    await first.ended.wait()
    await first.close()
    await pool.refill()
    second = await pool.take(GIB)
    assert second.name != first.name
    assert (await shell(second, "true"))[0] == 0
    await second.close()


async def test_a_crashed_predecessor_is_swept_up(cgroups: Cgroups, tmp_path: Path) -> None:
    """The sandbox of an agent that was killed ends by itself; its folder and cgroup wait for the next start."""
    kdat = tmp_path / "kdat"
    kdat.touch()
    run = tmp_path / "run"
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from woodfrog.host.cgroup import Cgroups\n"
        "from woodfrog.node_agent.sandbox import SandboxConfig, SandboxPool\n"
        "async def main():\n"
        f"    pool = SandboxPool(Cgroups({f'test-{os.getpid()}'!r}), SandboxConfig(Path({str(kdat)!r}), Path({str(run)!r})), 2)\n"
        "    await pool.refill()\n"
        "    print('ready', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=-1)
    assert child.stdout is not None
    assert await asyncio.wait_for(child.stdout.readline(), 30) == b"ready\n"
    assert len(cgroups.leftovers()) == 2
    child.kill()
    await child.wait()
    assert recover(cgroups, run, tmp_path / "staging") == 2
    assert cgroups.leftovers() == []
    assert list(run.iterdir()) == []
    assert (tmp_path / "staging").is_dir()


async def test_a_limit_that_cannot_be_set_leaves_no_sandbox(pool: SandboxPool) -> None:
    await pool.refill()
    with pytest.raises(Unavailable, match="cannot be made"):
        await pool.take(-5)
    sandbox = await pool.take(GIB)
    assert (await shell(sandbox, "echo here"))[1] == "here\n"
    await sandbox.close()
