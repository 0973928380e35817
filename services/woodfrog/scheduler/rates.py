"""How fast a climb goes, before the first of its kind told. Priors order nodes, nobody waits by them.

From docs/figures.md, as measured on one machine with an H100, unless said otherwise.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rates:
    page_cache_bytes_s: float = 4e9  # first touch of pages that are in memory
    disk_bytes_s: float = 2e9  # case frozen_disk of llama-8b
    store_bytes_s: float = 0.75e9  # case stored of llama-8b
    restore_s: float = 0.03  # of the process itself, beside its pages; on a CPU
    thaw_s: float = 0.01  # on a CPU
    cuda_s: float = 0.2  # of a process's context on a GPU
    hot_s: float = 0.03  # to thaw what is on a GPU, its weights there
    pcie_bytes_s: float = 50e9  # weights from pinned memory onto a GPU
    unpinned_bytes_s: float = 25e9  # from the page cache
    lower_s: float = 0.1  # a replica to the rung where its room is free; not measured
    cold_s: float = (
        5.0  # imports and loading, weights at hand; a small model on a CPU, an 8B on a GPU takes 30
    )

    def thaw_prior_s(self, gpu: bool, copied_bytes: int) -> float:
        """Of a parked process, whose weights come onto its GPU unless they lie there."""
        return self.thaw_s + (self.hot_s + copied_bytes / self.pcie_bytes_s if gpu else 0.0)

    def restore_prior_s(self, gpu: bool, copied_bytes: int) -> tuple[float, float]:
        """Of a process, and of its weights beside it: on a GPU each slows the other down."""
        if not gpu:
            return self.restore_s, 0.0
        weights_s = self.thaw_prior_s(True, copied_bytes) + self.cuda_s / 2 if copied_bytes else 0.0
        return self.restore_s + self.cuda_s, weights_s
