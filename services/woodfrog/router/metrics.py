"""The router's metrics. Usage by tenant has its place here."""

from prometheus_client import Counter, Gauge, Histogram

from woodfrog.metering import Usage
from woodfrog.telemetry import metrics

_ADDED_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)
_TENANTS_MAX = 1000  # with series of their own; others share one
_REASONS_MAX = 200  # by gRPC an engine's own are among them
_OTHERS = "others"
_USED = ("requests", "failed", "wakes", "prompt_tokens", "completion_tokens", "slot_s")


class Metrics(metrics.ServiceMetrics):
    def __init__(self) -> None:
        super().__init__("router")
        self._requests = Counter(
            "woodfrog_router_requests",
            "Requests that ended, by route, model and HTTP status (for gRPC: the like of it).",
            ("route", "model", "status"),
            registry=self.registry,
        )
        self._requests_of: dict[tuple[str, str, int], Counter] = {}
        self._request = Histogram(
            "woodfrog_router_request_seconds",
            "Requests from their arrival to the end of their answer, by route.",
            ("route",),
            buckets=metrics.CLIMB_S,
            registry=self.registry,
        )
        self._request_of: dict[str, Histogram] = {}
        self.active = Gauge(
            "woodfrog_router_active_requests", "Requests being served.", registry=self.registry
        )
        self.waiting = Gauge(
            "woodfrog_router_waiting_requests",
            "Requests that wait for a replica.",
            registry=self.registry,
        )
        self._reasons: set[str] = set()
        self._refusals = Counter(
            "woodfrog_router_refusals",
            "Requests that ended with an error of ours, by reason.",
            ("reason",),
            registry=self.registry,
        )
        self.added = Histogram(
            "woodfrog_router_added_seconds",
            "From a request's arrival to its way to the replica, less the wait for one.",
            buckets=_ADDED_S,
            registry=self.registry,
        )
        self._wait = Histogram(
            "woodfrog_router_wait_seconds",
            "Wait for a replica, by the rung that the model was on.",
            ("rung",),
            buckets=metrics.CLIMB_S,
            registry=self.registry,
        )
        self._first_byte_of: dict[str, Histogram] = {}
        self._first_byte = Histogram(
            "woodfrog_router_first_byte_seconds",
            "From a request's arrival to the first byte of its answer, by the rung that the model was on.",
            ("rung",),
            buckets=metrics.CLIMB_S,
            registry=self.registry,
        )
        self.failed = Counter(
            "woodfrog_router_replica_failures",
            "Requests that a replica did not take, by cause: lost or quiesced. Most are then taken by another.",
            ("cause",),
            registry=self.registry,
        )

        self._used = Counter(
            "woodfrog_router_usage",
            "What tenants used, by unit: requests, failed, wakes, prompt_tokens, completion_tokens, slot_s.",
            ("tenant", "unit"),
            registry=self.registry,
        )
        self._used_by: dict[str, tuple[tuple[str, Counter], ...]] = {}

    def used(self, tenant: str, usage: Usage) -> None:
        counters = self._used_by.get(tenant)
        if counters is None:
            if len(self._used_by) >= _TENANTS_MAX:
                tenant = _OTHERS
            counters = tuple((unit, self._used.labels(tenant, unit)) for unit in _USED)
            if tenant is not _OTHERS:
                self._used_by[tenant] = counters
        for unit, counter in counters:
            if amount := getattr(usage, unit):
                counter.inc(amount)

    def ended(self, route: str, model: str, status: int, took_s: float) -> None:
        """`model` is one that exists, or empty: clients must not be able to grow the metric."""
        key = (route, model, status)
        counter = self._requests_of.get(key)
        if counter is None:
            counter = self._requests_of[key] = self._requests.labels(route, model, str(status))
        counter.inc()
        histogram = self._request_of.get(route)
        if histogram is None:
            histogram = self._request_of[route] = self._request.labels(route)
        histogram.observe(took_s)

    def refused(self, reason: str) -> None:
        if reason not in self._reasons:
            if len(self._reasons) >= _REASONS_MAX:
                reason = _OTHERS
            self._reasons.add(reason)
        self._refusals.labels(reason).inc()

    def began(self, rung: str, waited_s: float, first_byte_s: float) -> None:
        exemplar = metrics.exemplar()
        if waited_s:
            self._wait.labels(rung).observe(waited_s, exemplar)
        histogram = self._first_byte_of.get(rung)
        if histogram is None:
            histogram = self._first_byte_of[rung] = self._first_byte.labels(rung)
        histogram.observe(first_byte_s, exemplar)
