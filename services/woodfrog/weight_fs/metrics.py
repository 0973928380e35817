"""The metrics of weight_fs."""

from prometheus_client import Counter, Gauge, Histogram

from woodfrog.telemetry import metrics
from woodfrog.weight_fs.cache import NodeCache

_FAULT_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 20.0)


class Metrics(metrics.ServiceMetrics):
    def __init__(self, cache: NodeCache) -> None:
        super().__init__("weight_fs")
        self._cache = cache
        self.fault = Histogram(
            "woodfrog_weight_fs_fault_seconds",
            "Reads of the mount that waited for a chunk which was not there.",
            buckets=_FAULT_S,
            registry=self.registry,
        )
        self.fetched = Counter(
            "woodfrog_weight_fs_fetched_bytes",
            "Bytes that came from the store, by why: demand (a read waited), prefetch, ahead or verify.",
            ("why",),
            registry=self.registry,
        )
        self.failures = Counter(
            "woodfrog_weight_fs_fetch_failures",
            "Chunks that could not be had, by reason.",
            ("reason",),
            registry=self.registry,
        )
        self._resident = Gauge(
            "woodfrog_weight_fs_resident_bytes",
            "Bytes of trees on this node, by kind and tier: disk, or page_cache, which is a part of it.",
            ("kind", "tier"),
            registry=self.registry,
        )
        self._trees = Gauge(
            "woodfrog_weight_fs_trees",
            "Trees in the cache, by kind and whether they are whole: complete or partial.",
            ("kind", "state"),
            registry=self.registry,
        )
        for name, told, value in (
            ("cache_bytes", "Disk that the cache takes.", lambda: cache.used_bytes),
            ("cache_limit_bytes", "Disk that the cache may take.", lambda: cache.bytes_max),
        ):
            gauge = Gauge(f"woodfrog_weight_fs_{name}", told, registry=self.registry)
            gauge.set_function(value)

    def look(self) -> None:
        self._resident.clear()
        self._trees.clear()
        for tree in self._cache.trees.values():
            kind = tree.manifest.kind.value
            self._resident.labels(kind, "disk").inc(tree.presence.present_bytes)
            self._resident.labels(kind, "page_cache").inc(tree.page_cache_bytes)
            self._trees.labels(kind, "complete" if tree.complete else "partial").inc()
