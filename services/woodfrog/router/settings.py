"""What a router can be told; each variable is WOODFROG_ROUTER_ and the field's name."""

import os
import socket
import uuid
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from woodfrog.settings import ServiceSettings


def _name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


class Settings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="WOODFROG_ROUTER_")

    listen: str = "127.0.0.1:8000"
    """Address for HTTP; port 0 takes a free one."""
    grpc_listen: str = "127.0.0.1:7000"
    """Address for gRPC."""
    shared_listen: bool = False
    """Other routers of this machine listen at both addresses too: the kernel gives each connection to one of them."""
    metrics_listen: str = ""
    """HTTP address of /metrics; empty: it is not served. It tells what each tenant used: keep it from users."""
    scheduler: str = "127.0.0.1:7001"
    """Addresses of all schedulers, with commas between. The first that is up is asked; all of them in the same order in
    every router, so that one scheduler knows of all waits."""
    etcd: str = "127.0.0.1:2379"
    """Addresses of etcd, with commas between."""
    auth: Literal["none", "keys"] = "none"
    """With "keys" a request needs a tenant's API key; with "none" keys are not looked at, and limits of tenants do not hold."""
    name: str = Field(default_factory=_name)
    """Names this instance to the scheduler: unique to the process, since its placements end with it."""
    wake_wait_s: float = Field(default=120.0, gt=0)
    """A request waits so long for a replica at most: longer than a cold start of a large model."""
    answer_wait_s: float = Field(default=600.0, gt=0)
    """A replica may be silent so long at most: what OpenAI's own clients wait."""
    sse_comment_s: float = Field(default=1.0, gt=0)
    """A streaming client gets its first comment after this wait, and then one each time. Shorter wakes keep their headers."""
    body_bytes_max: int = Field(default=2 << 20, gt=0)
    """A long chat fits. Reading one that is all brackets holds the loop up for 50 ms a MiB."""
    bodies_bytes_max: int = Field(default=512 << 20, gt=0)
    """Bodies of all requests together, also while they wait for a climb. Of these, of requests and of connections each
    tenant, and where there are no tenants each address (of IPv6 each /64), has as much as it leaves free for others:
    alone half. Who puts a proxy before the router, so that all come from one address, doubles them. Above it clients get 429."""
    body_wait_s: float = Field(default=30.0, gt=0)
    """A request's head and body must arrive within it."""
    unread_wait_s: float = Field(default=60.0, gt=0)
    """A client that reads nothing of its answer for so long is cut off: it holds a slot."""
    head_bytes_max: int = Field(default=64 << 10, gt=0)
    """Request line and headers together."""
    requests_max: int = Field(default=2048, gt=0)
    """Requests at once, from when their heads came; above it clients get 429."""
    connections_max: int = Field(default=8192, gt=0)
    """Client connections at once by HTTP, shared by addresses, and as many by gRPC, for whoever comes; above it they are
    closed."""
    operator_listen: str = ""
    """gRPC address for operators, where the usage of all tenants is told and no key asked for; keep it from users:
    unix:PATH is for who may open that folder. Empty: there is none."""
    usage_file: Path | None = None
    """Where usage is kept, of this router alone: each of a machine has another in one folder, `usage.db`, `usage-2.db`,
    `usage-3.db`. Any of them tells the sum of all that are there, and holds budgets by it, also of those whose router is
    gone. Without it, usage is gone with the process."""
    drain_s: int = Field(default=5, ge=0)
    """On SIGTERM, answers under way may go on so long."""
