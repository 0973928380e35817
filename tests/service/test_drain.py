"""Draining a node: the scheduler as a process between simulated node agents."""

import json

from tests.capabilities import need
from tests.memory.simulated_node_agent import SimulatedNodeAgent
from tests.service.test_scheduler import WAIT_S, Bench, bench, pointer, spec

from woodfrog.clients import node_agent as convert
from woodfrog.clients.node_agent import NodeAgentClient
from woodfrog.errors import ResourceExhausted
from woodfrog.model.placement import ClusterView, NodeView, ReplicaUsage
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec

__all__ = ["bench"]
pytestmark = need("etcd")


async def drain(bench: Bench, node: str, draining: bool = True) -> None:
    """As the command does: by the address in the catalog."""
    (record,) = [each for each in await bench.catalog.list_nodes() if each.name == node]
    async with NodeAgentClient(record.address) as agent:
        await agent.drain(draining)


def node_of(view: ClusterView, name: str) -> NodeView:
    return next(node for node in view.nodes if node.node == name)


async def serving_on_a(bench: Bench, frog: ModelSpec) -> list[SimulatedNodeAgent]:
    """Nodes a and b; the model has a snapshot, whole on a, and serves there."""
    await bench.catalog.add_model(frog)
    await bench.catalog.put_snapshot(pointer(frog))
    agents = [await bench.node("a")]
    await bench.start()
    acquired = await bench.client.acquire("frog", timeout_s=WAIT_S)
    assert acquired.replica.node == "a"
    await bench.client.release(acquired.placement_id)
    agents.append(await bench.node("b"))
    await bench.until(lambda view: len(view.nodes) == 2)
    return agents


async def test_a_drained_node_s_model_moves_first_and_wakes_elsewhere(bench: Bench) -> None:
    frog = spec()
    a, b = await serving_on_a(bench, frog)
    b.fetch_gate.clear()
    await drain(bench, "a")
    await b.until(lambda agent: len(agent.prefetches) == 1)
    (asked,) = b.prefetches
    assert ModelSpec.decode(asked.spec).name == "frog"
    assert SnapshotPointer.decode(asked.snapshot) == pointer(frog)
    await bench.until(lambda view: node_of(view, "a").draining and node_of(view, "a").moving == 1)
    again = await bench.client.acquire("frog", timeout_s=WAIT_S)
    assert again.replica.node == "a", "it serves on meanwhile"
    await bench.client.release(again.placement_id)
    assert not a.descents
    b.fetch_gate.set()
    await a.until(lambda agent: not agent.replicas)
    assert [request.rung for request in a.descents] == ["frozen"]
    await bench.until(lambda view: node_of(view, "a").moving == 0)
    woken = await bench.client.acquire("frog", timeout_s=WAIT_S)
    assert (woken.replica.node, woken.rung) == ("b", Rung.FROZEN)
    assert len(b.prefetches) == 1


async def test_what_answers_ends_its_requests_while_new_ones_go_elsewhere(bench: Bench) -> None:
    a, b = await serving_on_a(bench, spec(slots=4))
    async with bench.router() as router:
        await router.until(lambda ready: "a-1-1" in ready)
        await router.reports.put([ReplicaUsage("a-1-1", 1, 1)])
        await bench.until(lambda view: sum(r.active for m in view.models for r in m.replicas) == 1)
        await drain(bench, "a")
        await router.until(lambda ready: "a-1-1" not in ready)
        acquired = await bench.client.acquire("frog", timeout_s=WAIT_S)
        assert acquired.replica.node == "b"
        assert not a.descents, "a request runs there"
        await router.reports.put([ReplicaUsage("a-1-1", 0)])
        await a.until(lambda agent: not agent.replicas)
    assert len(b.prefetches) == 1


async def test_it_is_lowered_all_the_same_when_its_bytes_cannot_go_anywhere(bench: Bench) -> None:
    a, b = await serving_on_a(bench, spec())
    c = await bench.node("c")
    await bench.until(lambda view: len(view.nodes) == 3)
    full = ResourceExhausted("CACHE_FULL", "the cache is full; unpin trees")
    b.fetch_failures, c.fetch_failures = [full], [full]
    await drain(bench, "a")
    await a.until(lambda agent: not agent.replicas)
    assert (len(b.prefetches), len(c.prefetches)) == (1, 1)
    logged = [json.loads(line) for line in bench.process.log_path.read_text().splitlines()]
    failed = [line for line in logged if line["message"] == "model not prefetched"]
    assert sorted(line["node"] for line in failed) == ["b", "c"]
    assert {(line["model"], line["error"]) for line in failed} == {("frog", full.message)}


async def test_a_drain_outlives_the_scheduler_and_ends_by_undraining(bench: Bench) -> None:
    a, b = await serving_on_a(bench, spec())
    b.fetch_gate.clear()
    await drain(bench, "a")
    await b.until(lambda agent: len(agent.prefetches) == 1)
    bench.process.kill9()
    await bench.process.start()
    await b.until(lambda agent: len(agent.prefetches) == 2)  # twice is harmless
    await drain(bench, "a", draining=False)
    await bench.until(lambda view: not node_of(view, "a").draining)
    b.fetch_gate.set()
    await b.until(lambda agent: len(agent.residents) == 2)
    await bench.until(lambda view: node_of(view, "a").moving == 0)
    acquired = await bench.client.acquire("frog", timeout_s=WAIT_S)
    assert acquired.replica.node == "a"
    assert not a.descents


async def test_a_refusal_sends_the_climb_elsewhere_and_the_stream_has_the_last_word(
    bench: Bench,
) -> None:
    await bench.catalog.add_model(spec())
    a, b = [await bench.node(name) for name in "ab"]
    await bench.start()
    await bench.until(lambda view: len(view.nodes) == 2)
    a.refusals = [convert.node_full(a.facts, "NODE_DRAINING", "it drains")]  # that is over now
    acquired = await bench.client.acquire("frog", timeout_s=WAIT_S)
    assert acquired.replica.node == "b"
    assert (len(a.climbs), len(b.climbs)) == (1, 1)
    await bench.until(lambda view: len(view.nodes) == 2 and not node_of(view, "a").draining)
