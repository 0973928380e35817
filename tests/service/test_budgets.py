"""Budgets of what models hold: told by nodes over gRPC, held at a router."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import openai
import pytest
from tests.service.router_bench import Bench, spec

from woodfrog import rpc
from woodfrog.api.metering.v1 import usages_pb2_grpc
from woodfrog.catalog import CatalogSnapshot, NodeGone, NodePut, NodeRecord, TenantPut
from woodfrog.clients.usages import SERVICE, UsagesServicer
from woodfrog.clock import FakeClock, SystemClock
from woodfrog.metering import GIB_H, HOUR_S, Ledger, Row, Usage, month_of
from woodfrog.model.tenant import Tenant, new_key
from woodfrog.router import held as module
from woodfrog.router.held import Held

HOUR = month_of(1_790_000_000.0).start + 50
KEY, KEPT = new_key("acme", "", 0.0)


@asynccontextmanager
async def node(name: str, *rows: Row) -> AsyncIterator[tuple[NodeRecord, Ledger]]:
    """A server of a node's usage, its record and what it serves."""
    ledger = Ledger(None)
    ledger.add(rows)
    async with rpc.Server("127.0.0.1:0") as server:
        usages_pb2_grpc.add_UsagesServicer_to_server(UsagesServicer(ledger), server.grpc)  # type: ignore[no-untyped-call]
        await server.start(SERVICE)
        yield NodeRecord(name, f"127.0.0.1:{server.port}"), ledger
    ledger.close()


def held(hour: int, gpu_s: float, tenant: str = "acme", model: str = "m") -> Row:
    return Row(hour, tenant, model, Usage(gpu_s=gpu_s, host_byte_s=gpu_s * GIB_H))


async def again_and_again(ask: Callable[[], Awaitable[None]]) -> None:
    for _ in range(1000):
        await ask()


async def test_each_hour_of_each_node_counts_once_also_when_it_went() -> None:
    clock, ledger = FakeClock(wall=HOUR * HOUR_S + 60.0), Ledger(None)
    ledger.add(
        [
            Row(HOUR - 9, "acme", "shared", Usage(slot_s=1.0)),
            Row(HOUR - 9, "globex", "shared", Usage(slot_s=3.0)),
        ]
    )
    before = held(month_of(clock.wall()).start - 1, 1000.0)
    async with AsyncExitStack() as stack:
        one = node("one", before, held(HOUR - 49, 1.0), held(HOUR - 9, 8.0, "", "shared"))
        record, told = await stack.enter_async_context(one)
        other, _ = await stack.enter_async_context(node("two", held(HOUR - 1, 0.5)))
        asked = Held(ledger, clock)
        asked.hear(CatalogSnapshot((), (), (record,)))
        asked.hear(NodePut(other))
        await asked.ask()
        assert asked.of("acme").gpu_s == 1.0 + 2.0 + 0.5
        assert asked.of("acme").host_byte_s == 3.5 * GIB_H
        assert asked.of("globex").gpu_s == 6.0
        told.add([held(HOUR, 4.0), held(HOUR - 1, 1.0)])
        for _ in range(2):
            await asked.ask()
            assert asked.of("acme").gpu_s == 8.5
        asked.hear(NodeGone(other))
        clock.advance(3 * HOUR_S)
        for _ in range(2):
            await asked.ask()
            assert asked.of("acme").gpu_s == 8.5
    told_late = asked.of("acme")
    await asked.ask()
    assert asked.of("acme") == told_late, "a node that does not answer counts as it last told"
    clock.advance(31 * 24 * HOUR_S)
    await asked.ask()
    assert asked.of("acme") == Usage(), "another month began"


async def test_a_restart_asks_for_the_whole_month_again() -> None:
    clock = FakeClock(wall=HOUR * HOUR_S)
    rows = [held(hour, 1.0) for hour in range(HOUR - 50, HOUR + 1)]
    async with node("one", *rows) as (record, _):
        for _ in range(2):
            asked = Held(Ledger(None), clock)
            asked.hear(NodePut(record))
            await asked.ask()
            assert asked.of("acme").gpu_s == 51.0


@pytest.mark.parametrize("limit", ["gpu_seconds_per_month", "host_gib_hours_per_month"])
async def test_who_has_used_it_up_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.01)
    async with Bench.open(tmp_path, auth="keys") as bench, node("one") as (record, told):
        poor = Tenant("acme", **{limit: 5})
        told_all = CatalogSnapshot((spec("m"),), (), (record,), (poor,), (KEPT,))
        bench.catalog.events.put_nowait(told_all)
        await bench.until(lambda: bench.catalog.events.empty())
        await bench.ready("a")
        client = bench.client.with_options(api_key=KEY)

        async def ask() -> None:
            await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hi"}]
            )

        await ask()
        now_hour = int(SystemClock().wall() // HOUR_S)
        told.add([held(now_hour, 5.0)])
        with pytest.raises(openai.RateLimitError, match="of this month") as refused:
            await again_and_again(ask)
        assert refused.value.code == "insufficient_quota"
        assert refused.value.response.headers["x-should-retry"] == "false"
        bench.catalog.events.put_nowait(TenantPut(Tenant("acme", **{limit: 50})))
        await bench.until(lambda: bench.catalog.events.empty())
        await ask()
