"""Stages of a climb: each is a span and a line of the climb's table."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from woodfrog import telemetry
from woodfrog.model.node import Stage


class Stages:
    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.done: list[Stage] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        with telemetry.tracer().start_as_current_span(name):
            try:
                yield
            finally:
                end = time.perf_counter()
                self.done.append(Stage(name, start - self._began, end - start))
