"""Memory that goes and comes back at its address."""

import ctypes
import os
import signal
from pathlib import Path

import pytest

from woodfrog.replica.memory import Region


def resident_bytes(address: int) -> int:
    """Of the mapping that holds `address`."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            low, high = (int(part, 16) for part in first.split("-"))
            inside = low <= address < high
        elif inside and first == "Rss:":
            return int(line.split()[1]) * 1024
    raise AssertionError("not mapped")


@pytest.fixture
def region() -> Region:
    return Region(3 << 20)


def test_a_region_reads_as_zero_after_each_renewal(region: Region) -> None:
    buffer = region.buffer()
    assert bytes(buffer[:4]) == bytes(4)
    buffer[0] = buffer[region.size_bytes - 1] = 7
    region.renew()
    assert buffer[0] == buffer[region.size_bytes - 1] == 0
    region.close()


def test_released_memory_is_gone_and_its_address_kept(region: Region) -> None:
    buffer = region.buffer()
    ctypes.memset(region.address, 1, region.size_bytes)
    assert resident_bytes(region.address) >= 3 << 20
    region.release()
    assert resident_bytes(region.address) == 0
    region.renew()
    buffer[5] = 9
    assert region.buffer()[5] == 9
    region.close()


def test_touching_released_memory_ends_the_process(region: Region) -> None:
    region.release()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        ctypes.memset(region.address, 1, 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV
    region.close()
