"""The scheduler's metrics, on a registry of its own so that two schedulers in one process do not collide."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server

from woodfrog.scheduler import events as on

_ERROR_RATIO = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._climbs = Counter(
            "woodfrog_scheduler_climbs",
            "Attempts to climb that ended, by the rung they began on and outcome: finished, refused or failed.",
            ("rung", "outcome"),
            registry=self.registry,
        )
        self._error = Histogram(
            "woodfrog_scheduler_prediction_error_ratio",
            "Of finished climbs from the rung that was foreseen: |taken - predicted| / taken, by rung.",
            ("rung",),
            buckets=_ERROR_RATIO,
            registry=self.registry,
        )

    def ended(
        self,
        order: on.StartClimb,
        event: on.ClimbFinished | on.ClimbRefused | on.ClimbFailed,
        took_s: float,
    ) -> None:
        """One attempt, `took_s` after its order."""
        match event:
            case on.ClimbFinished():
                rung = event.climbed.from_rung
                self._climbs.labels(rung.value, "finished").inc()
                if rung is order.rung and took_s > 0:
                    error = abs(took_s - order.predicted_s) / took_s
                    self._error.labels(rung.value).observe(error)
            case on.ClimbRefused():
                self._climbs.labels(order.rung.value, "refused").inc()
            case on.ClimbFailed():
                self._climbs.labels(order.rung.value, "failed").inc()

    @contextmanager
    def served(self, listen: str) -> Iterator[None]:
        """On /metrics of the address, from a thread; nowhere when it is empty."""
        if not listen:
            yield
            return
        host, _, port = listen.rpartition(":")
        server, thread = start_http_server(int(port), host, self.registry)
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
