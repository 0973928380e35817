"""CRIU, started inside a sandbox by its init, so that it meets no foreign namespace and needs no flag for one.

Its words stay here. Failures become Unavailable with the log's last error line.
"""

import asyncio
import re
from pathlib import Path

from woodfrog.errors import Unavailable
from woodfrog.node_agent.sandbox import DUMP, SNAPSHOT, WORK, Sandbox

ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
IMAGES = "images"  # folder of CRIU's files within a snapshot's tree
_COMMON = ("-W", str(WORK), "-v1", "--manage-cgroups=ignore")
_TIMEOUT_S = 60.0


class Criu:
    def __init__(self, command: Path) -> None:
        self._command = str(command)

    async def dump(self, sandbox: Sandbox, pid: int) -> None:
        """Writes the image of `pid`'s tree to DUMP, and leaves the tree running."""
        await self._run(
            sandbox, "dump", "-t", str(pid), "-D", str(DUMP), "-o", "dump.log", "--leave-running"
        )

    async def restore(self, sandbox: Sandbox) -> None:
        """Starts the tree of the image in SNAPSHOT; it is a child of the sandbox's init afterwards."""
        await self._run(
            sandbox,
            "restore",
            "-D",
            str(SNAPSHOT / IMAGES),
            "-o",
            "restore.log",
            "--restore-detached",
        )

    async def probe(self, kdat: Path) -> str:
        """Takes CRIU's probe of the kernel into `kdat` once, for every sandbox; CRIU's version. Raises Unavailable.

        Outside any sandbox, because it needs a loopback that is up; on a /run of its own, because only there it leaves
        its probe.
        """
        script = (
            'mount -t tmpfs none /run && "$0" check && cp /run/criu.kdat "$1" && "$0" --version'
        )
        process = await asyncio.create_subprocess_exec(
            "unshare", "-m", "sh", "-c", script, self._command, str(kdat),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                out, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            out = b"it did not end"
        said = out.decode(errors="replace")
        version = re.search(r"Version: (\S+)", said)
        if process.returncode != 0 or version is None:
            raise Unavailable(
                "CRIU_CHECK_FAILED",
                f"criu check failed: {said[-300:].strip()}; run woodfrog doctor",
            )
        return version[1]

    async def _run(self, sandbox: Sandbox, verb: str, *args: str) -> None:
        pid = await sandbox.spawn([self._command, verb, *_COMMON, *args], ENV)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                status = await sandbox.wait(pid)
        except TimeoutError:
            status = -1
        if status != 0:
            raise Unavailable(
                f"CRIU_{verb.upper()}_FAILED",
                f"criu {verb} ended with status {status}: {_last_error(sandbox, verb)}",
                status=status,
            )


def _last_error(sandbox: Sandbox, verb: str) -> str:
    try:
        lines = (_inside(sandbox) / WORK.relative_to("/") / f"{verb}.log").read_text(
            errors="replace"
        )
    except OSError:
        return "it wrote no log"
    errors = [line for line in lines.splitlines() if "Error" in line]
    return " | ".join(errors[:3]) if errors else "its log has no error line"


def _inside(sandbox: Sandbox) -> Path:
    """The sandbox's root as the host sees it."""
    return Path(f"/proc/{sandbox.init_pid}/root")
