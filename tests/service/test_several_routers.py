"""Two router processes behind one address know of each other by the scheduler; that and the engine are SIMULATED."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.capabilities import need
from tests.service import router_process
from tests.service.router_process import RouterProcess

from woodfrog.catalog.tenants import Tenants
from woodfrog.clock import SystemClock
from woodfrog.coordination import Session
from woodfrog.model.tenant import Tenant

pytestmark = need("etcd")
SLOTS = 4
EACH = 16  # new connections: that all of them go to one router has a chance of 2 in 65,536
TOLD_S = 1.0  # what is told within tenths of a second is known then on a slow machine too
WAIT_S = 60.0
ENDLESS = {"tokens": 10_000, "interval_s": 0.05}


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[RouterProcess]:
    settings = {"WOODFROG_ROUTER_AUTH": "keys"}
    async with router_process.opened(tmp_path, "m", SLOTS, settings, routers=2) as routers:
        yield routers


async def keyed(routers: RouterProcess, tenant: Tenant) -> str:
    """Its key, once both routers know it."""
    async with Session([routers.etcd], SystemClock()) as session:
        tenants = Tenants(session)
        await tenants.create(tenant)
        key, _ = await tenants.create_key(tenant.name, "", SystemClock().wall())
    async with asyncio.timeout(WAIT_S):
        while "invalid_api_key" in await listed(routers, key):
            await asyncio.sleep(0.05)
    return key


async def listed(routers: RouterProcess, key: str) -> Counter[str]:
    """What listing models on new connections comes to, which no limit counts."""
    return await counted(routers, key, lambda client: client.models.list())


async def asked(routers: RouterProcess, key: str) -> Counter[str]:
    """What requests on new connections come to, by error code; "" is an answer."""
    return await counted(
        routers, key, lambda client: client.completions.create(model="m", prompt="hi")
    )


async def counted(routers: RouterProcess, key: str, ask: Any) -> Counter[str]:
    found: Counter[str] = Counter()
    for _ in range(EACH):
        async with opened(routers, key) as client:
            try:
                await ask(client)
                found[""] += 1
            except openai.APIStatusError as error:
                found[str(error.code)] += 1
    return found


@asynccontextmanager
async def opened(routers: RouterProcess, key: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"http://{routers.http}/v1", api_key=key, max_retries=0
    ) as client:
        yield client


@asynccontextmanager
async def streams(routers: RouterProcess, key: str, count: int) -> AsyncIterator[None]:
    """So many that do not end, each on a connection of its own; told to both routers."""
    async with AsyncExitStack() as stack:
        for _ in range(count):
            client = await stack.enter_async_context(opened(routers, key))
            stream = await client.completions.create(
                model="m", prompt="hi", stream=True, extra_body={"simulate": ENDLESS}
            )
            await anext(aiter(stream))
            stack.push_async_callback(stream.close)
        await asyncio.sleep(TOLD_S)
        yield


async def until_all(routers: RouterProcess, key: str, code: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while set(await asked(routers, key)) != {code}:
            await asyncio.sleep(0.1)


async def test_a_tenant_has_its_requests_at_once_of_both_together(pair: RouterProcess) -> None:
    key = await keyed(pair, Tenant("acme", concurrency_max=3))
    async with streams(pair, key, 3):
        assert await asked(pair, key) == {"concurrency_exceeded": EACH}
    await until_all(pair, key, "")


async def test_one_after_the_other_is_one_at_once(pair: RouterProcess) -> None:
    """Also where each goes to whichever router, which has not heard yet that the one before has ended."""
    key = await keyed(pair, Tenant("acme", concurrency_max=1))
    slow = {"tokens": 4, "interval_s": 0.05}
    for _ in range(EACH):
        async with opened(pair, key) as client:
            await client.completions.create(model="m", prompt="hi", extra_body={"simulate": slow})


async def test_what_a_killed_router_had_is_over(pair: RouterProcess) -> None:
    key = await keyed(pair, Tenant("acme", concurrency_max=6))
    async with streams(pair, key, 6):
        assert await asked(pair, key) == {"concurrency_exceeded": EACH}
        pid = next(pid for pid in pair.pids if connections(pid, pair.http))
        os.kill(pid, signal.SIGKILL)
        await pair.scheduler.until(lambda scheduler: scheduler.routers == 1)
        await until_all(pair, key, "")


def connections(pid: int, http: str) -> int:
    """Of clients, that the process has."""
    port = f":{int(http.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    established = {row[9] for row in rows if row[1].endswith(port) and row[3] == "01"}
    sockets = [os.readlink(name) for name in Path(f"/proc/{pid}/fd").iterdir()]
    return sum(name[len("socket:[") : -1] in established for name in sockets)


async def test_a_tenant_has_its_requests_a_minute_of_both_together(pair: RouterProcess) -> None:
    most = EACH
    key = await keyed(pair, Tenant("acme", requests_per_minute=most))
    found: Counter[str] = Counter()
    for _ in range(4):
        found += await asked(pair, key)
        await asyncio.sleep(TOLD_S)
    # Some more come back as time goes, and what one let in was not known to the other at once.
    assert most <= found[""] < most * 7 // 4, "twice as many, if they did not know of each other"
    assert found["rate_limit_exceeded"] == 4 * EACH - found[""]


async def test_a_replicas_slots_are_of_both_together(pair: RouterProcess) -> None:
    key = await keyed(pair, Tenant("acme"))
    assert await asked(pair, key) == {"": EACH}
    assert not pair.scheduler.acquires, "there is a free slot"
    async with streams(pair, key, SLOTS):
        before = len(pair.scheduler.acquires)
        assert await asked(pair, key) == {"": EACH}, "the simulated scheduler grants more"
        assert len(pair.scheduler.acquires) - before == EACH, "neither takes what the other has"
