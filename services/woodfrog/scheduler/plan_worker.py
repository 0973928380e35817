"""Plans are made in a process of their own: a second of arithmetic must not hold up requests, nor print to the log."""

import asyncio
import ctypes
import logging
import multiprocessing
import os
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pickle import UnpicklingError
from typing import Any

from woodfrog.scheduler.plan import Item, Limits, Prices, Solution
from woodfrog.scheduler.planner import Planner

log = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1
_CONTEXT = multiprocessing.get_context("spawn")


_MORE_S = 10.0  # for its start, for what is not the program, and to and fro, on a busy machine


class PlanWorker:
    """Starts the process when the first plan is wanted; it ends with this one. `close` it."""

    def __init__(self, more_s: float = _MORE_S) -> None:
        self._more_s = more_s
        self._process: Any = None
        self._link: Connection | None = None

    async def solve(
        self,
        items: Sequence[Item],
        limits: Limits,
        prices: Prices,
        within_s: float,
        *,
        asked: bool = False,
    ) -> Solution | None:
        """One at a time. None when the process died over it, or took `more_s` longer than `within_s`: the next call starts
        another.
        """
        if self._process is None:
            self._link, theirs = _CONTEXT.Pipe()
            self._process = _CONTEXT.Process(target=_work, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        link = self._link
        assert link is not None

        def ask() -> Solution:
            link.send((items, limits, prices, within_s, asked))
            answer: Solution = link.recv()
            return answer

        try:
            async with asyncio.timeout(within_s + self._more_s):
                return await asyncio.to_thread(ask)
        except asyncio.CancelledError:
            self.close()  # else its answer would be taken for that to the next question
            raise
        except (OSError, EOFError, UnpicklingError) as error:  # a TimeoutError is an OSError
            log.warning("no plan was made: its process died or hung", extra={"error": repr(error)})
            self.close()
            return None

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()  # what waits for its answer sees the end of the pipe
            self._process.join()
            self._process = None


def _work(link: Connection) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent's to answer
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # HiGHS greets
    planner = Planner()
    while True:
        try:
            items, limits, prices, within_s, asked = link.recv()
        except EOFError:
            return
        link.send(planner.solve(items, limits, prices, within_s, asked=asked))
