"""One stream to each registered node's agent, kept up for as long as the node is registered."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any

from woodfrog.clients.node_agent import NodeAgentClient
from woodfrog.errors import WoodfrogError
from woodfrog.scheduler.events import NodeLost, NodeReported, NodeSilent

log = logging.getLogger(__name__)
_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)

Submit = Callable[[NodeReported | NodeSilent | NodeLost], None]
Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


class NodeLinks:
    def __init__(self, submit: Submit, spawn: Spawn, patience_s: float) -> None:
        self._submit = submit
        self._spawn = spawn
        self._patience_s = patience_s
        self._links: dict[str, _Link] = {}

    def put(self, name: str, address: str) -> None:
        """The node registered, or moved."""
        link = self._links.get(name)
        if link is not None and link.address == address and not link.ended:
            if not link.registered:
                link.registered = True
                self.doubt(name)  # what it said meanwhile was not heard
            return
        heard = link is not None and link.heard
        if link is not None:
            link.stop()
        fresh = _Link(name, address, self._submit, self._patience_s)
        self._links[name] = fresh
        fresh.task = self._spawn(self._follow(fresh), f"node {name}")
        if heard:  # its predecessor's view stays for a while
            fresh.broke()

    def gone(self, name: str) -> None:
        """The node is not registered any more: nothing new goes there, though its stream may be up.

        It is lost when it does not register again in time, or its stream ends.
        """
        link = self._links.get(name)
        if link is not None and link.registered:
            link.registered = False
            link.hurry.set()
            if link.heard:
                link.broke()

    def keep(self, names: set[str]) -> None:
        for name in self._links.keys() - names:
            self.gone(name)

    def client(self, name: str) -> NodeAgentClient | None:
        link = self._links.get(name)
        return link.client if link is not None else None

    def doubt(self, name: str) -> None:
        """A call to it was lost with its connection: watch it anew, so that the view is right."""
        link = self._links.get(name)
        if link is not None and link.watching is not None:
            link.watching.cancel()

    async def _follow(self, link: "_Link") -> None:
        try:
            await link.follow()
        finally:
            link.close()
            if self._links.get(link.name) is link:
                del self._links[link.name]


class _Link:
    """To one node at one address."""

    def __init__(self, name: str, address: str, submit: Submit, patience_s: float) -> None:
        self.name = name
        self.address = address
        self.registered = True
        self.ended = False  #: nothing revives it
        self.heard = False  #: the state holds a view of the node
        self.hurry = asyncio.Event()  #: do not sit out the pause
        self.client: NodeAgentClient | None = None
        self.task: asyncio.Task[None] | None = None
        self.watching: asyncio.Task[str] | None = None
        self._submit = submit
        self._patience_s = patience_s
        self._losing: asyncio.TimerHandle | None = None

    async def follow(self) -> None:
        """Returns when the node is neither registered nor reachable."""
        failures = 0
        async with NodeAgentClient(self.address) as self.client:
            while True:
                self._up = False
                why = await self._watch_once()
                if self._up:
                    failures = 0
                    log.warning("node silent", extra={"node": self.name, "error": why})
                    self.broke()
                if not self.registered:
                    self.ended = True
                    self._lose()
                    return
                await self._pause(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1

    def broke(self) -> None:
        """From now on it has so long to come back."""
        self.heard = True
        self._submit(NodeSilent(self.name))
        if self._losing is None:
            loop = asyncio.get_running_loop()
            self._losing = loop.call_later(self._patience_s, self._lose)

    def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
        self.close()

    def close(self) -> None:
        if self._losing is not None:
            self._losing.cancel()
            self._losing = None

    async def _watch_once(self) -> str:
        """Returns why the stream ended; others may cancel `watching`."""
        self.watching = asyncio.create_task(self._watch(), name=f"watch {self.name}")
        try:
            await asyncio.wait((self.watching,))
        finally:
            self.watching.cancel()
            await asyncio.gather(self.watching, return_exceptions=True)
        return "a call to it was lost" if self.watching.cancelled() else self.watching.result()

    async def _watch(self) -> str:
        assert self.client is not None
        try:
            async with aclosing(self.client.watch()) as updates:
                async for update in updates:
                    if not self.registered:
                        continue
                    if not self._up:
                        log.info("node connected", extra={"node": self.name})
                        self._up = self.heard = True
                        self.close()
                    self._submit(NodeReported(self.name, update))
        except WoodfrogError as error:
            return error.message
        raise AssertionError("a watch never just ends")

    async def _pause(self, seconds: float) -> None:
        self.hurry.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.hurry.wait()

    def _lose(self) -> None:
        self.close()
        if self.heard:
            self.heard = False
            log.warning("node lost", extra={"node": self.name})
            self._submit(NodeLost(self.name))
