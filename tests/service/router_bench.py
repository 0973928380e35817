"""One router in this process between simulated schedulers and simulated engines."""

import asyncio
import re
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import openai
from tests.memory.simulated_engine import SimulatedEngine
from tests.memory.simulated_scheduler import SimulatedScheduler
from tests.service.processes import free_addresses

from woodfrog.catalog import CatalogEvent, CatalogSnapshot
from woodfrog.clients.scheduler import SchedulerClient
from woodfrog.clients.usages import UsagesClient
from woodfrog.clock import SystemClock
from woodfrog.metering import Usage
from woodfrog.model import digest
from woodfrog.model.placement import ReadyReplica
from woodfrog.model.spec import ModelSpec
from woodfrog.router.router import Router, running
from woodfrog.router.settings import Settings

COMMENT_S = 0.05
WEIGHTS = digest.of_bytes(b"")


def spec(name: str, tenant: str = "") -> ModelSpec:
    return ModelSpec(
        name=name, weights=WEIGHTS, weights_bytes=7, create_time=1_700_000_000.5, tenant=tenant
    )


class MemoryCatalog:
    def __init__(self, *models: ModelSpec) -> None:
        self.events: asyncio.Queue[CatalogEvent] = asyncio.Queue()
        self.events.put_nowait(CatalogSnapshot(models, (), ()))

    async def follow(self) -> AsyncGenerator[CatalogEvent, None]:
        while True:
            yield await self.events.get()


class Bench:
    """`m` and `org/m` are the models; engines and replicas are added by the test."""

    def __init__(
        self,
        folder: Path,
        stack: AsyncExitStack,
        schedulers: Sequence[SimulatedScheduler],
        catalog: MemoryCatalog,
        router: Router,
        client: openai.AsyncOpenAI,
        metrics: str,
    ) -> None:
        self._folder = folder
        self._stack = stack
        self.schedulers = schedulers
        self.scheduler = schedulers[0]
        self.catalog = catalog
        self.replicas = router.replicas
        self.http = f"127.0.0.1:{router.http_port}"
        self.grpc = f"127.0.0.1:{router.grpc_port}"
        self.client = client
        self._metrics = metrics
        self.engines: dict[str, SimulatedEngine] = {}

    @staticmethod
    @asynccontextmanager
    async def open(
        folder: Path, *, scheduler_away: bool = False, schedulers: int = 1, **settings: Any
    ) -> AsyncIterator["Bench"]:
        defaults = {"listen": "127.0.0.1:0", "grpc_listen": "127.0.0.1:0", "drain_s": 1}
        (metrics,) = free_addresses(1)
        defaults["metrics_listen"] = metrics
        given = Settings(**{**defaults, "sse_comment_s": COMMENT_S, **settings})
        catalog = MemoryCatalog(spec("m"), spec("org/m"))
        async with AsyncExitStack() as engines, AsyncExitStack() as stack:
            enter = stack.enter_async_context
            started = [await enter(SimulatedScheduler()) for _ in range(schedulers)]
            addresses = ["127.0.0.1:1"] if scheduler_away else [each.address for each in started]
            placements = {
                each: await enter(SchedulerClient(each, "router-1")) for each in addresses
            }
            client = await enter(
                openai.AsyncOpenAI(base_url="http://later", api_key="k", max_retries=0)
            )
            router = await enter(running(given, catalog, placements, SystemClock()))
            client.base_url = f"http://127.0.0.1:{router.http_port}/v1"
            for scheduler in started:
                await scheduler.until(lambda s: s.routers == (0 if scheduler_away else 1))
            yield Bench(folder, engines, started, catalog, router, client, given.metrics_listen)

    async def replica(self, name: str, model: str = "m", slots: int = 256) -> ReadyReplica:
        """A running simulated engine; not announced."""
        path = str(self._folder / f"{name}.sock")
        self.engines[name] = await self._stack.enter_async_context(SimulatedEngine(path))
        return ReadyReplica(name, model, "node-1", path, slots)

    async def ready(self, name: str, model: str = "m", slots: int = 256) -> SimulatedEngine:
        """A running simulated engine that the router uses."""
        await self.scheduler.announce(await self.replica(name, model, slots))
        await self.until(lambda: name in self.replicas.ids)
        return self.engines[name]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Gives the router's loop, which is this one, its turns until `condition` holds."""
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.002)

    async def ask(self, text: str = "hello", **more: Any) -> Any:
        message: Any = {"role": "user", "content": text}
        return await self.client.chat.completions.create(model="m", messages=[message], **more)

    async def usages(self) -> dict[tuple[str, str], Usage]:
        """What the router recorded, by tenant and model."""
        found: dict[tuple[str, str], Usage] = {}
        async with UsagesClient(self.grpc) as usages:
            for row in await usages.list(0, 1 << 40):
                key = row.tenant, row.model
                found[key] = found.get(key, Usage()) + row.usage
        return found

    async def metrics(self) -> str:
        """As OpenMetrics, by who reaches their address."""
        headers = {"accept": "application/openmetrics-text; version=1.0.0"}
        request = urllib.request.Request(f"http://{self._metrics}/metrics", headers=headers)

        def scrape() -> bytes:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return bytes(answer.read())

        return (await asyncio.to_thread(scrape)).decode()

    async def raw(self, request: bytes) -> tuple[bytes, bytes]:
        """Head and body of the answer to bytes on a connection of its own."""
        host, _, port = self.http.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(request)
            async with asyncio.timeout(60):
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else await reader.read()
            return head, body
        except asyncio.IncompleteReadError as end:  # the answer to HEAD
            return head, end.partial
        finally:
            writer.close()
