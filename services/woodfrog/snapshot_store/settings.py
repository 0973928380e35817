"""What the store can be told, all by WOODFROG_SNAPSHOT_STORE_* variables."""

from pathlib import Path

from pydantic import Field

from woodfrog.settings import ServiceSettings


class Settings(ServiceSettings, env_prefix="WOODFROG_SNAPSHOT_STORE_"):
    data_dir: Path
    """Everything it keeps, on one file system. Only one store may use it at a time."""
    metrics_listen: str = ""
    """HTTP address of /metrics; empty: it is not served."""
    listen: str = "127.0.0.1:0"
    """host:port of gRPC."""
    chunks_listen: str = "127.0.0.1:0"
    """host:port of HTTP for the bytes of chunks; clients learn it from gRPC."""
    ingest_idle_s: float = Field(600.0, gt=0)
    """An ingest that nobody touched for so long is dropped: its client is gone."""
    reserve_bytes: int = Field(1 << 30, ge=0)
    """Free disk that an ingest may not take, so that the node itself can still write."""
