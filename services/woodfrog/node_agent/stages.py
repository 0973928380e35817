"""Stages of a climb: each is a span and a line of the climb's table."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context as contexts

from woodfrog import telemetry
from woodfrog.model.node import Stage


class Stages:
    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._newest = contexts.Context()  # with the span of the last stage
        self.done: list[Stage] = []

    @property
    def took_s(self) -> float:
        """Since the climb began."""
        return time.perf_counter() - self._began

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        with telemetry.tracer().start_as_current_span(name):
            self._newest = contexts.get_current()
            try:
                yield
            finally:
                end = time.perf_counter()
                self.done.append(Stage(name, start - self._began, end - start))

    def split(self, name: str, last: str, seconds: float) -> None:
        """The last `seconds` of stage `name`, which just ended, were a stage of their own, and its child in the trace."""
        whole = self.done.pop()
        assert whole.name == name
        end_ns = time.time_ns()
        start_ns = end_ns - int(seconds * 1e9)
        telemetry.tracer().start_span(last, self._newest, start_time=start_ns).end(end_ns)
        self.done += [
            Stage(name, whole.start_s, whole.duration_s - seconds),
            Stage(last, whole.start_s + whole.duration_s - seconds, seconds),
        ]
