"""Blocking work on the cache's disk: in a thread, with the disk's failures as our errors."""

import asyncio
import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from woodfrog.errors import ResourceExhausted, Unavailable

P = ParamSpec("P")
R = TypeVar("R")


async def on_disk(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Returns, also when cancelled, only after the thread is done: nothing may write once the cache is closed."""
    thread = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    with disk_errors():
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            await asyncio.gather(thread, return_exceptions=True)
            raise


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raises ResourceExhausted CACHE_FULL or Unavailable CACHE_DISK_FAILED in place of OSError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceExhausted(
                "CACHE_FULL",
                f"the disk below the cache is full ({error}); free some, or lower "
                "WOODFROG_WEIGHT_FS_CACHE_BYTES_MAX so that old trees are evicted in time",
                retry_after_s=5.0,
            ) from None
        raise Unavailable(
            "CACHE_DISK_FAILED", f"the cache's disk failed: {error}; look at the kernel's log"
        ) from None
