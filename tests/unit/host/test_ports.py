"""Ports for what listens later."""

import socket
from pathlib import Path

import pytest

from woodfrog.errors import Unavailable
from woodfrog.host import ports


def test_they_are_free_and_no_connection_takes_one_meanwhile() -> None:
    found = ports.free(50)
    assert len({*found}) == 50
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(found) < lowest
    for port in found:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", port))


def test_one_that_is_used_or_kept_is_not_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_FEW", 1 << 20)  # all are looked at, of whatever range it is told
    used, kept, left = ports.free(3)
    monkeypatch.setattr(ports, "_LOWEST", min(used, kept, left))
    monkeypatch.setattr(ports, "_BEYOND", max(used, kept, left) + 1)
    every = {*range(min(used, kept, left), max(used, kept, left) + 1)}
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", used))
        assert ports.free(1, every - {left, used}) == [left]
        with pytest.raises(Unavailable, match="fewer than 2 ports"):
            ports.free(2, every - {left, used})
