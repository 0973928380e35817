"""What the metrics modules of all services share: a registry, where it is served, and exemplars.

A metric is called woodfrog_<service>_<what>_<unit>. docs/metrics.md lists all; a test compares it with the code.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from opentelemetry import trace
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from woodfrog.errors import FailedPrecondition
from woodfrog.telemetry.export import Provider

log = logging.getLogger(__name__)
CLIMB_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_LOOK_S = 2.0  # a scrape waits so long for the loop at most


class ServiceMetrics:
    """A registry of its own, so that two services in one process do not collide. Subclasses add to `registry`."""

    def __init__(self, service: str) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Spans(service))

    def look(self) -> None:
        """Subclasses set gauges here that are read off their service's state; on its loop, before each scrape."""

    @contextmanager
    def served(self, listen: str) -> Iterator[None]:
        """On /metrics of the address, from a thread; nowhere when it is empty. Raises FailedPrecondition ADDRESS_TAKEN."""
        if not listen:
            yield
            return
        host, _, port = listen.rpartition(":")
        looking = _Looking(asyncio.get_running_loop(), self.look, self.registry)
        try:
            server, thread = start_http_server(int(port), host, looking)
        except OSError as error:
            raise FailedPrecondition(
                "ADDRESS_TAKEN",
                f"metrics cannot be served on {listen}: {error.strerror}; stop what uses it or choose another",
                address=listen,
            ) from None
        try:
            yield
        finally:
            looking.stop()
            server.shutdown()
            server.server_close()
            thread.join()


class _Looking(CollectorRegistry):
    """Has the service look at its state before each scrape. Where its loop hangs, a scrape tells what was seen last."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, look: Callable[[], None], behind: CollectorRegistry
    ) -> None:
        super().__init__()
        self._loop = loop
        self._look = look
        self._behind = behind
        self._stopped = False

    def stop(self) -> None:
        """From now on the loop is not waited for: it waits for the server to end."""
        self._stopped = True

    def collect(self) -> Iterator[Metric]:
        async def look() -> None:
            self._look()

        if not self._stopped:
            looked = asyncio.run_coroutine_threadsafe(look(), self._loop)
            try:
                looked.result(_LOOK_S)
            except TimeoutError:
                looked.cancel()
                log.warning("metrics are old: the loop did not answer", extra={"within_s": _LOOK_S})
        yield from self._behind.collect()


class _Spans(Collector):
    def __init__(self, service: str) -> None:
        self._name = f"woodfrog_{service}_spans"

    def collect(self) -> Iterator[Metric]:
        told = CounterMetricFamily(
            self._name,
            "Spans by outcome: exported, failed on their way, or dropped because the queue was full.",
            labels=("outcome",),
        )
        provider = trace.get_tracer_provider()
        sent = provider.sent if isinstance(provider, Provider) else None
        dropped = provider.dropped if isinstance(provider, Provider) else 0
        told.add_metric(("exported",), sent.exported if sent else 0)
        told.add_metric(("failed",), sent.failed if sent else 0)
        told.add_metric(("dropped",), dropped)
        yield told


def exemplar() -> dict[str, str] | None:
    """Names the current span's trace; None where that is not exported."""
    context = trace.get_current_span().get_span_context()
    return {"trace_id": f"{context.trace_id:032x}"} if context.trace_flags.sampled else None
