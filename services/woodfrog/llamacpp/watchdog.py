"""Ends a process whose llama.cpp does not come back: one thread computes for all, and a request may hold it for ever."""

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from woodfrog.errors import WoodfrogError

log = logging.getLogger(__name__)
_EVERY_S = 30.0
_SILENT_S = 600.0  # what routers wait for a word: nobody waits any more. A batch of a large model may take minutes


class Watchdog:
    """Looks only while requests run, so that it is at rest when they do."""

    def __init__(
        self,
        answers: Callable[[], Awaitable[object]],
        end: Callable[[], None] = lambda: os._exit(1),
    ) -> None:
        """`answers` asks for what llama.cpp tells between two batches."""
        self._answers = answers
        self._end = end
        self._running = 0
        self._looking: asyncio.Task[None] | None = None

    @contextmanager
    def over(self) -> Iterator[None]:
        """While a request runs."""
        self._running += 1
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._looking.cancel()
                self._looking = None

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                async with asyncio.timeout(_SILENT_S):
                    await self._answers()
            except TimeoutError:
                said = f"llama.cpp has computed for {_SILENT_S:.0f} s without coming back; its replica ends"
                log.critical(said)
                sys.stderr.write(said + "\n")  # the agent tells the last line
                self._end()
            except WoodfrogError as error:  # its requests hear the same
                log.warning("llama.cpp is not asked", extra={"error": error.message})
