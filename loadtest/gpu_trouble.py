"""What is done to replicas on a GPU, and to the GPU, to see what becomes of a request."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtest.lab import Lab


def kill_replicas(lab: Lab) -> int:
    """Every process in a sandbox of the cluster that is not a sandbox's init; how many."""
    count = 0
    for procs in Path("/sys/fs/cgroup").rglob("cgroup.procs"):
        if lab.cluster.node not in str(procs):
            continue
        for pid in procs.read_text().split():
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                inside = next(line for line in status.splitlines() if line.startswith("NSpid:"))
                if len(inside.split()) > 2 and int(inside.split()[-1]) >= 1000:
                    os.kill(int(pid), signal.SIGKILL)
                    count += 1
            except (OSError, StopIteration):
                continue
    return count


@contextmanager
def hog(free_bytes: int) -> Iterator[None]:
    """Another process takes all of the GPU's memory but that much."""
    script = (
        "import sys,torch;f,_=torch.cuda.mem_get_info();"
        f"x=torch.empty(f-{free_bytes},dtype=torch.uint8,device='cuda');print('ready',flush=True);"
        "sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()
