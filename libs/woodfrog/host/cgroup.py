"""One cgroup a sandbox, with a memory and a pids limit, by cgroup v2 or by v1's controllers.

The groups live below a group named after the node, so that a predecessor's can be found and emptied.
"""

import errno
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_CONTROLLERS = ("memory", "pids")
_EMPTY_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Cgroup:
    folders: tuple[Path, ...]  # one on v2, one a controller on v1

    @property
    def procs_files(self) -> list[str]:
        """Where a process writes its id to join."""
        return [str(folder / "cgroup.procs") for folder in self.folders]

    def pids(self) -> set[int]:
        found: set[int] = set()
        for folder in self.folders:
            for procs in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
                try:
                    found.update(int(pid) for pid in (procs / "cgroup.procs").read_text().split())
                except OSError:
                    continue
        return found

    def out_of_memory(self) -> bool:
        """Whether the kernel killed a process inside for want of memory."""
        for folder in self.folders:
            for name in ("memory.events", "memory.oom_control"):  # v2, v1
                if (folder / name).exists():
                    fields = dict(line.split() for line in (folder / name).read_text().splitlines())
                    return int(fields.get("oom_kill", 0)) > 0
        return False

    def kill(self) -> None:
        """Kills everything inside, and waits until it is gone, for at most five seconds."""
        deadline = time.monotonic() + _EMPTY_WAIT_S
        while (pids := self.pids()) and time.monotonic() < deadline:
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.005)

    def remove(self) -> None:
        """Raises OSError when processes are still inside."""
        deadline = time.monotonic() + _EMPTY_WAIT_S
        for folder in self.folders:
            while folder.exists():
                try:
                    folder.rmdir()
                except OSError as error:
                    if error.errno != errno.EBUSY or time.monotonic() > deadline:
                        raise
                    time.sleep(0.005)


class Cgroups:
    """The cgroups of one node. `name` is the node's."""

    def __init__(self, name: str, root: Path = ROOT) -> None:
        self._root = root
        self._v2 = (root / "cgroup.controllers").exists()
        parents = [root] if self._v2 else [root / c for c in _CONTROLLERS if (root / c).is_dir()]
        self._parents = [parent / "woodfrog" / name for parent in parents]

    def make(self, sandbox: str, memory_bytes: int, pids_max: int) -> Cgroup:
        """Raises OSError; then nothing is left."""
        cgroup = Cgroup(tuple(parent / sandbox for parent in self._parents))
        try:
            for folder in cgroup.folders:
                if self._v2:
                    self._delegate(folder)
                folder.mkdir(parents=True, exist_ok=True)
            self.limit(cgroup, memory_bytes, pids_max)
        except OSError:
            cgroup.remove()
            raise
        return cgroup

    def limit(self, cgroup: Cgroup, memory_bytes: int, pids_max: int) -> None:
        for folder in cgroup.folders:
            for name, value in (
                ("memory.max", memory_bytes),
                ("memory.limit_in_bytes", memory_bytes),
                ("pids.max", pids_max),
            ):
                if (folder / name).exists():
                    (folder / name).write_text(str(value))

    def leftovers(self) -> list[Cgroup]:
        """The cgroups that exist below this node's name."""
        names = {
            p.name
            for parent in self._parents
            if parent.is_dir()
            for p in parent.iterdir()
            if p.is_dir()
        }
        return [
            Cgroup(tuple(parent / name for parent in self._parents if (parent / name).is_dir()))
            for name in sorted(names)
        ]

    def remove_node(self) -> None:
        """Removes the node's own group, and the top one when no other node is left."""
        for parent in self._parents:
            for folder in (parent, parent.parent):
                try:
                    folder.rmdir()
                except OSError:
                    break

    def _delegate(self, folder: Path) -> None:
        """v2: a controller works in a group only when every group above hands it down."""
        for parent in reversed(folder.parents):
            control = parent / "cgroup.subtree_control"
            if parent.is_relative_to(self._root):
                parent.mkdir(exist_ok=True)
                have = control.read_text().split() if control.exists() else []
                for controller in _CONTROLLERS:
                    if controller not in have:
                        control.write_text(f"+{controller}")
