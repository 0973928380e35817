"""Memory that goes and comes back at its address."""

import ctypes
import mmap
import os
import signal
from pathlib import Path

import pytest

from woodfrog.replica.memory import Populating, Region, parse_ranges


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


def test_populating_brings_pages_in_and_counts_what_fails() -> None:
    memory = mmap.mmap(-1, 4 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view = ctypes.c_char.from_buffer(memory)
    address = ctypes.addressof(view)
    before = resident_bytes(address)
    populating = Populating(
        [(address, len(memory), "write"), (mmap.PAGESIZE, mmap.PAGESIZE, "read")]
    )
    populating.start()
    populating.join(timeout_s=10)
    assert populating.counts() == {"ranges": 2, "done": 1, "failed": 1}
    assert resident_bytes(address) >= before + len(memory)
    del view
    memory.close()


def test_ranges_are_checked() -> None:
    assert parse_ranges([[4096, 8192, "read"]]) == [(4096, 8192, "read")]
    for bad in (
        "x",
        7,
        [[1, 2]],
        [[1, 0, "read"]],
        [[-1, 1, "read"]],
        [[0, 1, "run"]],
        [["0", 1, "read"]],
    ):
        with pytest.raises(ValueError, match="populate"):
            parse_ranges(bad)
