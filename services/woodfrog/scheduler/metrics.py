"""The scheduler's metrics."""

from collections import Counter as Count
from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram, Summary

from woodfrog.model.placement import ClusterView
from woodfrog.model.rung import Rung
from woodfrog.scheduler import events as on
from woodfrog.telemetry import metrics

_ERROR_RATIO = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0)
_OTHERS = "others"
_MODELS_MAX = 1000  # beyond it single models are left out: each is eight series


class Metrics(metrics.ServiceMetrics):
    def __init__(self) -> None:
        super().__init__("scheduler")
        self.view: Callable[[], ClusterView] | None = None  #: the loop sets it, and the next two
        self.waiting: Callable[[], int] = lambda: 0
        self.leads: Callable[[], bool] = lambda: False
        self._climbs = Counter(
            "woodfrog_scheduler_climbs",
            "Attempts to climb that ended, by the rung they began on and outcome: finished, refused or failed.",
            ("rung", "outcome"),
            registry=self.registry,
        )
        self._error = Histogram(
            "woodfrog_scheduler_prediction_error_ratio",
            "Of finished climbs from the rung that was foreseen: abs(taken - predicted) / taken, by rung.",
            ("rung",),
            buckets=_ERROR_RATIO,
            registry=self.registry,
        )

        self._taken = Histogram(
            "woodfrog_scheduler_climb_seconds",
            "Finished climbs from order to answer, by the rung they began on.",
            ("rung",),
            buckets=metrics.CLIMB_S,
            registry=self.registry,
        )
        self._predicted = Histogram(
            "woodfrog_scheduler_predicted_seconds",
            "What was predicted of finished climbs from the rung that was foreseen, by rung.",
            ("rung",),
            buckets=metrics.CLIMB_S,
            registry=self.registry,
        )
        self._taken_by_model = Summary(
            "woodfrog_scheduler_model_climb_seconds",
            f"Finished climbs of a model, by the rung they began on; those of more than {_MODELS_MAX} models under one name.",
            ("model", "rung"),
            registry=self.registry,
        )
        self._climbed: set[str] = set()  # models with series of their own
        self.refusals = Counter(
            "woodfrog_scheduler_refusals",
            "Requests that got no replica, by reason.",
            ("reason",),
            registry=self.registry,
        )
        self.descents = Counter(
            "woodfrog_scheduler_descents",
            "Replicas that were lowered, by the rung they came to.",
            ("rung",),
            registry=self.registry,
        )
        self._gauges()

    def _gauges(self) -> None:
        """What `look` sets."""
        waiting = Gauge(
            "woodfrog_scheduler_waiting_requests",
            "Requests that wait for a slot or a climb.",
            registry=self.registry,
        )
        waiting.set_function(lambda: self.waiting())
        leads = Gauge(
            "woodfrog_scheduler_leading_schedulers",
            "1 while this scheduler leads.",
            registry=self.registry,
        )
        leads.set_function(lambda: self.leads())
        self._nodes = Gauge(
            "woodfrog_scheduler_nodes",
            "Nodes that this scheduler sees, by state: ready or draining.",
            ("state",),
            registry=self.registry,
        )
        self._models = Gauge(
            "woodfrog_scheduler_models",
            "Models by the highest rung they are on.",
            ("rung",),
            registry=self.registry,
        )
        self._model = Gauge(
            "woodfrog_scheduler_model_rungs",
            f"1 for the rung that a model is on, 0 for the others; not where there are more than {_MODELS_MAX} models.",
            ("model", "rung"),
            registry=self.registry,
        )
        self._next = Gauge(
            "woodfrog_scheduler_model_predicted_seconds",
            "What a wake of a model would take now, as predicted; likewise, and not where it could not start.",
            ("model",),
            registry=self.registry,
        )
        self._replicas = Gauge(
            "woodfrog_scheduler_model_replicas",
            "Replicas of a model by state; likewise.",
            ("model", "state"),
            registry=self.registry,
        )

    def look(self) -> None:
        if self.view is None:
            return
        view = self.view()
        draining = sum(node.draining for node in view.nodes)
        self._nodes.labels("draining").set(draining)
        self._nodes.labels("ready").set(len(view.nodes) - draining)
        rungs = Count(model.rung for model in view.models)
        for rung in Rung:
            self._models.labels(rung.value).set(rungs[rung])
        self._model.clear()
        self._next.clear()
        self._replicas.clear()
        for model in view.models if len(view.models) <= _MODELS_MAX else ():
            for rung in Rung:
                self._model.labels(model.model, rung.value).set(model.rung is rung)
            if model.predicted_ms is not None:
                self._next.labels(model.model).set(model.predicted_ms / 1000)
            for replica in model.replicas:
                self._replicas.labels(model.model, replica.state.value).inc()

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
                exemplar = metrics.exemplar()
                self._taken.labels(rung.value).observe(took_s, exemplar)
                self._taken_by_model.labels(self._named(order.spec.name), rung.value).observe(
                    took_s
                )
                if rung is order.rung and took_s > 0:
                    self._predicted.labels(rung.value).observe(order.predicted_s, exemplar)
                    error = abs(took_s - order.predicted_s) / took_s
                    self._error.labels(rung.value).observe(error, exemplar)
            case on.ClimbRefused():
                self._climbs.labels(order.rung.value, "refused").inc()
            case on.ClimbFailed():
                self._climbs.labels(order.rung.value, "failed").inc()

    def _named(self, model: str) -> str:
        """As it is labelled: series stay for as long as the process does."""
        if model not in self._climbed and len(self._climbed) >= _MODELS_MAX:
            return _OTHERS
        self._climbed.add(model)
        return model
