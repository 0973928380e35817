"""Two schedulers as processes, with a real etcd, over real gRPC, between simulated node agents and the router's own parts."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest_asyncio
from tests.capabilities import need
from tests.service.etcd import EtcdServer
from tests.service.processes import ServiceProcess, free_addresses
from tests.service.test_scheduler import GIB, WAIT_S, Bench, active, rung_of, spec

from woodfrog.clients.scheduler import SchedulerClient
from woodfrog.clock import SystemClock
from woodfrog.coordination import Session
from woodfrog.model.placement import ClusterView, WhatIf
from woodfrog.model.rung import Rung
from woodfrog.router.replicas import ReplicaTable
from woodfrog.router.schedulers import Schedulers
from woodfrog.router.slots import Slot, Slots

pytestmark = need("etcd")


class Pair(Bench):
    """The first is `process` and `client`, the second `other` and `other_client`."""

    other: ServiceProcess
    other_client: SchedulerClient

    async def start_both(self, folder: Path, **env: str) -> None:
        """The first leads: it is elected before the second starts."""
        await self.start(**env)
        async with asyncio.timeout(WAIT_S):
            while not said(self.process, "leadership won"):
                await asyncio.sleep(0.02)
        (address,) = free_addresses(1)
        folder.mkdir()
        env = self.env | env | {"WOODFROG_SCHEDULER_LISTEN": address}
        enter = self._stack.enter_async_context
        self.other = await enter(ServiceProcess("woodfrog.scheduler", address, env, folder))
        self.other_client = await enter(SchedulerClient(address, "router-2"))

    @asynccontextmanager
    async def slots(self) -> AsyncIterator[Slots]:
        """Of a router that knows both."""
        table, addresses = ReplicaTable(), (self.process.address, self.other.address)
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            links = {each: await enter(SchedulerClient(each, "router-1")) for each in addresses}
            schedulers = Schedulers(table, links, lambda _: None, lambda _: None, SystemClock())
            running = asyncio.create_task(schedulers.run())
            try:
                yield Slots(table, schedulers, SystemClock())
            finally:
                running.cancel()
                await asyncio.wait((running,))

    async def both(self, condition: Callable[[ClusterView], bool]) -> None:
        """Until both see it so."""
        async with asyncio.timeout(WAIT_S):
            for client in (self.client, self.other_client):
                while not condition(await client.describe()):
                    await asyncio.sleep(0.02)


@pytest_asyncio.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with (
        EtcdServer(tmp_path / "etcd") as etcd,
        Session([etcd.endpoint]) as session,
        AsyncExitStack() as stack,
    ):
        yield Pair(tmp_path, etcd, session, stack)


def said(scheduler: ServiceProcess, message: str) -> int:
    lines = scheduler.log_path.read_text().splitlines() if scheduler.log_path.exists() else []
    return sum(json.loads(line)["message"] == message for line in lines)


async def take(slots: Slots, model: str = "frog") -> Slot:
    return await slots.take(model, (), SystemClock().now() + WAIT_S)


async def test_both_know_what_runs_and_neither_parks_it(pair: Pair, tmp_path: Path) -> None:
    await pair.catalog.add_model(spec(park_after_s=0.2))
    agent = await pair.node("a")
    await pair.start_both(tmp_path / "other")
    async with pair.slots() as slots:
        slot = await take(slots)
        await pair.both(lambda view: active(view) == 1)
        await asyncio.sleep(1.0)  # five times the clock of either
        assert agent.descents == []
        slot.end()
        await pair.both(lambda view: rung_of(view, "frog") is Rung.PARKED)
        assert {descent.rung for descent in agent.descents} == {"parked"}
        woken = await take(slots)
        assert (woken.acquired.rung, len(agent.replicas)) == (Rung.PARKED, 1)


async def test_one_killed_in_mid_climb_and_mid_request_fails_nobody(
    pair: Pair, tmp_path: Path
) -> None:
    """Three replicas are allowed; requests that move to the other scheduler wait for the one that climbs."""
    await pair.catalog.add_model(spec(replicas_max=3, park_after_s=0.5))
    await pair.catalog.add_model(spec("toad"))
    agent = await pair.node("a")
    await pair.start_both(tmp_path / "other")
    async with pair.slots() as slots:
        toad = await take(slots, "toad")
        await pair.both(lambda view: active(view) == 1)
        agent.gate.clear()
        taking = [asyncio.create_task(take(slots)) for _ in range(5)]
        await agent.until(lambda agent: len(agent.climbs) == 2)
        await pair.both(lambda view: any(m.model == "frog" and m.replicas for m in view.models))
        pair.process.kill9()
        async with asyncio.timeout(WAIT_S):
            while not await asked(pair.other_client):
                await asyncio.sleep(0.02)
        agent.gate.set()
        taken = await asyncio.gather(*taking)
        assert {slot.replica.replica_id for slot in taken} == {"a-1-2"}
        assert len(agent.climbs) == 2, "nobody began a second climb"
        again = await take(slots, "toad")
        assert again.replica == toad.replica
        for slot in [*taken, toad, again]:
            slot.end()
        async with asyncio.timeout(WAIT_S):
            while active(await pair.other_client.describe()):
                await asyncio.sleep(0.02)


async def asked(client: SchedulerClient) -> bool:
    """Whether it was asked for a frog."""
    models = (await client.describe()).models
    return any(model.model == "frog" and model.idle_s is not None for model in models)


async def test_the_leader_alone_freezes_by_plan_and_the_next_goes_on(
    pair: Pair, tmp_path: Path
) -> None:
    dear = {"WOODFROG_SCHEDULER_PLAN_EVERY_S": "0.5", "WOODFROG_SCHEDULER_MEMORY_PRICE": "1000"}
    await pair.catalog.add_model(spec(park_after_s=0.2))
    agent = await pair.node("a")
    await pair.start_both(tmp_path / "other", **dear)
    async with pair.slots() as slots:
        (await take(slots)).end()
        await agent.until(lambda agent: not agent.replicas)
        async with asyncio.timeout(WAIT_S):
            while slots.table.ids:
                await asyncio.sleep(0.02)
        assert (said(pair.other, "leadership won"), said(pair.process, "leadership won")) == (0, 1)
        first = {order.term for order in agent.descents}
        pair.process.kill9()
        (await take(slots)).end()
        await agent.until(lambda agent: not agent.replicas)
        assert said(pair.other, "leadership won") == 1
        second = {order.term for order in agent.descents} - first
        assert max(second) > max(first) > 0, "what is planned says whose term it is"


async def test_any_may_be_asked_for_a_plan_and_for_metrics(pair: Pair, tmp_path: Path) -> None:
    (metrics,) = free_addresses(1)
    await pair.catalog.add_model(spec(park_after_s=0.2, memory_bytes=GIB))
    await pair.node("a")
    await pair.start_both(tmp_path / "other")
    async with pair.slots() as slots:
        (await take(slots)).end()
        await pair.both(lambda view: rung_of(view, "frog") is Rung.PARKED)
        shown = [
            await client.plan(WhatIf(memory_price=price), timeout_s=WAIT_S)
            for client in (pair.client, pair.other_client)
            for price in (0.0, 1000.0)
        ]
        rungs = [[(each.model, each.rung) for each in plan.models] for plan in shown]
        assert rungs == 2 * [[("frog", Rung.PARKED)], [("frog", Rung.FROZEN)]]
        assert pair.process.stop() == 0
        env = pair.env | {"WOODFROG_SCHEDULER_METRICS_LISTEN": metrics}
        async with ServiceProcess("woodfrog.scheduler", pair.process.address, env, tmp_path) as one:
            await pair.until(lambda view: bool(view.nodes))
            await pair.client.acquire("frog", timeout_s=WAIT_S)
            text = (await asyncio.to_thread(scrape, metrics)).decode()
            assert 'woodfrog_scheduler_climbs_total{outcome="finished",rung=' in text
            assert one.stop() == 0


def scrape(address: str) -> bytes:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        return bytes(answer.read())
