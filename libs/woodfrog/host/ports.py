"""Ports of the loopback that nobody uses."""

import random
import socket
from collections.abc import Collection
from pathlib import Path

from woodfrog.errors import Unavailable

_LOWEST = 12_000
_BEYOND = 65_536
_FEW = 1000  # that are looked at, at most
_OF_CONNECTIONS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free(count: int, kept: Collection[int] = ()) -> list[int]:
    """So many, none of them `kept`. Raises Unavailable when so many are not found.

    They are not of those that the kernel gives to connections: such a one, free now, may be a connection's when it is
    listened on later.
    """
    ports = range(_LOWEST, int(_OF_CONNECTIONS.read_text().split()[0]))
    if len(ports) < _FEW:  # somebody gave connections all of them
        ports = range(_LOWEST, _BEYOND)
    found: list[int] = []
    for port in random.sample(ports, min(len(ports), _FEW)):
        if len(found) == count:
            break
        if port not in kept and _is_free(port):
            found.append(port)
    if len(found) < count:
        raise Unavailable(
            "NO_PORTS", f"fewer than {count} ports of 127.0.0.1 are free; end what listens on them"
        )
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
