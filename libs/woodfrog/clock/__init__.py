"""Clocks. Decisions get `now` as an argument; only shells hold a clock."""

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds that never go back; comparable within one process only."""

    def wall(self) -> float:
        """Seconds since the epoch."""


class SystemClock:
    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


class FakeClock:
    """Stands still until told."""

    def __init__(self, now: float = 0.0, wall: float = 1_000_000.0) -> None:
        self._now = now
        self._wall = wall

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._wall

    def advance(self, seconds: float) -> None:
        assert seconds >= 0
        self._now += seconds
        self._wall += seconds
