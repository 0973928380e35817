"""Replicas of a running cluster, asked past the router and looked at from outside."""

import asyncio
from pathlib import Path
from typing import Any

from tests.cluster.conftest import Running
from woodfrog.cli import models
from woodfrog.clients.node_agent import NodeAgentClient
from woodfrog.model.node import Replica
from woodfrog.replica.client import ControlClient


async def restore_twice(running: Running, name: str) -> tuple[Replica, Replica]:
    """Two climbs of the same snapshot at the same time, asked of the node itself."""
    async with models.connect(running.cluster) as cell:
        spec = await cell.catalog.get_model(name)
        (pointer,) = await cell.catalog.list_snapshots(name)
    async with NodeAgentClient(running.cluster.address("node_agent")) as agent:
        climbed = await asyncio.gather(
            *(
                agent.climb(spec, pointer, None, request_id=f"{name}-clone-{i}", timeout_s=60)
                for i in "ab"
            )
        )
    assert [c.from_rung.value for c in climbed] == ["frozen", "frozen"]
    return climbed[0].replica, climbed[1].replica


async def control(replica: Replica, verb: str) -> dict[str, Any]:
    path = Path(replica.socket_path).with_name("control.sock")
    return await ControlClient(path).call(verb, 30)


def mappings(pid: int) -> dict[str, dict[str, int]]:
    """Per file: the sums of its fields in smaps, bytes."""
    found: dict[str, dict[str, int]] = {}
    current: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        head = line.split(maxsplit=5)
        if "-" in head[0] and ":" not in head[0]:
            current = found.setdefault(head[5] if len(head) > 5 else "", {})
        elif line.endswith(" kB"):
            name, _, value = line.partition(":")
            current[name] = current.get(name, 0) + int(value.split()[0]) * 1024
    return found
