"""Streams to nodes that come, go, and come back at a bad moment."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from woodfrog.clients.node_agent import NodeAgentClient
from woodfrog.scheduler.nodes import NodeLinks

NOBODY = "127.0.0.1:9"


async def test_a_node_that_registers_again_while_its_stream_is_closed_is_followed_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closing, close = asyncio.Event(), asyncio.Event()
    leave = NodeAgentClient.__aexit__

    async def slowly(client: NodeAgentClient, *failure: object) -> None:
        closing.set()
        await close.wait()
        await leave(client, *failure)

    monkeypatch.setattr(NodeAgentClient, "__aexit__", slowly)
    tasks: list[asyncio.Task[None]] = []

    def spawn(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(work, name=name))
        return tasks[-1]

    links = NodeLinks(lambda event: None, spawn, 60.0)
    try:
        links.put("a", NOBODY)
        links.gone("a")
        async with asyncio.timeout(60):
            await closing.wait()
        links.put("a", NOBODY)
        close.set()
        async with asyncio.timeout(60):
            await asyncio.wait((tasks[0],))
        assert links.client("a") is not None
        assert [task.done() for task in tasks] == [True, False]
    finally:
        close.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
