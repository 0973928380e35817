"""The router put together: everything but the process and the connections around it, so that tests run the same."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from woodfrog import rpc
from woodfrog.api.metering.v1 import usages_pb2_grpc
from woodfrog.api.router.v1 import (
    chats_pb2_grpc,
    completions_pb2_grpc,
    embeddings_pb2_grpc,
    images_pb2_grpc,
    models_pb2_grpc,
)
from woodfrog.catalog import CatalogEvent, CatalogSnapshot, ModelPut, ModelRemoved
from woodfrog.clients.usages import SERVICE as USAGES
from woodfrog.clients.usages import UsagesServicer
from woodfrog.clock import Clock
from woodfrog.metering import Ledger, Ledgers
from woodfrog.router.access import Access
from woodfrog.router.admission import Admission
from woodfrog.router.budgets import Budgets
from woodfrog.router.gateway import Gateway
from woodfrog.router.held import Held
from woodfrog.router.http_app import HttpApp, HttpLimits
from woodfrog.router.http_server import ConnectionLimits, HttpServer
from woodfrog.router.metrics import Metrics
from woodfrog.router.model_list import ModelList
from woodfrog.router.placements import Placements
from woodfrog.router.quotas import Quotas
from woodfrog.router.replica_client import ReplicaClient
from woodfrog.router.replicas import ReplicaTable
from woodfrog.router.schedulers import Schedulers
from woodfrog.router.service import (
    Asking,
    AskingLimits,
    ChatsServicer,
    CompletionsServicer,
    Context,
    EmbeddingsServicer,
    ImagesServicer,
    ModelsServicer,
    authorization,
)
from woodfrog.router.settings import Settings
from woodfrog.router.shares import Shares
from woodfrog.router.slots import Slots
from woodfrog.router.usage_records import UsageRecords

_SERVICES = tuple(
    f"woodfrog.api.router.v1.{name}"
    for name in ("Chats", "Completions", "Embeddings", "Images", "Models")
)
_FRAMING_BYTES = 64 << 10  # of a gRPC message, whose JSON is hardly ever smaller
_LISTED_S, _LOOK_S = 3.0, 0.005
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
    access = Access(required=settings.auth == "keys")
    ledgers = Ledgers(Ledger(settings.usage_file))
    quotas = Quotas(clock, settings.requests_max, lambda: schedulers.touch())
    held = Held(ledgers, clock)
    admission = Admission(models, access, quotas, Budgets(ledgers, held, clock))
    client = ReplicaClient(settings.answer_wait_s)
    schedulers = Schedulers(
        table,
        placements,
        lambda replica: client.forget(replica.socket_path),
        lambda replica_id: gateway.ended(replica_id),
        clock,
        admission,
    )
    records = UsageRecords(ledgers.own, metrics, clock, admission.charge)
    slots = Slots(table, schedulers, clock)
    gateway = Gateway(slots, client, metrics, records, clock, settings.sse_comment_s)
    bodies = Shares(settings.bodies_bytes_max)
    app = HttpApp(
        gateway,
        admission,
        metrics,
        clock,
        lambda: {"scheduler": schedulers.delivered, "catalog": models.known},
        bodies,
        HttpLimits(settings.body_bytes_max, settings.body_wait_s, settings.wake_wait_s),
    )
    asking = Asking(
        gateway,
        admission,
        metrics,
        clock,
        bodies,
        AskingLimits(settings.body_bytes_max, settings.wake_wait_s, settings.unread_wait_s),
    )
    tasks = (
        asyncio.create_task(schedulers.run()),
        asyncio.create_task(_follow(catalog, models, access, held)),
        asyncio.create_task(held.run(lambda: access.budgets_held)),
    )
    try:
        await _listed(models)
        async with (
            rpc.Server(settings.grpc_listen, _outside(settings)) as server,
            HttpServer(app, settings.listen, _connections(settings)) as http,
            rpc.serving(
                settings.operator_listen,
                USAGES,
                lambda each: _add_usages(each, UsagesServicer(ledgers)),
            ),
        ):
            _add_servicers(server, asking, ModelsServicer(admission))
            _add_usages(server, UsagesServicer(ledgers, whose=lambda c: _whose(access, c)))
            await server.start(*_SERVICES, USAGES)
            with metrics.served(settings.metrics_listen):
                yield Router(http.port, server.port, table, tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        client.close()
        ledgers.close()


async def _listed(models: ModelList) -> None:
    """Until models, tenants and keys are known, if that is soon: else good keys would be refused meanwhile."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_LISTED_S):
            while not models.known:
                await asyncio.sleep(_LOOK_S)


def _connections(settings: Settings) -> ConnectionLimits:
    return ConnectionLimits(
        settings.head_bytes_max,
        settings.body_wait_s + _REFUSAL_S,
        settings.unread_wait_s,
        settings.connections_max,
        settings.drain_s,
        shared_listen=settings.shared_listen,
    )


def _outside(settings: Settings) -> rpc.Outside:
    return rpc.Outside(
        settings.body_bytes_max + _FRAMING_BYTES,
        settings.connections_max,
        2 * settings.requests_max,
        shared_listen=settings.shared_listen,
    )


def _add_servicers(server: rpc.Server, asking: Asking, models: ModelsServicer) -> None:
    chats_pb2_grpc.add_ChatsServicer_to_server(ChatsServicer(asking), server.grpc)  # type: ignore[no-untyped-call]
    completions_pb2_grpc.add_CompletionsServicer_to_server(  # type: ignore[no-untyped-call]
        CompletionsServicer(asking), server.grpc
    )
    embeddings_pb2_grpc.add_EmbeddingsServicer_to_server(EmbeddingsServicer(asking), server.grpc)  # type: ignore[no-untyped-call]
    images_pb2_grpc.add_ImagesServicer_to_server(ImagesServicer(asking), server.grpc)  # type: ignore[no-untyped-call]
    models_pb2_grpc.add_ModelsServicer_to_server(models, server.grpc)  # type: ignore[no-untyped-call]


def _add_usages(server: rpc.Server, usages: UsagesServicer) -> None:
    usages_pb2_grpc.add_UsagesServicer_to_server(usages, server.grpc)  # type: ignore[no-untyped-call]


def _whose(access: Access, context: Context) -> str | None:
    tenant = access.tenant(authorization(context))
    return None if tenant is None else tenant.name


async def _follow(catalog: Following, models: ModelList, access: Access, held: Held) -> None:
    async with aclosing(catalog.follow()) as events:
        async for event in events:
            access.hear(event)
            held.hear(event)
            match event:
                case CatalogSnapshot():
                    models.replace(event.models)
                case ModelPut():
                    models.put(event.spec)
                case ModelRemoved():
                    models.remove(event.spec.name)
