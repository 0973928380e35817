"""What the scheduler can be told, all by WOODFROG_SCHEDULER_* variables."""

from pydantic import Field

from woodfrog.settings import ServiceSettings


class Settings(ServiceSettings, env_prefix="WOODFROG_SCHEDULER_"):
    listen: str = "127.0.0.1:7001"
    """gRPC address."""
    metrics_listen: str = ""
    """HTTP address of /metrics; empty: it is not served."""
    operator_listen: str = ""
    """gRPC address for operators, where tenants and keys are made and no key is asked for; keep it from users:
    unix:PATH is for who may open that folder. Empty: there is none."""
    etcd: str = "127.0.0.1:2379"
    """etcd's endpoints, host:port, comma between."""
    climb_timeout_s: float = Field(default=300.0, gt=0)
    """A climb that takes longer has failed: longer than a cold start of a large model."""
    wait_s_max: float = Field(default=600.0, gt=0)
    """A request without a deadline waits so long."""
    waiting_max: int = Field(default=1024, gt=0)
    """Requests of one model that wait for a slot; more are turned away. A tenant has as many as it leaves free for others."""
    node_patience_s: float = Field(default=3.0, ge=0)
    """A registered node has so long to connect, and a broken stream so long to come back, before it is lost."""
    room_s: float = Field(default=10.0, ge=0)
    """A request for which no node has room waits so long for others to idle, before it is turned away."""
    plan_every_s: float = Field(default=5.0, ge=0)
    """Between two plans of which idle replicas are kept, and where; 0: idle replicas go by the clock."""
    plan_within_s: float = Field(default=2.0, gt=0)
    """A plan that takes longer is made by a simpler rule."""
    gpu_price: float = Field(default=0.001, ge=0)
    """Seconds of waiting that must be saved for holding a whole GPU for one second."""
    memory_price: float = Field(default=0.0001, ge=0)
    """The same, for all of a node's memory."""
    pinned_price: float = Field(default=0.000_001, ge=0)
    """The same, for all of a node's pinned memory, which is there whether it is used or not."""
    disk_price: float = Field(default=0.000_001, ge=0)
    """The same, for all of a node's cache on disk, likewise."""
    node_return_s: float = Field(default=10.0, ge=0)
    """Requests wait so long for a lost node to come back when nothing else has room."""
    leader_ttl_s: int = Field(default=5, ge=2)
    """After a leader that died nobody leads for so long; an etcd that is away for nine tenths of it ends its term."""
