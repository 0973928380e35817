"""The catalog: which models, snapshots and nodes there are."""

from woodfrog.catalog.catalog import Catalog
from woodfrog.catalog.entries import NodeRecord
from woodfrog.catalog.events import (
    CatalogEvent,
    CatalogSnapshot,
    KeyPut,
    KeyRevoked,
    ModelPut,
    ModelRemoved,
    NodeGone,
    NodePut,
    SnapshotPut,
    SnapshotRemoved,
    TenantPut,
    TenantRemoved,
)

__all__ = [
    "Catalog",
    "CatalogEvent",
    "CatalogSnapshot",
    "KeyPut",
    "KeyRevoked",
    "ModelPut",
    "ModelRemoved",
    "NodeGone",
    "NodePut",
    "NodeRecord",
    "SnapshotPut",
    "SnapshotRemoved",
    "TenantPut",
    "TenantRemoved",
]
