"""Runs the store: recover, then serve chunks by HTTP and all else by gRPC."""

import asyncio

from woodfrog import rpc
from woodfrog.api.snapshot_store.v1.manifests_pb2_grpc import add_ManifestsServicer_to_server
from woodfrog.clock import SystemClock
from woodfrog.settings import load
from woodfrog.snapshot_store.disk import Disk
from woodfrog.snapshot_store.http import ChunkServer
from woodfrog.snapshot_store.metrics import Metrics
from woodfrog.snapshot_store.service import ManifestsServicer
from woodfrog.snapshot_store.settings import Settings
from woodfrog.snapshot_store.store import Store
from woodfrog.snapshot_store.threads import Threads

SERVICE = "woodfrog.api.snapshot_store.v1.Manifests"
TEND_S_MAX = 30.0


async def main(stop: asyncio.Event) -> None:
    settings = load(Settings)
    disk = Disk(settings.data_dir)
    store = Store(
        disk,
        SystemClock(),
        ingest_idle_s=settings.ingest_idle_s,
        reserve_bytes=settings.reserve_bytes,
    )
    threads = Threads()
    metrics = Metrics(store.inventory)
    try:
        await threads.ordered(store.recover)
        async with (
            ChunkServer(store, disk, threads, settings.chunks_listen, metrics) as chunks,
            rpc.Server(settings.listen) as server,
        ):
            servicer = ManifestsServicer(store, disk, threads, chunks.url)
            add_ManifestsServicer_to_server(servicer, server.grpc)  # type: ignore[no-untyped-call]
            await server.start(SERVICE)
            async with asyncio.TaskGroup() as tasks:
                tending = tasks.create_task(tend(store, threads, settings.ingest_idle_s))
                with metrics.served(settings.metrics_listen):
                    await stop.wait()
                tending.cancel()
    finally:
        threads.close()
        disk.close()


async def tend(store: Store, threads: Threads, ingest_idle_s: float) -> None:
    """Drops ingests whose client is gone, and garbage whose collector was cancelled."""
    while True:
        await asyncio.sleep(min(TEND_S_MAX, ingest_idle_s / 4))
        await threads.ordered(store.expire)
        while await threads.ordered(store.collect):
            pass


if __name__ == "__main__":
    rpc.run("snapshot_store", main, loop_factory=asyncio.new_event_loop)
