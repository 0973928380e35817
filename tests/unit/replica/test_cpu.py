"""AMX tiles: a restored process may use them again."""

from pathlib import Path

from woodfrog.replica import cpu


def test_tiles_are_permitted_where_the_cpu_has_them() -> None:
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    assert cpu.permit_tiles() == ("amx_tile" in flags)
    assert cpu.permit_tiles() == ("amx_tile" in flags), "asking again is harmless"
