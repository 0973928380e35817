"""What the node agent can be told, all by WOODFROG_NODE_AGENT_* variables."""

from pathlib import Path

from woodfrog.settings import ServiceSettings


class Settings(ServiceSettings, env_prefix="WOODFROG_NODE_AGENT_"):
    node: str = "node-1"
    """Name of this node, unique in the cell."""
    listen: str = "127.0.0.1:0"
    """gRPC address."""
    etcd: str
    """etcd's endpoints, host:port, comma between."""
    store: str
    """gRPC address of the snapshot store."""
    weight_fs: str
    """gRPC address of this node's weight_fs."""
    mount_dir: Path
    """This node's FUSE mount; a sandbox must not keep a copy of it alive."""
    state_dir: Path
    """Staging of snapshots; on the file system of weight_fs's cache, so that a finished one is moved, not copied."""
    run_dir: Path
    """Folders of the sandboxes with their sockets; short, a socket's path has 107 bytes at most."""
    criu: Path
    """CRIU's command."""
    memory_bytes: int = 0
    """Memory that replicas may own; 0 means four fifths of the machine's."""
    replica_count_max: int = 64
    """Replicas at once."""
    pool_size: int = 2
    """Sandboxes kept ready; each costs about 10 MB and saves 30 ms of a climb."""
    cold_timeout_s: float = 300.0
    """A cold start that takes longer is given up."""
    lease_ttl_s: int = 5
    """The node leaves the cell this long after its agent stopped answering."""
