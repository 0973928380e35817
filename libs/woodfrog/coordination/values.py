"""What is stored and how it changes. Keys are text, values are bytes. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from woodfrog.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Item:
    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int = 0  # id of the lease that it lives under; 0 for none


@dataclass(frozen=True, slots=True)
class Listing:
    """Every item under a prefix, sorted by key, at one revision. It replaces all that was known before."""

    items: tuple[Item, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Put:
    item: Item


@dataclass(frozen=True, slots=True)
class Delete:
    key: str
    mod_revision: int  # revision of the deletion


Change = Listing | Put | Delete


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all that start with `prefix`; a zero byte, etcd's word for no end, when there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"


def advance(changes: Sequence[Put | Delete], revision: int) -> tuple[list[Put | Delete], int]:
    """Those at `revision` or later, and the revision to resume from once they are delivered."""
    fresh = [change for change in changes if revision_of(change) >= revision]
    return fresh, max((revision_of(change) + 1 for change in fresh), default=revision)


def revision_of(change: Put | Delete) -> int:
    return change.item.mod_revision if isinstance(change, Put) else change.mod_revision


def target(endpoints: Sequence[str]) -> str:
    """A gRPC target for `host:port` or `http://host:port`. Raises InvalidArgument."""
    plain = [endpoint.removeprefix("http://").rstrip("/") for endpoint in endpoints]
    for endpoint in plain:
        host, _, port = endpoint.rpartition(":")
        if not host or not port.isdigit() or "/" in endpoint or "," in endpoint:
            raise InvalidArgument(
                "ETCD_ENDPOINT",
                f"etcd endpoint {endpoint!r} is not host:port or http://host:port",
                endpoint=endpoint,
            )
    if len(plain) == 1:
        return f"dns:///{plain[0]}"
    if not plain or not all(_ipv4(endpoint) for endpoint in plain):
        raise InvalidArgument(
            "ETCD_ENDPOINT",
            f"etcd endpoints are {', '.join(plain) or 'empty'}; give one host:port, or several IPv4 addresses",
        )
    return "ipv4:" + ",".join(plain)


def _ipv4(endpoint: str) -> bool:
    parts = endpoint.rpartition(":")[0].split(".")
    return len(parts) == 4 and all(part.isdigit() and int(part) < 256 for part in parts)
