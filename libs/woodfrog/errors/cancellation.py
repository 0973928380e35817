"""Calls of grpc.aio that are cancelled while they end.

Where the peer's error arrives in the moment in which a task that waits for the call is cancelled, grpc.aio (1.85) raises
the error, and the cancellation is gone: a loop that tries again would do so for ever, and so would whoever waits for its
end.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def kept() -> Iterator[None]:
    """What is awaited in it raises CancelledError if this task was cancelled meanwhile, also where it ended otherwise."""
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    except Exception:
        if task and task.cancelling() > before:
            raise asyncio.CancelledError from None
        raise
    if task and task.cancelling() > before:
        raise asyncio.CancelledError


async def following(messages: AsyncIterator[T]) -> T | None:
    """A stream's next one, waited for in `kept`; None at its end."""
    with kept():
        return await anext(messages, None)
