"""Changes of the catalog as typed events. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from woodfrog.catalog.entries import Entry, NodeRecord
from woodfrog.coordination import Change, Item, Listing, Put
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.model.tenant import ApiKey, Tenant


@dataclass(frozen=True, slots=True)
class CatalogSnapshot:
    """All of the catalog at one moment. It replaces what was known: first, and again after a loss of history."""

    models: tuple[ModelSpec, ...]
    snapshots: tuple[SnapshotPointer, ...]
    nodes: tuple[NodeRecord, ...]
    tenants: tuple[Tenant, ...] = ()
    keys: tuple[ApiKey, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelPut:
    spec: ModelSpec


@dataclass(frozen=True, slots=True)
class ModelRemoved:
    spec: ModelSpec  # as it was


@dataclass(frozen=True, slots=True)
class SnapshotPut:
    """Takes the place of any other of the same model and fingerprint."""

    pointer: SnapshotPointer


@dataclass(frozen=True, slots=True)
class SnapshotRemoved:
    pointer: SnapshotPointer  # as it was


@dataclass(frozen=True, slots=True)
class NodePut:
    record: NodeRecord


@dataclass(frozen=True, slots=True)
class NodeGone:
    """It ended, or its lease ran out."""

    record: NodeRecord  # as it was


@dataclass(frozen=True, slots=True)
class TenantPut:
    tenant: Tenant


@dataclass(frozen=True, slots=True)
class TenantRemoved:
    tenant: Tenant  # as it was


@dataclass(frozen=True, slots=True)
class KeyPut:
    key: ApiKey


@dataclass(frozen=True, slots=True)
class KeyRevoked:
    key: ApiKey  # as it was


CatalogEvent = (
    CatalogSnapshot
    | ModelPut
    | ModelRemoved
    | SnapshotPut
    | SnapshotRemoved
    | NodePut
    | NodeGone
    | TenantPut
    | TenantRemoved
    | KeyPut
    | KeyRevoked
)


class View:
    """What one follower was told, so that a removal can say what is gone. What cannot be read does not exist."""

    def __init__(self, read: Callable[[Item], Entry | None]) -> None:
        self._read = read
        self._known: dict[str, Entry] = {}

    def handle(self, change: Change) -> CatalogEvent | None:
        if isinstance(change, Listing):
            entries = ((item.key, self._read(item)) for item in change.items)
            self._known = {key: entry for key, entry in entries if entry is not None}
            return self._all()
        key = change.item.key if isinstance(change, Put) else change.key
        before = self._known.pop(key, None)
        entry = self._read(change.item) if isinstance(change, Put) else None
        if entry is None:
            return _removed(before) if before is not None else None
        self._known[key] = entry
        return _put(entry)

    def _all(self) -> CatalogSnapshot:
        entries = self._known.values()
        return CatalogSnapshot(
            tuple(entry for entry in entries if isinstance(entry, ModelSpec)),
            tuple(entry for entry in entries if isinstance(entry, SnapshotPointer)),
            tuple(entry for entry in entries if isinstance(entry, NodeRecord)),
            tuple(entry for entry in entries if isinstance(entry, Tenant)),
            tuple(entry for entry in entries if isinstance(entry, ApiKey)),
        )


def _put(entry: Entry) -> CatalogEvent:
    match entry:
        case ModelSpec():
            return ModelPut(entry)
        case SnapshotPointer():
            return SnapshotPut(entry)
        case NodeRecord():
            return NodePut(entry)
        case Tenant():
            return TenantPut(entry)
        case ApiKey():
            return KeyPut(entry)


def _removed(entry: Entry) -> CatalogEvent:
    match entry:
        case ModelSpec():
            return ModelRemoved(entry)
        case SnapshotPointer():
            return SnapshotRemoved(entry)
        case NodeRecord():
            return NodeGone(entry)
        case Tenant():
            return TenantRemoved(entry)
        case ApiKey():
            return KeyRevoked(entry)
