"""Wires the scheduler: settings → adapters → state → loop → server."""

import asyncio
import secrets

from woodfrog import rpc
from woodfrog.api.scheduler.v1 import placements_pb2_grpc, tenants_pb2_grpc
from woodfrog.catalog import Catalog
from woodfrog.catalog.tenants import Tenants
from woodfrog.clock import SystemClock
from woodfrog.coordination import Session
from woodfrog.scheduler.board import Limits
from woodfrog.scheduler.loop import SchedulerLoop, Waits
from woodfrog.scheduler.metrics import Metrics
from woodfrog.scheduler.plan import Resource
from woodfrog.scheduler.plans import Plans
from woodfrog.scheduler.service import PlacementsServicer
from woodfrog.scheduler.settings import Settings
from woodfrog.scheduler.state import SchedulerState
from woodfrog.scheduler.tenants_service import TenantsServicer
from woodfrog.settings import load

PLACEMENTS, TENANTS = (f"woodfrog.api.scheduler.v1.{name}" for name in ("Placements", "Tenants"))


async def main(stop: asyncio.Event) -> None:
    settings = load(Settings)
    clock = SystemClock()
    limits = Limits(
        waiting_max=settings.waiting_max,
        node_patience_s=settings.node_patience_s,
        node_return_s=settings.node_return_s,
        room_s=settings.room_s,
    )
    name = secrets.token_hex(4)
    state = SchedulerState(name, limits)
    waits = Waits(settings.climb_timeout_s, settings.wait_s_max, settings.node_patience_s)
    prices = {
        Resource.GPU: settings.gpu_price,
        Resource.MEMORY: settings.memory_price,
        Resource.PINNED: settings.pinned_price,
        Resource.DISK: settings.disk_price,
    }
    plans = Plans(state, clock, prices, settings.plan_within_s)
    metrics = Metrics()
    async with Session(settings.etcd.split(","), clock) as session, asyncio.TaskGroup() as group:
        loop = SchedulerLoop(state, clock, waits, group, plans, metrics)
        async with (
            rpc.Server(settings.listen) as server,
            rpc.serving(
                settings.operator_listen,
                TENANTS,
                lambda server: tenants_pb2_grpc.add_TenantsServicer_to_server(  # type: ignore[no-untyped-call]
                    TenantsServicer(Tenants(session), clock), server.grpc
                ),
            ),
        ):
            servicer = PlacementsServicer(loop)
            placements_pb2_grpc.add_PlacementsServicer_to_server(servicer, server.grpc)  # type: ignore[no-untyped-call]
            catalog = Catalog(session)
            loop.start(catalog, catalog.candidate(name, settings.leader_ttl_s))
            if settings.plan_every_s:
                loop.plan(settings.plan_every_s)
            await server.start(PLACEMENTS)
            with metrics.served(settings.metrics_listen):
                await stop.wait()
            loop.refuse_all()
        loop.end()


if __name__ == "__main__":
    rpc.run("scheduler", main)
