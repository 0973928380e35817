"""Runs weight_fs: recover the cache, mount, then serve gRPC."""

import asyncio
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from woodfrog import rpc
from woodfrog.api.weight_fs.v1 import trees_pb2_grpc as pb_grpc
from woodfrog.clients.store import ChunkClient, StoreClient
from woodfrog.clock import SystemClock
from woodfrog.errors import Unavailable
from woodfrog.settings import load
from woodfrog.weight_fs.cache import NodeCache
from woodfrog.weight_fs.fetch import Fetcher
from woodfrog.weight_fs.metrics import Metrics
from woodfrog.weight_fs.mount import Mount
from woodfrog.weight_fs.residency import ResidencyWatch
from woodfrog.weight_fs.service import TreesServicer
from woodfrog.weight_fs.settings import Settings
from woodfrog.weight_fs.source import StoreSource
from woodfrog.weight_fs.weight_tree import WeightTree

SERVICE = "woodfrog.api.weight_fs.v1.Trees"
THREADS_MAX = 16  # blocking reads and writes of the disk


async def main(stop: asyncio.Event) -> None:
    settings = load(Settings)
    prepare_process()
    clock = SystemClock()
    cache_dir, mount_dir = settings.cache_dir.absolute(), settings.mount_dir.absolute()
    async with (
        StoreClient(settings.store) as store,
        ChunkClient(settings.fetch_concurrency) as chunks,
    ):
        source = StoreSource(store, chunks)
        cache = NodeCache(cache_dir, source, clock, settings.cache_bytes_max)
        cache.recover()
        metrics = Metrics(cache)
        fetcher = Fetcher(
            cache,
            source,
            clock,
            concurrency=settings.fetch_concurrency,
            retry_s=settings.fetch_retry_s,
            metrics=metrics,
        )
        tree = WeightTree(cache, fetcher)
        async with (
            Mount(tree, cache, mount_dir, readahead_kib=settings.readahead_kib) as mount,
            fetcher,
            ResidencyWatch(cache, settings.residency_interval_s) as watch,
            rpc.Server(settings.listen) as server,
        ):
            servicer = TreesServicer(cache, fetcher, watch, mount_dir)
            pb_grpc.add_TreesServicer_to_server(servicer, server.grpc)  # type: ignore[no-untyped-call]
            await server.start(SERVICE)
            stopping = asyncio.create_task(stop.wait())
            ends: list[asyncio.Task[Any]] = [stopping, watch.task, mount.ended]
            with metrics.served(settings.metrics_listen):
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                stopping.cancel()
                if watch.task.done():
                    watch.task.result()
                raise Unavailable(
                    "MOUNT_ENDED", f"the mount on {mount_dir} was taken away; start weight_fs again"
                )
        await cache.close()


def prepare_process() -> None:
    """Each file that is open on the mount is one here."""
    os.umask(0o022)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS_MAX, "disk"))


if __name__ == "__main__":
    rpc.run("weight_fs", main)
