"""JSON schemas to constraints beside the event loop: one at a time, each in a thread that ends with it.

While nothing is asked there is no such thread, so that none is in a snapshot or idles in a clone.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from woodfrog.engine.constraint import Constraint
from woodfrog.engine.formats import Schema

_KEPT_MAX = 8  # each keeps up to some tens of MB of states
# References may lead 12,000 levels deep within a schema's characters, and each level takes up to 5 KB of stack.
_STACK_BYTES = 256 << 20


class Schemas:
    """The newest constraints are kept, by the text of their schema. Belongs to the event loop's thread."""

    def __init__(self, compile_schema: Callable[[Schema], Constraint]) -> None:
        """`compile_schema` runs in other threads, raises InvalidArgument, and ends of itself."""
        self._compile = compile_schema
        self._turn = asyncio.Lock()
        self._kept: dict[str, Constraint] = {}  # the newest last

    async def constraint(self, schema: Schema) -> Constraint:
        """One of its own for the caller, from which copies may be made.

        Cancelled, it gives up its turn; what has begun is finished and kept. Raises InvalidArgument.
        """
        if (kept := self._find(schema)) is not None:
            return kept
        await self._turn.acquire()
        if (kept := self._find(schema)) is not None:  # by the one before
            self._turn.release()
            return kept
        try:
            work = self._begin(schema)
        except RuntimeError:  # there is no room for a thread
            self._turn.release()
            raise
        return (await asyncio.wrap_future(work)).copy()

    async def quiet(self) -> None:
        """Return when none is compiled. Nothing may ask meanwhile."""
        async with self._turn:
            pass

    def forget(self) -> None:
        self._kept.clear()

    def _find(self, schema: Schema) -> Constraint | None:
        """One that broke is made anew: its copies share what they have found out, and its limits."""
        kept = self._kept.pop(schema.text, None)
        if kept is None or kept.broken:
            return None
        self._kept[schema.text] = kept
        return kept.copy()

    def _begin(self, schema: Schema) -> Future[Constraint]:
        """Whoever calls has the turn; it goes on to the next one when the thread has ended."""
        loop = asyncio.get_running_loop()
        before = threading.stack_size(_STACK_BYTES)
        try:
            pool = ThreadPoolExecutor(1, thread_name_prefix="schema")
            work = pool.submit(self._compile, schema)
        finally:
            threading.stack_size(before)

        def ended() -> None:
            pool.shutdown()  # it has nothing left to do but to end
            if not work.cancelled() and work.exception() is None:
                self._kept[schema.text] = work.result()
                while len(self._kept) > _KEPT_MAX:
                    del self._kept[next(iter(self._kept))]
            self._turn.release()

        work.add_done_callback(lambda _: loop.call_soon_threadsafe(ended))
        return work
