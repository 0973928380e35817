"""The router put together: everything but the process and the connections around it, so that tests run the same."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from woodfrog import rpc
from woodfrog.api.router.v1 import chats_pb2_grpc, completions_pb2_grpc, models_pb2_grpc
from woodfrog.catalog import CatalogEvent, CatalogSnapshot, ModelPut, ModelRemoved
from woodfrog.clock import Clock
from woodfrog.router.gateway import Gateway, Limits
from woodfrog.router.http_app import HttpApp, HttpLimits
from woodfrog.router.http_server import ConnectionLimits, HttpServer
from woodfrog.router.metrics import Metrics
from woodfrog.router.model_list import ModelList
from woodfrog.router.placements import Placements
from woodfrog.router.replica_client import ReplicaClient
from woodfrog.router.replicas import ReplicaTable
from woodfrog.router.schedulers import Schedulers
from woodfrog.router.service import Asking, ChatsServicer, CompletionsServicer, ModelsServicer
from woodfrog.router.settings import Settings
from woodfrog.router.slots import Slots

_SERVICES = tuple(f"woodfrog.api.router.v1.{name}" for name in ("Chats", "Completions", "Models"))
_REFUSAL_S = 5.0  # after which a slow body's connection ends, though it was told


class Following(Protocol):
    """What the router needs of `woodfrog.catalog.Catalog`."""

    def follow(self) -> AsyncGenerator[CatalogEvent, None]: ...


@dataclass(frozen=True, slots=True)
class Router:
    """Where a running one listens, and the replicas that it knows."""

    http_port: int
    grpc_port: int
    replicas: ReplicaTable
    tasks: tuple[asyncio.Task[None], ...]

    async def until(self, stop: asyncio.Event) -> None:
        """Returns when `stop` is set. Raises what ended a part that should never end."""
        stopping = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait((stopping, *self.tasks), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for task in done:
            task.result()


@asynccontextmanager
async def running(
    settings: Settings, catalog: Following, placements: Mapping[str, Placements], clock: Clock
) -> AsyncIterator[Router]:
    """Serves until it is left; answers under way may then end within `drain_s`. `placements` as `Schedulers` has them."""
    metrics, models, table = Metrics(), ModelList(), ReplicaTable()
    client = ReplicaClient(settings.answer_wait_s)
    limits = Limits(settings.requests_max, settings.sse_comment_s)
    schedulers = Schedulers(
        table,
        placements,
        lambda replica: client.forget(replica.socket_path),
        lambda replica_id: gateway.ended(replica_id),
        clock,
    )
    gateway = Gateway(Slots(table, schedulers, clock), client, metrics, clock, limits)
    app = HttpApp(
        gateway,
        models,
        metrics,
        clock,
        lambda: {"scheduler": schedulers.delivered, "catalog": models.known},
        HttpLimits(
            settings.body_bytes_max,
            settings.bodies_bytes_max,
            settings.body_wait_s,
            settings.wake_wait_s,
        ),
    )
    connections = ConnectionLimits(
        settings.head_bytes_max,
        settings.body_wait_s + _REFUSAL_S,
        settings.unread_wait_s,
        settings.connections_max,
        settings.drain_s,
    )
    asking = Asking(
        gateway,
        models,
        metrics,
        clock,
        wake_wait_s=settings.wake_wait_s,
        body_bytes_max=settings.body_bytes_max,
    )
    tasks = (
        asyncio.create_task(schedulers.run()),
        asyncio.create_task(_follow(catalog, models)),
    )
    try:
        async with (
            rpc.Server(settings.grpc_listen) as server,
            HttpServer(app, settings.listen, connections) as http,
        ):
            _add_servicers(server, asking, models)
            await server.start(*_SERVICES)
            yield Router(http.port, server.port, table, tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        client.close()


def _add_servicers(server: rpc.Server, asking: Asking, models: ModelList) -> None:
    chats_pb2_grpc.add_ChatsServicer_to_server(ChatsServicer(asking), server.grpc)  # type: ignore[no-untyped-call]
    completions_pb2_grpc.add_CompletionsServicer_to_server(  # type: ignore[no-untyped-call]
        CompletionsServicer(asking), server.grpc
    )
    models_pb2_grpc.add_ModelsServicer_to_server(ModelsServicer(models), server.grpc)  # type: ignore[no-untyped-call]


async def _follow(catalog: Following, models: ModelList) -> None:
    async with aclosing(catalog.follow()) as events:
        async for event in events:
            match event:
                case CatalogSnapshot():
                    models.replace(event.models)
                case ModelPut():
                    models.put(event.spec)
                case ModelRemoved():
                    models.remove(event.spec.name)
