"""Whoever follows a peer that is gone ends when it is told to, in whatever moment that comes."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from woodfrog import rpc
from woodfrog.errors import Unavailable, cancellation

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
