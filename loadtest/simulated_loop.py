"""An asyncio loop on a simulated cell's clock: the router's real coroutines run in the cell's time, from its seed."""

import asyncio
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVarTuple

from woodfrog.errors import WoodfrogError

_Ts = TypeVarTuple("_Ts")


class CellLoop(asyncio.AbstractEventLoop):
    """Has what tasks, futures, timers and `asyncio.timeout` need, and nothing of files or sockets."""

    def __init__(self, now: Callable[[], float], after: Callable[..., None]) -> None:
        """`after(seconds, do)` is the cell's."""
        self._now = now
        self._after = after
        self._ready: deque[asyncio.Handle] = deque()
        self._stirred = False
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._failures: list[BaseException] = []

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """An error that is not one of woodfrog.errors comes out of the step of the cell in which it happened."""
        self.create_task(work)

    def end(self) -> None:
        """Cancels all that still runs."""
        for task in [*self._tasks]:
            task.cancel()
        self._run_ready()

    def check(self) -> None:
        """Raises what went wrong in a task."""
        if self._failures:
            raise self._failures[0]

    # --- what asyncio calls ---

    def time(self) -> float:
        return self._now()

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        if not self._stirred:
            self._stirred = True
            self._after(0.0, self._run)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)

        def due() -> None:
            if not handle.cancelled():
                self._ready.append(handle)
                self._run()

        self._after(max(0.0, when - self.time()), due)
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> Any:
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks[task] = None
        task.add_done_callback(self._done)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if isinstance(error := context.get("exception"), BaseException):
            self._failures.append(error)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is looked at when it is due."""

    def _done(self, task: asyncio.Task[Any]) -> None:
        del self._tasks[task]
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, WoodfrogError):
            self._failures.append(error)

    def _run(self) -> None:
        self._run_ready()
        self.check()

    def _run_ready(self) -> None:
        """And what that makes ready."""
        events._set_running_loop(self)
        try:
            while self._ready:
                handle = self._ready.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            events._set_running_loop(None)
        self._stirred = False
