"""Streams end whole, in whatever moment they are cancelled or their peer goes."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.memory.simulated_scheduler import SimulatedScheduler

from woodfrog import rpc
from woodfrog.clients.scheduler import SchedulerClient
from woodfrog.errors import Unavailable, cancellation
from woodfrog.model.placement import ReplicaUsage, RouterReport
from woodfrog.router.scheduler_link import SchedulerLink

TRIES = 300  # of 300, 19 had gone on where grpc.aio was left to itself


async def follow(method: Any) -> None:
    """As services do: for ever, whatever the error."""

    async def requests() -> AsyncIterator[bytes]:
        yield b"all"
        await asyncio.sleep(100)

    while True:
        try:
            async for _ in rpc.stream(method, requests()):
                pass
        except Unavailable:
            await asyncio.sleep(0)


async def test_a_cancelled_stream_ends_also_when_its_peer_refuses_in_that_moment() -> None:
    at_random = random.Random(7)
    async with rpc.open_channel("127.0.0.1:1") as channel:
        method = channel.stream_stream("/woodfrog.test/Follow", None, None)
        for _ in range(TRIES):
            following = asyncio.create_task(follow(method))
            await asyncio.sleep(at_random.uniform(0, 0.003))
            following.cancel()
            async with asyncio.timeout(60):
                await asyncio.wait([following])
            assert following.cancelled()


class Link:
    """A router's to its scheduler, which it follows as long as it is open."""

    def __init__(self, client: SchedulerClient) -> None:
        self.link = SchedulerLink("one", client)

    async def follow(self) -> None:
        while True:
            try:
                async for _ in self.link.placements.track(self.link.reports(RouterReport)):
                    pass
            except Unavailable:
                await asyncio.sleep(0.02)


async def test_what_is_reported_after_a_scheduler_came_back_reaches_it() -> None:
    """It went while nothing ran, so the lost stream waited for news, and took it when there was some."""
    first = SimulatedScheduler()
    await first.__aenter__()
    async with SchedulerClient(first.address, "router-1") as client:
        link = Link(client)
        following = asyncio.create_task(link.follow())
        await first.until(lambda s: s.routers == 1)
        await first.__aexit__()
        async with SimulatedScheduler(first.address) as second:
            await second.until(lambda s: s.routers == 1)
            link.link.tell(RouterReport((ReplicaUsage("a", 1, 1),)))
            await second.until(lambda s: s.active == s.started == {"a": 1})
            following.cancel()
            await asyncio.wait([following])


@pytest.mark.parametrize("error", [ValueError, asyncio.InvalidStateError])
async def test_requests_that_end_in_an_error_end_the_stream_with_it(error: type[Exception]) -> None:
    async def reports() -> AsyncIterator[RouterReport]:
        yield RouterReport()
        raise error("a bug")

    async with SimulatedScheduler() as scheduler:
        async with SchedulerClient(scheduler.address, "router-1") as client:
            async with asyncio.timeout(60):
                with pytest.raises(error, match="a bug"):
                    [update async for update in client.track(reports())]
        await scheduler.until(lambda s: s.routers == 0)


async def test_a_cancelled_stream_whose_requests_fail_at_that_is_cancelled() -> None:
    async def reports() -> AsyncIterator[RouterReport]:
        yield RouterReport()
        await refused()

    async with SimulatedScheduler() as scheduler:
        async with SchedulerClient(scheduler.address, "router-1") as client:

            async def read() -> None:
                async for _ in client.track(reports()):
                    pass

            reading = asyncio.create_task(read())
            await scheduler.until(lambda s: s.routers == 1)
            reading.cancel()
            await asyncio.wait([reading])
            assert reading.cancelled()


async def refused() -> None:
    """What grpc.aio does then: its call forgets that it was cancelled."""
    try:
        await asyncio.sleep(100)
    except asyncio.CancelledError:
        raise Unavailable("GONE", "the peer is gone") from None


async def nothing_more() -> AsyncIterator[bytes]:
    try:
        await asyncio.sleep(100)
    except asyncio.CancelledError:
        return
    yield b""


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cancellation_that_a_call_forgets_is_raised(stream: bool) -> None:
    async def call() -> None:
        if stream:
            await cancellation.following(nothing_more())
        else:
            with cancellation.kept():
                await refused()

    calling = asyncio.create_task(call())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    calling.cancel()
    await asyncio.wait([calling])
    assert calling.cancelled()


async def test_a_time_limit_in_it_stays_one() -> None:
    async def call() -> None:
        async with asyncio.timeout(0.01):
            with cancellation.kept():
                await refused()

    with pytest.raises(TimeoutError):
        await call()


async def test_who_was_cancelled_before_may_still_call() -> None:
    """To tidy up, say."""

    async def call() -> str:
        try:
            await asyncio.sleep(100)
        finally:
            with pytest.raises(Unavailable), cancellation.kept():
                raise Unavailable("GONE", "the peer is gone")
            with cancellation.kept():
                await asyncio.sleep(0)
        return ""

    calling = asyncio.create_task(call())
    await asyncio.sleep(0)
    calling.cancel()
    await asyncio.wait([calling])
    assert calling.cancelled()
