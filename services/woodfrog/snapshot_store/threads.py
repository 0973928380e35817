"""The threads behind the loop: one in which every change is made in turn, and some for the bytes of chunks."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
BULK_THREADS = 8


class Threads:
    def __init__(self) -> None:
        self._ordered = ThreadPoolExecutor(1, "ordered")
        self._bulk = ThreadPoolExecutor(BULK_THREADS, "bulk")
        asyncio.get_running_loop().set_default_executor(self._bulk)

    async def ordered(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """One step after another. It is carried out to its end even when the caller is cancelled."""
        assert not kwargs
        return await _finish(self._ordered, call, *args)

    async def bulk(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Beside others. Returns, also when cancelled, only after the thread has let go of the arguments."""
        assert not kwargs
        return await _finish(self._bulk, call, *args)

    def close(self) -> None:
        """Waits for what runs."""
        self._ordered.shutdown()
        self._bulk.shutdown()


async def _finish(pool: ThreadPoolExecutor, call: Callable[..., R], *args: object) -> R:
    future = asyncio.get_running_loop().run_in_executor(pool, call, *args)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise
