"""`woodfrog doctor`: what this machine can do, and for each failure what to type."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from woodfrog.cli.cluster import Tools

_SETUP = "run: make setup"
_KERNEL_MIN = (6, 1)
_ETCD_MIN = (3, 5, 16)
_CRIU_MIN = (4, 1)
_CAPABILITIES = {
    21: "CAP_SYS_ADMIN",
    19: "CAP_SYS_PTRACE",
    40: "CAP_CHECKPOINT_RESTORE",
    12: "CAP_NET_ADMIN",
}


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    said: str
    mend: str = ""  # what to do; empty when all is well
    needed: bool = True


def examine(tools: Tools) -> Iterator[Finding]:
    yield _kernel()
    yield _root()
    yield _capabilities()
    yield _fuse()
    yield _cgroup()
    yield _version("CRIU", [str(tools.criu), "--version"], "Version: ", _CRIU_MIN)
    yield _criu_check(tools.criu)
    yield _version("etcd", [str(tools.etcd), "--version"], "etcd Version: ", _ETCD_MIN)
    yield _program("setpriv", "apt-get install util-linux")
    yield _disk()
    yield _gpu()


def _kernel() -> Finding:
    release = platform.release()
    version = _numbers(release)
    if version < _KERNEL_MIN:
        return Finding("kernel", release, "Linux 6.1 or newer is needed: upgrade the kernel")
    return Finding("kernel", release)


def _root() -> Finding:
    if os.geteuid() != 0:
        return Finding("root", f"user {os.geteuid()}", "run woodfrog as root: sudo woodfrog …")
    return Finding("root", "yes")


def _capabilities() -> Finding:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    effective = int(line.split()[1], 16)
    missing = [name for bit, name in _CAPABILITIES.items() if not effective >> bit & 1]
    if missing:
        return Finding(
            "capabilities",
            f"missing {', '.join(missing)}",
            "start it as root, in a container with --privileged",
        )
    return Finding("capabilities", "all needed ones")


def _fuse() -> Finding:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return Finding(
            "FUSE", "/dev/fuse cannot be opened", "run: modprobe fuse, then: apt-get install fuse3"
        )
    return Finding("FUSE", "/dev/fuse")


def _cgroup() -> Finding:
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return Finding("cgroup", "v2")
    if (root / "memory").is_dir() and (root / "pids").is_dir():
        return Finding("cgroup", "v1")
    return Finding(
        "cgroup",
        "no memory and pids controller",
        "mount cgroup v2: mount -t cgroup2 none /sys/fs/cgroup",
    )


def _version(name: str, command: list[str], before: str, least: tuple[int, ...]) -> Finding:
    said = _run(command)
    if said is None or before not in said:
        return Finding(name, f"{command[0]} does not run", _SETUP)
    version = said.split(before, 1)[1].split()[0]
    if _numbers(version) < least:
        wanted = ".".join(map(str, least))
        return Finding(name, version, f"{wanted} or newer is needed: {_SETUP}")
    return Finding(name, version)


def _criu_check(criu: Path) -> Finding:
    said = _run([str(criu), "check"])
    if said is None:
        return Finding("criu check", "it does not run", _SETUP)
    last = said.strip().splitlines()[-1] if said.strip() else "it said nothing"
    if "Looks good" not in said:
        return Finding(
            "criu check", last, "run it as root on a kernel with CONFIG_CHECKPOINT_RESTORE"
        )
    return Finding("criu check", "looks good")


def _program(name: str, mend: str) -> Finding:
    found = shutil.which(name)
    return Finding(name, found or "not found", "" if found else f"run: {mend}")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    said = f"{free / 1e9:.0f} GB free here"
    return Finding("disk", said, "free at least 5 GB" if free < 5e9 else "")


def _gpu() -> Finding:
    said = _run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"])
    if not said:
        return Finding("GPU", "none: replicas run on the CPU", needed=False)
    return Finding("GPU", said.strip().replace("\n", "; "), needed=False)


def _run(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout + done.stderr


def _numbers(version: str) -> tuple[int, ...]:
    """6.18.44-x → (6, 18, 44)."""
    digits = version.split("-")[0].split("+")[0].split(".")
    return tuple(int(part) for part in digits if part.isdigit())
