"""A router beside ledgers of other routers of its machine: it tells their sum, and holds budgets by it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from tests.service.router_bench import Bench, spec
from tests.service.test_budgets import again_and_again, held, node

from woodfrog.api.metering.v1 import usages_pb2, usages_pb2_grpc
from woodfrog.catalog import CatalogSnapshot, NodeRecord
from woodfrog.clients.usages import UsagesClient
from woodfrog.clock import FakeClock, SystemClock
from woodfrog.errors import Unavailable
from woodfrog.metering import HOUR_S, Ledger, Ledgers, Row, Usage, month_of
from woodfrog.model.tenant import Tenant, new_key
from woodfrog.router import budgets as budgets_module
from woodfrog.router import held as held_module
from woodfrog.router.held import Held

KEY, KEPT = new_key("acme", "", 0.0)


def now_hour() -> int:
    return int(SystemClock().wall() // HOUR_S)


@pytest.fixture
def sibling(tmp_path: Path) -> Iterator[Ledger]:
    """Of a second router."""
    with closing(Ledger(tmp_path / "usage-2.db")) as ledger:
        yield ledger


@pytest.fixture
async def bench(
    tmp_path: Path, sibling: Ledger, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    monkeypatch.setattr(held_module, "EVERY_S", 0.01)
    monkeypatch.setattr(budgets_module, "_RETRY_S", 0.01)
    options: Any = {"auth": "keys", "operator_listen": f"unix:{tmp_path}/operators.sock"}
    async with Bench.open(tmp_path, usage_file=tmp_path / "usage.db", **options) as bench:
        await bench.ready("a")
        yield bench


async def known(bench: Bench, tenant: Tenant, *nodes: NodeRecord) -> openai.AsyncOpenAI:
    """A client of that tenant, once the router knows it."""
    bench.catalog.events.put_nowait(CatalogSnapshot((spec("m"),), (), nodes, (tenant,), (KEPT,)))
    await bench.until(lambda: bench.catalog.events.empty())
    return bench.client.with_options(api_key=KEY)


async def ask(client: openai.AsyncOpenAI) -> None:
    message: Any = {"role": "user", "content": "hi"}
    await client.chat.completions.create(model="m", messages=[message])


async def test_it_tells_the_sum_of_all_ledgers(
    bench: Bench, sibling: Ledger, tmp_path: Path
) -> None:
    client = await known(bench, Tenant("acme"))
    await ask(client)
    others = Usage(requests=6, completion_tokens=100)
    with closing(Ledger(tmp_path / "usage-3.db")) as gone:
        gone.add([Row(now_hour(), tenant, "m", others) for tenant in ("acme", "globex")])
    sibling.add([Row(now_hour(), "acme", "m", others)])
    async with UsagesClient(f"unix:{tmp_path}/operators.sock") as operators:
        found = {row.tenant: row.usage for row in await operators.list(0, 1 << 40)}
        assert found["globex"] == others
        assert (found["acme"].requests, found["acme"].completion_tokens) == (13, 208)
        async with grpc.aio.insecure_channel(bench.grpc) as channel:
            stub: Any = usages_pb2_grpc.UsagesStub(channel)  # type: ignore[no-untyped-call]
            metadata = [("authorization", f"Bearer {KEY}")]
            pages = [page async for page in stub.List(usages_pb2.ListRequest(), metadata=metadata)]
        own = [(each.tenant, each.requests) for page in pages for each in page.usages]
        assert own == [("acme", 13)]
        (tmp_path / "usage-4.db").write_bytes(b"frog" * 2000)
        with pytest.raises(Unavailable, match=r"usage-4\.db cannot be read"):
            await operators.list(0, 1 << 40)


async def test_tokens_that_others_told_use_a_budget_up(bench: Bench, sibling: Ledger) -> None:
    month = month_of(SystemClock().wall())
    spent = Usage(prompt_tokens=60, completion_tokens=39)
    sibling.add([Row(month.start, "acme", "m", spent), Row(month.start - 1, "acme", "m", spent)])
    client = await known(bench, Tenant("acme", tokens_per_month=100))
    await ask(client)
    with pytest.raises(openai.RateLimitError, match="its 100 tokens of this month") as refused:
        await ask(client)
    assert refused.value.code == "insufficient_quota"


async def test_one_that_cannot_be_read_is_tried_again(
    bench: Bench, sibling: Ledger, tmp_path: Path
) -> None:
    sibling.add([Row(now_hour(), "acme", "m", Usage(prompt_tokens=100))])
    damaged = tmp_path / "usage-3.db"
    damaged.write_bytes(b"frog" * 2000)
    client = await known(bench, Tenant("acme", tokens_per_month=100))
    await ask(client)
    damaged.unlink()
    with pytest.raises(openai.RateLimitError, match="of this month"):
        await again_and_again(lambda: ask(client))


async def test_what_nobody_held_is_split_by_slots_of_others_too(
    bench: Bench, sibling: Ledger
) -> None:
    """The tenant asks here for another model, so that only the sibling knows of its slots."""
    hour = now_hour()
    sibling.add([Row(hour, "acme", "shared", Usage(slot_s=9.0))])
    async with node("one", held(hour, 8.0, "", "shared")) as (record, _):
        client = await known(bench, Tenant("acme", gpu_seconds_per_month=5), record)
        with pytest.raises(openai.RateLimitError, match="5 GPU seconds of this month"):
            await again_and_again(lambda: ask(client))


async def test_shares_are_those_of_all_slots(tmp_path: Path, sibling: Ledger) -> None:
    hour = month_of(1_790_000_000.0).start + 50
    sibling.add(
        [
            Row(hour, "acme", "m", Usage(slot_s=1.0)),
            Row(hour, "globex", "m", Usage(slot_s=2.0)),
        ]
    )
    with closing(Ledgers(Ledger(tmp_path / "usage.db"))) as ledgers:
        ledgers.own.add([Row(hour, "acme", "m", Usage(slot_s=5.0))])
        async with node("one", held(hour, 8.0, "")) as (record, _):
            asked = Held(ledgers, FakeClock(wall=hour * HOUR_S + 60.0))
            asked.hear(CatalogSnapshot((), (), (record,)))
            await asked.ask()
            assert (asked.of("acme").gpu_s, asked.of("globex").gpu_s) == (6.0, 2.0)
