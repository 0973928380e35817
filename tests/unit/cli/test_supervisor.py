"""What a supervisor that was killed leaves is cleaned, however slowly it dies."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from woodfrog.cli import supervisor
from woodfrog.cli.cluster import Cluster

# Its first thread ends, and with it what dies with its parent; the process is a zombie whose other thread has its files.
DYING = """
import ctypes, signal, sys, threading, time
from pathlib import Path
from woodfrog.cli.supervisor import Lock
signal.signal(signal.SIGTERM, signal.SIG_IGN)
lock = Lock(Path(sys.argv[1]))
lock.take()
threading.Thread(target=lambda: time.sleep(1.0)).start()
print("has it", flush=True)
ctypes.CDLL(None).syscall(60, 0)  # exit, of this thread alone
"""


def test_what_a_dying_supervisor_left_is_cleaned_once_it_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster.open(tmp_path)
    cleaned: list[Cluster] = []
    monkeypatch.setattr(supervisor, "clean", cleaned.append)
    with subprocess.Popen(
        [sys.executable, "-c", DYING, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "has it\n"
        deadline = time.monotonic() + 30
        while supervisor.alive(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert supervisor.Lock(tmp_path).holder() == process.pid
        assert supervisor.stop(tmp_path)
    assert cleaned == [cluster]
