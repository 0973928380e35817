"""The snapshot store's metrics."""

from prometheus_client import Counter, Gauge

from woodfrog.snapshot_store.state import Inventory
from woodfrog.telemetry import metrics


class Metrics(metrics.ServiceMetrics):
    def __init__(self, inventory: Inventory) -> None:
        super().__init__("snapshot_store")
        self._inventory = inventory
        self.chunk_bytes = Counter(
            "woodfrog_snapshot_store_moved_bytes",
            "Bytes of chunks asked for by nodes, or put and kept, by way: out or in.",
            ("way",),
            registry=self.registry,
        )
        self._stored = Gauge(
            "woodfrog_snapshot_store_manifest_bytes",
            "Bytes that manifests name, by kind; what two share is counted twice.",
            ("kind",),
            registry=self.registry,
        )
        self._manifests = Gauge(
            "woodfrog_snapshot_store_manifests",
            "Manifests in the store, by kind.",
            ("kind",),
            registry=self.registry,
        )
        # Read off another thread's state: a copy of a dict's values is one step to all others.
        for name, told, value in (
            (
                "chunk_bytes",
                "Bytes of the chunks on disk.",
                lambda: sum([*inventory.present.values()]),
            ),
            ("chunks", "Chunks on disk.", lambda: len(inventory.present)),
            ("garbage_chunks", "Chunks that nobody needs.", lambda: len(inventory.garbage)),
            ("ingests", "Ingests under way.", lambda: len(inventory.ingests)),
        ):
            gauge = Gauge(f"woodfrog_snapshot_store_{name}", told, registry=self.registry)
            gauge.set_function(value)

    def look(self) -> None:
        self._stored.clear()
        self._manifests.clear()
        for manifest in [*self._inventory.manifests.values()]:
            self._stored.labels(manifest.content.kind).inc(manifest.content.stored_bytes)
            self._manifests.labels(manifest.content.kind).inc()
