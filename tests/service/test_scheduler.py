"""The scheduler as a process, with a real etcd, over real gRPC, between simulated node agents and routers of the test's own."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from tests.capabilities import need
from tests.memory.simulated_node_agent import PRINT, SimulatedNodeAgent
from tests.service.etcd import EtcdServer
from tests.service.processes import ServiceProcess, free_addresses

from woodfrog.api.scheduler.v1 import placements_pb2, placements_pb2_grpc
from woodfrog.catalog import Catalog, entries
from woodfrog.cli import trace_file
from woodfrog.clients.scheduler import SchedulerClient
from woodfrog.clock import SystemClock
from woodfrog.coordination import Leader, Session, leaders
from woodfrog.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    WoodfrogError,
)
from woodfrog.model import digest
from woodfrog.model.node import ReplicaState, Resident
from woodfrog.model.placement import (
    ClusterView,
    ReadyReplica,
    ReplicaUsage,
    RouterReport,
    TenantUse,
    WhatIf,
)
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import Fingerprint, SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler.board import Limits
from woodfrog.scheduler.loop import SchedulerLoop, Waits
from woodfrog.scheduler.state import SchedulerState
from woodfrog.telemetry import names

pytestmark = need("etcd")
WAIT_S = 60.0
GIB = 1 << 30


def spec(name: str = "frog", **changes: object) -> ModelSpec:
    values = {"memory_bytes": 4 * GIB, "slots": 16} | changes
    return ModelSpec(name, digest.of_bytes(name.encode()), 270 << 20, **values)  # type: ignore[arg-type]


def pointer(model: ModelSpec) -> SnapshotPointer:
    fingerprint = Fingerprint(PRINT, {"engine": "simulated"}, model.weights)
    return SnapshotPointer(model.name, digest.of_bytes(b"snapshot"), fingerprint, 280 << 20, 1.0)


class Router:
    """What a router knows from its stream, and says on it."""

    def __init__(self) -> None:
        self.ready: dict[str, ReadyReplica] = {}
        self.reports: asyncio.Queue[list[ReplicaUsage]] = asyncio.Queue()
        self.changed = asyncio.Condition()

    async def run(self, client: SchedulerClient) -> None:
        """Until cancelled; a broken stream is taken up again."""
        while True:
            try:
                async with aclosing(client.track(self._reports())) as updates:
                    async for update in updates:
                        if update.full:
                            self.ready.clear()
                        for name in update.gone:
                            self.ready.pop(name, None)
                        self.ready.update({each.replica_id: each for each in update.ready})
                        async with self.changed:
                            self.changed.notify_all()
            except Unavailable:
                await asyncio.sleep(0.05)

    async def until(self, condition: Callable[[dict[str, ReadyReplica]], bool]) -> None:
        async with asyncio.timeout(WAIT_S), self.changed:
            await self.changed.wait_for(lambda: condition(self.ready))

    async def _reports(self) -> AsyncIterator[RouterReport]:
        while True:
            yield RouterReport(tuple(await self.reports.get()))


class Bench:
    def __init__(self, folder: Path, etcd: EtcdServer, session: Session, stack: AsyncExitStack):
        (address,) = free_addresses(1)
        env = {
            "WOODFROG_SCHEDULER_LISTEN": address,
            "WOODFROG_SCHEDULER_ETCD": etcd.endpoint,
            "WOODFROG_SCHEDULER_NODE_PATIENCE_S": "1.0",
            "WOODFROG_SCHEDULER_LEADER_TTL_S": "2",
        }
        self.etcd = etcd
        self.session = session
        self.catalog = Catalog(session)
        self.env = env
        self.process = ServiceProcess("woodfrog.scheduler", address, env, folder)
        self.client = SchedulerClient(address, "router-1")
        self._stack = stack

    async def node(
        self, name: str, memory_bytes: int = 16 * GIB, gpu_bytes: int = 0
    ) -> SimulatedNodeAgent:
        agent = SimulatedNodeAgent(name, self.catalog, memory_bytes, gpu_bytes)
        return await self._stack.enter_async_context(agent)

    async def start(self, **env: str) -> None:
        """Call when nodes and models are there, so that the scheduler finds them."""
        self.process.env |= env
        await self._stack.enter_async_context(self.process)
        await self._stack.enter_async_context(self.client)

    async def until(self, condition: Callable[[ClusterView], bool]) -> None:
        """Also across a restart of the scheduler."""
        async with asyncio.timeout(WAIT_S):
            while True:
                with suppress(Unavailable):
                    if condition(await self.client.describe()):
                        return
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def router(self) -> AsyncIterator[Router]:
        router = Router()
        running = asyncio.create_task(router.run(self.client))
        try:
            yield router
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with (
        EtcdServer(tmp_path / "etcd") as etcd,
        Session([etcd.endpoint]) as session,
        AsyncExitStack() as stack,
    ):
        yield Bench(tmp_path, etcd, session, stack)


def active(view: ClusterView) -> int:
    return sum(replica.active for model in view.models for replica in model.replicas)


def rung_of(view: ClusterView, name: str) -> Rung:
    return next(model.rung for model in view.models if model.model == name)


async def test_routers_are_told_what_others_run_and_what_tenants_asked_of_them(
    bench: Bench,
) -> None:
    await bench.start()
    report = RouterReport((ReplicaUsage("f1", 2, 2),), (TenantUse("acme", 2, 3, 40),))

    async def reports(first: RouterReport) -> AsyncIterator[RouterReport]:
        yield first
        await asyncio.Event().wait()

    other = SchedulerClient(bench.process.address, "router-2")
    async with other, asyncio.timeout(WAIT_S):
        async with aclosing(other.track(reports(RouterReport()))) as updates:
            assert (await anext(updates)).full
            async with aclosing(bench.client.track(reports(report))) as own:
                assert (await anext(own)).elsewhere == ()
                told = await anext(updates)
                assert told.elsewhere == (ReplicaUsage("f1", 2),)
                assert told.tenants == report.tenants
            told = await anext(updates)
            assert told.elsewhere == (ReplicaUsage("f1", 0),), "its stream ended, and all with it"
            assert told.tenants == (TenantUse("acme", 0),)


async def test_twenty_requests_one_climb_and_a_view_of_it(bench: Bench) -> None:
    await bench.catalog.add_model(spec(slots=32))
    agents = [await bench.node(name) for name in "abc"]
    for agent in agents:
        agent.gate.clear()
    await bench.start()
    acquires = [
        asyncio.create_task(bench.client.acquire("frog", timeout_s=WAIT_S)) for _ in range(20)
    ]
    await agents[0].until(lambda agent: len(agent.climbs) == 1)
    for agent in agents:
        agent.gate.set()
    acquired = await asyncio.gather(*acquires)
    assert sum(len(agent.climbs) for agent in agents) == 1
    assert {each.replica.replica_id for each in acquired} == {"a-1-1"}
    assert len({each.placement_id for each in acquired}) == 20
    waited = {each.rung for each in acquired if each.climb_ms > 0}  # the others came just after it
    assert waited == {Rung.ABSENT}
    later = await bench.client.acquire("frog", timeout_s=WAIT_S)
    assert (later.rung, later.climb_ms) == (Rung.SERVING, 0)
    view = await bench.client.describe()
    assert [(node.node, node.memory_promised_bytes) for node in view.nodes] == [
        ("a", 4 * GIB),
        ("b", 0),
        ("c", 0),
    ]
    (model,) = view.models
    assert (model.rung, model.replicas[0].state) == (Rung.SERVING, ReplicaState.SERVING)
    assert active(view) == 21
    for each in [*acquired, later, later]:
        await bench.client.release(each.placement_id)
    assert active(await bench.client.describe()) == 0


async def test_a_refusal_leads_to_the_second_choice_and_then_to_none(bench: Bench) -> None:
    await bench.catalog.add_model(spec(replicas_max=3, slots=1))
    agents = [await bench.node(name, 4 * GIB) for name in "ab"]
    agents[0].hidden_bytes = GIB
    await bench.start(WOODFROG_SCHEDULER_ROOM_S="0.5")
    acquired = await bench.client.acquire("frog", timeout_s=WAIT_S)
    assert acquired.replica.node == "b"
    assert [len(agent.climbs) for agent in agents] == [1, 1]
    await bench.catalog.add_model(spec("toad", replicas_max=3, slots=1))
    await bench.until(lambda view: len(view.models) == 2)
    with pytest.raises(ResourceExhausted) as refused:
        await bench.client.acquire("toad", timeout_s=WAIT_S)
    assert refused.value.reason == "NO_CAPACITY"
    assert refused.value.retry_after_s == 1.0
    _, toad = (await bench.client.describe()).models
    assert toad.trouble == refused.value.message
    assert toad.trouble_age_s is not None
    later = asyncio.create_task(bench.client.acquire("frog", timeout_s=WAIT_S))
    await asyncio.sleep(0.2)
    assert not later.done()  # it waits for the slot of the one that serves
    await bench.client.release(acquired.placement_id)
    assert (await later).replica == acquired.replica
    with pytest.raises(NotFound) as unknown:
        await bench.client.acquire("newt", timeout_s=WAIT_S)
    assert unknown.value.reason == "MODEL_NOT_FOUND"


async def test_a_node_killed_during_a_climb_is_replaced_and_may_come_back(bench: Bench) -> None:
    await bench.catalog.add_model(spec(replicas_max=2, slots=1))
    first, second = await bench.node("a"), await bench.node("b")
    first.gate.clear()
    await bench.start()
    waiting = asyncio.create_task(bench.client.acquire("frog", timeout_s=WAIT_S))
    await first.until(lambda agent: len(agent.climbs) == 1)
    await first.kill()
    acquired = await waiting
    assert acquired.replica.node == "b"
    await bench.until(lambda view: [node.node for node in view.nodes] == ["b"])
    await second.kill()
    waiting = asyncio.create_task(bench.client.acquire("frog", timeout_s=WAIT_S))
    first.gate.set()
    await bench.until(lambda view: not view.nodes)
    await first.start()
    assert (await waiting).replica.replica_id.startswith("a-2-")


@pytest.mark.parametrize("for_long", [False, True])
async def test_a_node_whose_lease_ended_gets_nothing_new_though_its_stream_is_up(
    bench: Bench, for_long: bool
) -> None:
    names = [f"m{number}" for number in range(4)]
    for name in names:
        await bench.catalog.add_model(spec(name, memory_bytes=GIB))
    first, key = await bench.node("a"), "/woodfrog/nodes/a"
    await bench.start()
    there = await bench.client.acquire("m0", timeout_s=WAIT_S)
    registered = await bench.session.get(key)
    assert registered is not None
    await bench.session.delete(key)
    await asyncio.sleep(0.5)  # the scheduler hears of it from etcd
    async with bench.router() as router:
        with pytest.raises(WoodfrogError):  # there may be no node at all yet
            await bench.client.acquire("m1", timeout_s=0.4)
        assert len(first.climbs) == 1
        second = await bench.node("b")
        assert (await bench.client.acquire("m1", timeout_s=WAIT_S)).replica.node == "b"
        assert (await bench.client.acquire("m2", timeout_s=WAIT_S)).replica.node == "b"
        if for_long:  # longer than the scheduler is patient
            await bench.until(lambda view: [node.node for node in view.nodes] == ["b"])
            await router.until(lambda ready: all(one.model != "m0" for one in ready.values()))
        await first.end(there.replica.replica_id)  # not heard
        await bench.session.put(key, registered.value)
        await second.kill()
        assert (await bench.client.acquire("m3", timeout_s=WAIT_S)).replica.node == "a"
        assert (await bench.client.acquire("m0", timeout_s=WAIT_S)).replica != there.replica


async def test_a_killed_scheduler_finds_everything_again(bench: Bench) -> None:
    await bench.catalog.add_model(spec())
    agents = [await bench.node(name) for name in "abc"]
    await bench.start()
    async with bench.router() as router:
        acquired = await bench.client.acquire("frog", timeout_s=WAIT_S)
        name = acquired.replica.replica_id
        await router.until(lambda ready: name in ready)
        await router.reports.put([ReplicaUsage(name, 1, 1)])
        bench.process.kill9()
        await bench.process.start()
        await bench.until(lambda _: True)
        again = await bench.client.acquire("frog", timeout_s=WAIT_S)
        assert (again.replica, again.rung) == (acquired.replica, Rung.SERVING)
        assert again.placement_id != acquired.placement_id
        await bench.client.release(acquired.placement_id)
        assert active(await bench.client.describe()) == 1
        await router.until(lambda ready: name in ready)
    assert sum(len(agent.climbs) for agent in agents) == 1
    assert bench.process.stop() == 0


async def test_two_models_take_turns_on_one_gpu(bench: Bench) -> None:
    """Who rests there yields; who serves is parked once it is idle; nobody's process ends."""
    for name in ("frog", "toad"):
        rests = {"park_after_s": 0.2 if name == "frog" else 50.0, "freeze_after_s": 60.0}
        model = spec(name, gpu_bytes=5 * GIB, **rests)
        await bench.catalog.add_model(replace(model, weights_bytes=3 * GIB))
    await bench.node("a")
    agent = await bench.node("b", gpu_bytes=8 * GIB)
    for name in ("frog", "toad"):
        lies = Resident(spec(name).weights, 3 * GIB, 3 * GIB, 3 * GIB, complete=True)
        agent.residents[lies.manifest] = lies
    await bench.start()
    frog = await bench.client.acquire("frog", timeout_s=WAIT_S)
    assert frog.replica.node == "b"
    taken = [(), (8 * GIB,)]
    await bench.until(
        lambda view: [tuple(g.promised_bytes for g in node.gpus) for node in view.nodes] == taken
    )
    await bench.client.release(frog.placement_id)
    await bench.until(lambda view: rung_of(view, "frog") is Rung.HOT)
    thawed = await bench.client.acquire("frog", timeout_s=WAIT_S)
    assert (thawed.rung, thawed.replica) == (Rung.HOT, frog.replica)
    await bench.client.release(thawed.placement_id)
    await bench.until(lambda view: rung_of(view, "frog") is Rung.HOT)
    toad = await bench.client.acquire("toad", timeout_s=WAIT_S)
    await bench.until(lambda view: rung_of(view, "frog") is Rung.PARKED)
    with pytest.raises(DeadlineExceeded):  # nobody is lowered while it serves
        await bench.client.acquire("frog", timeout_s=0.3)
    await bench.client.release(toad.placement_id)
    back = await bench.client.acquire("frog", timeout_s=WAIT_S)
    assert (back.rung, back.replica) == (Rung.PARKED, frog.replica)
    # Whom the agent may lower, in whose order.
    assert [len(climb.yields) for climb in agent.climbs] == [0, 1, 1, 2]
    assert [descent.rung for descent in agent.descents] == ["hot", "hot", "parked"]
    assert len(agent.replicas) == 2


async def test_an_idle_replica_parks_freezes_and_climbs_again(bench: Bench) -> None:
    model = spec(park_after_s=0.2, freeze_after_s=0.8)
    await bench.catalog.add_model(model)
    snapshot = pointer(model)
    agent = await bench.node("a")
    agent.residents[snapshot.manifest] = Resident(snapshot.manifest, 9, 9, 9, complete=True)
    await bench.start()
    async with bench.router() as router:
        acquired = await bench.client.acquire("frog", timeout_s=WAIT_S)
        await bench.catalog.put_snapshot(snapshot)
        await router.until(bool)
        await asyncio.sleep(Limits().routers_s)  # before, the clock lowers nothing
        await bench.client.release(acquired.placement_id)
        await router.until(lambda ready: not ready)
        thawed = await bench.client.acquire("frog", timeout_s=WAIT_S)
        assert (thawed.rung, thawed.replica) == (Rung.PARKED, acquired.replica)
        agent.busy.add(thawed.replica.replica_id)
        await bench.client.release(thawed.placement_id)
        await agent.until(lambda agent: len(agent.descents) == 2)
        await router.until(bool)  # busy: it serves on
        agent.busy.clear()
        await agent.until(lambda agent: not agent.replicas)
        assert [descent.rung for descent in agent.descents][-2:] == ["parked", "frozen"]
    woken = await bench.client.acquire("frog", timeout_s=WAIT_S)
    assert woken.rung is Rung.FROZEN
    assert agent.climbs[-1].snapshot == snapshot.encode()
    told = (await bench.client.describe()).predictions
    assert (
        told.count == 2
    )  # of the thaw and of the restore; the simulated cold start made no snapshot
    assert told.error_p90 > 0


async def test_an_idle_replica_without_a_time_of_its_own_rests_by_the_plan(bench: Bench) -> None:
    await bench.catalog.add_model(spec(park_after_s=0.2))
    agent = await bench.node("a")
    await bench.start(WOODFROG_SCHEDULER_PLAN_EVERY_S="0.5", WOODFROG_SCHEDULER_MEMORY_PRICE="0")
    acquired = await bench.client.acquire("frog", timeout_s=WAIT_S)
    await bench.client.release(acquired.placement_id)
    await bench.until(lambda view: rung_of(view, "frog") is Rung.PARKED)
    shown = await bench.client.plan(WhatIf(), timeout_s=WAIT_S)
    [frog] = shown.models
    assert (frog.model, frog.node, frog.now, frog.rung) == ("frog", "a", "parked", Rung.PARKED)
    assert shown.solver == "linear program"
    dear = await bench.client.plan(WhatIf(memory_price=1000.0), timeout_s=WAIT_S)
    assert dear.models[0].rung is Rung.FROZEN
    assert dear.models[0].why.startswith("not worth its price: parked would save")
    full = await bench.client.plan(WhatIf(memory=0.01), timeout_s=WAIT_S)
    assert full.models[0].rung is Rung.FROZEN
    assert full.models[0].why == "node a has too little memory beside what the plan leaves alone"
    with pytest.raises(InvalidArgument):
        await bench.client.plan(WhatIf(memory=-1.0), timeout_s=WAIT_S)
    assert agent.replicas, "showing a plan moves nothing"


async def test_what_is_not_worth_its_price_is_frozen(bench: Bench) -> None:
    await bench.catalog.add_model(spec(park_after_s=0.2))
    agent = await bench.node("a")
    dear = {"WOODFROG_SCHEDULER_PLAN_EVERY_S": "0.5", "WOODFROG_SCHEDULER_MEMORY_PRICE": "1000"}
    await bench.start(**dear)
    acquired = await bench.client.acquire("frog", timeout_s=WAIT_S)
    await bench.client.release(acquired.placement_id)
    await agent.until(lambda agent: not agent.replicas)


async def test_a_lost_router_leaves_nothing_running(bench: Bench) -> None:
    await bench.catalog.add_model(spec(park_after_s=0.2))
    agent = await bench.node("a")
    await bench.start()
    async with bench.router() as router:
        acquired = await bench.client.acquire("frog", timeout_s=WAIT_S)
        name = acquired.replica.replica_id
        await router.reports.put([ReplicaUsage(name, 2, 2)])
        await bench.until(lambda view: active(view) == 2)
        assert agent.descents == []
    await agent.until(lambda agent: len(agent.descents) == 1)
    assert agent.descents[0].rung == "parked"


async def test_a_replica_that_failed_its_router_is_replaced(bench: Bench) -> None:
    await bench.catalog.add_model(spec())
    agent = await bench.node("a")
    await bench.start()
    first = await bench.client.acquire("frog", timeout_s=WAIT_S)
    name = first.replica.replica_id
    await bench.client.release(first.placement_id, replica_failed=True)
    second = await bench.client.acquire("frog", {name}, timeout_s=WAIT_S)
    assert second.replica.replica_id != name
    await agent.until(lambda agent: name not in agent.replicas)
    await agent.end(second.replica.replica_id)
    await bench.until(lambda view: not view.models[0].replicas)
    third = await bench.client.acquire("frog", timeout_s=WAIT_S)
    assert third.replica.replica_id not in (name, second.replica.replica_id)


async def test_failed_climbs_end_in_a_cold_start_or_in_the_last_reason(bench: Bench) -> None:
    model = spec()
    await bench.catalog.add_model(model)
    await bench.catalog.put_snapshot(pointer(model))
    agent = await bench.node("a")
    broken = Unavailable("CLIMB_FAILED", "the simulated engine broke")
    agent.failures = [broken, broken, broken]
    await bench.start()
    with pytest.raises(Unavailable) as failed:
        await bench.client.acquire("frog", timeout_s=WAIT_S)
    assert failed.value.reason == "CLIMB_FAILED"
    assert "the simulated engine broke" in failed.value.message
    assert [bool(climb.snapshot) for climb in agent.climbs] == [True, False]
    (told,) = (await bench.client.describe()).models
    assert told.trouble == failed.value.message
    assert told.trouble_age_s is not None
    assert 0 <= told.trouble_age_s < WAIT_S
    cold = await bench.client.acquire("frog", timeout_s=WAIT_S)
    assert [bool(climb.snapshot) for climb in agent.climbs[2:]] == [True, False]
    assert cold.rung is Rung.ABSENT
    await agent.end(cold.replica.replica_id)
    await bench.until(lambda view: not view.models[0].replicas)
    assert (await bench.client.describe()).models[0].trouble == ""  # it started since


async def test_a_short_deadline_is_no_trouble_of_the_model(bench: Bench) -> None:
    await bench.catalog.add_model(spec())
    agent = await bench.node("a")
    agent.gate.clear()
    await bench.start()
    with pytest.raises(DeadlineExceeded) as refused:
        await bench.client.acquire("frog", timeout_s=0.2)
    assert refused.value.reason == "ACQUIRE_DEADLINE"
    assert (await bench.client.describe()).models[0].trouble == ""
    agent.gate.set()
    assert (await bench.client.acquire("frog", timeout_s=WAIT_S)).rung is Rung.ABSENT


async def test_who_gives_up_leaves_the_climb_to_the_next(bench: Bench) -> None:
    await bench.catalog.add_model(spec(slots=1))
    agent = await bench.node("a")
    agent.gate.clear()
    await bench.start()
    with pytest.raises(DeadlineExceeded):
        await bench.client.acquire("frog", timeout_s=0.4)
    waiting = asyncio.create_task(bench.client.acquire("frog", timeout_s=WAIT_S))
    await bench.until(lambda view: view.models[0].idle_s is not None)
    leaving = asyncio.create_task(bench.client.acquire("frog", timeout_s=WAIT_S))
    await bench.client.describe()
    leaving.cancel()
    await asyncio.wait((leaving,))
    agent.gate.set()
    acquired = await waiting
    assert len(agent.climbs) == 1
    await bench.client.release(acquired.placement_id)
    await bench.until(lambda view: active(view) == 0)  # nobody got the slot of who left


async def test_room_is_made_for_a_model_that_sleeps(bench: Bench) -> None:
    for name in ("frog", "toad"):
        await bench.catalog.add_model(spec(name))
    agent = await bench.node("a", 4 * GIB)
    await bench.start()
    frog = await bench.client.acquire("frog", timeout_s=WAIT_S)
    waiting = asyncio.create_task(bench.client.acquire("toad", timeout_s=WAIT_S))
    assert await asyncio.wait({waiting}, timeout=0.3) == (set(), {waiting})
    await bench.client.release(frog.placement_id)
    toad = await waiting
    assert list(agent.replicas) == [toad.replica.replica_id]
    await bench.catalog.remove_model("toad")
    await bench.client.release(toad.placement_id)
    await agent.until(lambda agent: not agent.replicas)


async def test_one_trace_from_acquire_over_place_to_climb(bench: Bench, tmp_path: Path) -> None:
    (receiver,) = free_addresses(1)
    path = tmp_path / "traces.jsonl"
    server = await trace_file.serve(path, receiver)
    bench.process = ServiceProcess(
        "woodfrog.scheduler",
        bench.process.address,
        {**bench.env, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{receiver}"},
        tmp_path,
    )
    await bench.catalog.add_model(spec())
    agent = await bench.node("a")
    await bench.start()
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    parent = f"00-{trace_id}-b7ad6b7169203331-01"
    async with grpc.aio.insecure_channel(bench.process.address) as channel:
        stub = placements_pb2_grpc.PlacementsStub(channel)  # type: ignore[no-untyped-call]
        request = placements_pb2.AcquireRequest(model="frog", router="r")
        acquired = await stub.Acquire(request, metadata=(("traceparent", parent),))
    assert await asyncio.to_thread(bench.process.stop) == 0  # what was seen is sent
    await server.stop(0)
    acquire, place, climb = trace_file.read(path, trace_id)
    assert acquire["parent_id"] == "b7ad6b7169203331"
    assert (place["name"], place["parent_id"]) == ("scheduler.place", acquire["span_id"])
    assert climb["name"].endswith("Replicas/Climb")
    assert climb["parent_id"] == place["span_id"]
    assert agent.traceparents == [f"00-{trace_id}-{climb['span_id']}-01"]
    assert acquired.climb_traceparent == f"00-{trace_id}-{place['span_id']}-01"
    told = place["attributes"]
    found = (told[names.NODE], told[names.RUNG], told[names.PREDICTED_MS])
    assert found == ("a", "absent", 5000.0)


async def test_two_schedulers_both_place_and_one_leads(bench: Bench, tmp_path: Path) -> None:
    await bench.catalog.add_model(spec(replicas_max=2))
    await bench.node("a")
    await bench.start()
    (address,) = free_addresses(1)
    folder = tmp_path / "second"
    folder.mkdir()
    env = bench.env | {"WOODFROG_SCHEDULER_LISTEN": address}
    async with (
        aclosing(leaders(bench.session, entries.LEADER)) as seen,
        asyncio.timeout(3 * WAIT_S),
    ):
        first = await _leader(seen)
        async with (
            ServiceProcess("woodfrog.scheduler", address, env, folder) as second,
            SchedulerClient(address, "router-2") as other,
        ):
            for client in (bench.client, other):
                acquired = await client.acquire("frog", timeout_s=WAIT_S)
                assert acquired.replica.model == "frog"
            assert _said(bench.process, "leadership won") == [first.token]
            assert _said(second, "leadership won") == []
            bench.process.kill9()
            after = await _leader(seen)
            assert after.token > first.token
            assert after.value != first.value
            assert (await other.acquire("frog", timeout_s=WAIT_S)).replica.model == "frog"
            assert second.stop() == 0
            assert await anext(seen) is None  # it resigned
            assert _said(second, "leadership ended") == [after.token]


async def test_a_loop_knows_whether_it_leads_and_by_which_token(bench: Bench) -> None:
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        loops = [
            SchedulerLoop(SchedulerState(name, Limits()), SystemClock(), Waits(1, 1, 1), group)
            for name in ("one", "two")
        ]
        for loop, name in zip(loops, ("one", "two"), strict=True):
            assert not loop.leads
            loop.start(bench.catalog, bench.catalog.candidate(name, 60))
        while not any(loop.leads for loop in loops):
            await asyncio.sleep(0.01)
        (leader,) = [loop for loop in loops if loop.leads]
        (other,) = [loop for loop in loops if loop is not leader]
        term = leader.term
        assert term
        assert other.term is None
        item = await bench.session.get(entries.LEADER)
        assert item
        assert item.create_revision == term.token
        leader.end()
        while not other.leads:
            await asyncio.sleep(0.01)
        assert not leader.leads
        other.end()


async def _leader(seen: AsyncIterator[Leader | None]) -> Leader:
    async for leader in seen:
        if leader is not None:
            return leader
    raise AssertionError("the watch ended")


def _said(scheduler: ServiceProcess, message: str) -> list[int]:
    """The tokens in its log, where it said that."""
    lines = [json.loads(line) for line in scheduler.log_path.read_text().splitlines()]
    return [line["token"] for line in lines if line["message"] == message]


async def test_etcd_may_be_away_for_a_while(bench: Bench) -> None:
    await bench.catalog.add_model(spec())
    await bench.node("a")
    await bench.start()
    await bench.until(lambda view: bool(view.nodes))
    bench.etcd.kill9()
    assert (await bench.client.acquire("frog", timeout_s=WAIT_S)).rung is Rung.ABSENT
    await bench.etcd.start()
    await bench.catalog.add_model(spec("toad"))
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await bench.client.acquire("toad", timeout_s=WAIT_S)
                break
            except NotFound:
                await asyncio.sleep(0.05)
