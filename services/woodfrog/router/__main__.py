"""Wires the router: settings → etcd and schedulers → servers."""

import asyncio
import gc
import resource
from contextlib import AsyncExitStack

from woodfrog import rpc
from woodfrog.catalog import Catalog
from woodfrog.clients.scheduler import SchedulerClient
from woodfrog.clock import SystemClock
from woodfrog.coordination import Session
from woodfrog.router.router import running
from woodfrog.router.settings import Settings
from woodfrog.settings import load

_GC_THRESHOLD = 20_000  # the default of 700 is some ten requests, and took 3 % of the time


async def main(stop: asyncio.Event) -> None:
    _, files_max = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))
    settings = load(Settings)
    clock = SystemClock()
    async with (
        Session(settings.etcd.split(","), clock) as session,
        AsyncExitStack() as stack,
    ):
        placements = {
            address: await stack.enter_async_context(SchedulerClient(address, settings.name))
            for address in settings.scheduler.split(",")
        }
        serving = running(settings, Catalog(session), placements, clock)
        router = await stack.enter_async_context(serving)
        gc.collect()
        gc.freeze()  # what was imported never dies: a full collection over it stops every stream for 100 ms
        gc.set_threshold(_GC_THRESHOLD, 10, 10)
        await router.until(stop)


if __name__ == "__main__":
    rpc.run("router", main)
