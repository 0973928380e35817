"""What the node agent can be told, all by WOODFROG_NODE_AGENT_* variables."""

from pathlib import Path

from pydantic import Field, field_validator

from woodfrog.model.tenant import check_name
from woodfrog.node_agent.cuda import driver as cuda_driver
from woodfrog.node_agent.vault import device as vault_device
from woodfrog.replica import device as replica_device
from woodfrog.settings import ServiceSettings


class Settings(ServiceSettings, env_prefix="WOODFROG_NODE_AGENT_"):
    node: str = "node-1"
    """Name of this node, unique in the cell."""
    metrics_listen: str = ""
    """HTTP address of /metrics; empty: it is not served."""
    listen: str = "127.0.0.1:0"
    """gRPC address."""
    etcd: str
    """etcd's endpoints, host:port, comma between."""
    store: str
    """gRPC address of the snapshot store."""
    weight_fs: str
    """gRPC address of this node's weight_fs."""
    state_dir: Path
    """Staging of snapshots; on the file system of weight_fs's cache, so that a finished one is moved, not copied."""
    run_dir: Path
    """Folders of the sandboxes with their sockets; short, a socket's path has 107 bytes at most."""
    criu: Path
    """CRIU's command."""
    tenants: str = ""
    """Tenants whose models alone it takes, comma between; empty takes everybody's. What is here already stays."""
    memory_bytes: int = Field(0, ge=0)
    """Memory that replicas may own; 0 means four fifths of the machine's."""
    replica_count_max: int = Field(64, gt=0)
    """Replicas at once."""
    pool_size: int = Field(2, ge=0)
    """Sandboxes kept ready; each costs about 10 MB and saves 30 ms of a climb."""
    cold_timeout_s: float = Field(300.0, gt=0)
    """A cold start that takes longer is given up."""
    gpus: str = "none"
    """GPUs of this node: none, all, or their numbers, comma between."""
    arena_bytes: int = Field(-1, ge=-1)
    """Pinned memory for each GPU's weights, made at start; -1 means a quarter of the machine's memory over its GPUs."""
    gpu_context_bytes: int = Field(3 << 29, ge=0)
    """GPU memory that a resting replica keeps: its context, kernels and graphs (0.9 to 1.2 GB were seen)."""
    vault_reader_count: int = Field(12, gt=0)
    """Threads that read weights for one GPU."""
    vault_device: str = vault_device.REAL
    """module:class of the vault's GPU; the simulated one is for tests."""
    replica_memory: str = replica_device.REAL
    """module:class of a replica's GPU memory; the simulated one is for tests."""
    cuda_driver: str = cuda_driver.REAL
    """module:class of CUDA's checkpoints; the simulated one is for tests."""
    lease_ttl_s: int = Field(5, gt=0)
    """The node leaves the cell this long after its agent stopped answering."""

    @field_validator("tenants")
    @classmethod
    def _names(cls, value: str) -> str:
        for name in value.split(",") if value else ():
            check_name(name)
        return value

    @property
    def tenant_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.tenants.split(","))) if self.tenants else ()
