"""How fast a climb goes. Priors from one machine: they order nodes, nobody waits by them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rates:
    page_cache_bytes_s: float = 4e9  # first touch of pages that are in memory
    disk_bytes_s: float = 1e9
    store_bytes_s: float = 0.5e9
    restore_s: float = 0.03  # of the process itself, beside its pages
    thaw_s: float = 0.01
    hot_s: float = 0.03  # to thaw what is on a GPU, its weights there
    pcie_bytes_s: float = 50e9  # weights from memory onto a GPU
    lower_s: float = 0.1  # a replica to the rung where its room is free
    cold_s: float = 5.0  # imports and loading, weights at hand
