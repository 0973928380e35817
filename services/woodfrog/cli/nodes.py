"""`woodfrog nodes`: which there are, and emptying one, so that its machine can be taken away."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from woodfrog.catalog import Catalog
from woodfrog.cli.cluster import Cluster
from woodfrog.cli.commands import describe
from woodfrog.cli.show import count, size, table
from woodfrog.clients.node_agent import NodeAgentClient
from woodfrog.clock import SystemClock
from woodfrog.coordination import Session
from woodfrog.errors import DeadlineExceeded, FailedPrecondition, NotFound, Unavailable
from woodfrog.model.placement import ClusterView, NodeView

WAIT_S = 60.0
_LOOK_S = 0.2
_KNOWN_S = 10.0


async def nodes_list(cluster: Cluster) -> None:
    view = await describe(cluster)
    print(nodes_table(view))


def nodes_table(view: ClusterView) -> str:
    rows = [
        (
            node.node,
            _state(node, _there(view, node.node)),
            len(_there(view, node.node)),
            f"{size(node.memory_promised_bytes)} of {size(node.memory_bytes)}",
            len(node.gpus) or "-",
            ", ".join(node.tenants) or "everybody's",
        )
        for node in view.nodes
    ]
    return table(("NODE", "STATE", "REPLICAS", "MEMORY PROMISED", "GPUS", "MODELS"), rows)


async def drain(cluster: Cluster, name: str, wait_s: float) -> None:
    """Returns when nothing is left there. Raises NotFound NODE_NOT_FOUND, DeadlineExceeded DRAIN_UNFINISHED, and
    FailedPrecondition DRAIN_ENDED when somebody undrains it meanwhile.
    """
    async with _agent(cluster, name) as agent:
        await agent.drain(draining=True)
    try:
        await _emptied(cluster, name, wait_s)
    except asyncio.CancelledError:  # Ctrl-C
        told = f"{name} drains on; woodfrog nodes list shows when it is done, woodfrog nodes undrain {name} ends it"
        print(told, file=sys.stderr)
        raise


async def _emptied(cluster: Cluster, name: str, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    said, heard = "", False
    while True:
        try:
            view = await describe(cluster)
        except Unavailable:  # a scheduler that begins anew
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(_LOOK_S)
            continue
        node = next((node for node in view.nodes if node.node == name and node.draining), None)
        if heard and any(each.node == name and not each.draining for each in view.nodes):
            raise FailedPrecondition(
                "DRAIN_ENDED", f"the drain of {name} was ended: somebody undrained it meanwhile"
            )
        heard = heard or node is not None
        left = left_there(view, node) if node is not None else "the scheduler has yet to hear of it"
        if not left:
            print(f"{name} is empty and takes nothing new; woodfrog nodes undrain {name} ends that")
            return
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                "DRAIN_UNFINISHED",
                f"{name} takes nothing new, but is not empty after {wait_s:g} s: {left}; the drain "
                "goes on, woodfrog nodes list shows when it is done",
            )
        if left != said:
            print(f"{name} drains: {left}", flush=True)
            said = left
        await asyncio.sleep(_LOOK_S)


async def undrain(cluster: Cluster, name: str) -> None:
    """Returns when the scheduler knows. Raises NotFound NODE_NOT_FOUND, DeadlineExceeded NOT_KNOWN_YET."""
    async with _agent(cluster, name) as agent:
        await agent.drain(draining=False)
    deadline = time.monotonic() + _KNOWN_S
    while not any(n.node == name and not n.draining for n in (await describe(cluster)).nodes):
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                "NOT_KNOWN_YET",
                f"{name} takes replicas again, but the scheduler has not heard of it after "
                f"{_KNOWN_S:.0f} s; see woodfrog nodes list",
            )
        await asyncio.sleep(_LOOK_S)
    print(f"{name} takes replicas again")


def left_there(view: ClusterView, node: NodeView) -> str:
    """What keeps a node from being empty, for people; nothing when it is."""
    told = []
    if node.moving:
        told.append(f"the bytes of {count(node.moving, 'model')} are on their way to other nodes")
    told += [
        f"{replica} of {model} is {state}" + (f" ({active} active)" if active else "")
        for model, replica, state, active in _there(view, node.node)
    ]
    others = [each for each in view.nodes if each.node != node.node and not each.draining]
    if told and not others:
        told.append("no other node takes replicas")
    return "; ".join(told)


def _there(view: ClusterView, node: str) -> list[tuple[str, str, str, int]]:
    """Model, replica, its state and its requests, of each there."""
    return [
        (model.model, replica.replica_id, replica.state.value, replica.active)
        for model in view.models
        for replica in model.replicas
        if replica.node == node
    ]


def _state(node: NodeView, there: list[tuple[str, str, str, int]]) -> str:
    if not node.draining:
        return "takes replicas"
    return "draining" if there or node.moving else "drained"


@asynccontextmanager
async def _agent(cluster: Cluster, name: str) -> AsyncIterator[NodeAgentClient]:
    """Where the catalog says that it is. Raises NotFound."""
    async with Session([cluster.address("etcd")], SystemClock()) as session:
        records = await Catalog(session).list_nodes()
    found = [record for record in records if record.name == name]
    if not found:
        there = ", ".join(sorted(record.name for record in records)) or "none"
        raise NotFound(
            "NODE_NOT_FOUND", f"no node {name!r} is registered; there is: {there}", node=name
        )
    async with NodeAgentClient(found[0].address) as agent:
        yield agent
