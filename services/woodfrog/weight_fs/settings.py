"""What weight_fs can be told, all by WOODFROG_WEIGHT_FS_* variables."""

from pathlib import Path

from pydantic import Field

from woodfrog.settings import ServiceSettings


class Settings(ServiceSettings, env_prefix="WOODFROG_WEIGHT_FS_"):
    store: str
    """host:port of the snapshot store's gRPC."""
    cache_dir: Path
    """The node's cache, on one file system with what is to be adopted. Only one weight_fs may use it at a time."""
    mount_dir: Path
    """Where the trees are shown. Made if need be; an old mount of ours on it is undone."""
    metrics_listen: str = ""
    """HTTP address of /metrics; empty: it is not served."""
    listen: str = "127.0.0.1:0"
    """host:port of gRPC."""
    cache_bytes_max: int = Field(64 << 30, gt=0)
    """Disk that the cache may take; beyond it the trees used longest ago go."""
    fetch_concurrency: int = Field(8, gt=0, le=64)
    """Chunks on their way at once, 4 MiB each in memory."""
    fetch_retry_s: float = Field(20.0, gt=0)
    """How long a read waits for a store that cannot be reached before it fails."""
    readahead_kib: int = Field(4096, ge=0)
    """Read-ahead of the kernel on the mount: one chunk, so that a store's latency is met once a chunk."""
    residency_interval_s: float = Field(2.0, gt=0)
    """How often the page cache is looked at; changes on disk are told at once."""
