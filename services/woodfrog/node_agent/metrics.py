"""The node agent's metrics."""

from prometheus_client import Counter, Gauge, Histogram

from woodfrog.model.node import Climbed, ReplicaState
from woodfrog.node_agent.state import NodeState
from woodfrog.telemetry import metrics

_STAGE_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    60.0,
    300.0,
)


class Metrics(metrics.ServiceMetrics):
    def __init__(self, state: NodeState) -> None:
        super().__init__("node_agent")
        self._state = state
        self._climbs = Counter(
            "woodfrog_node_agent_climbs",
            "Climbs that ended on this node, by the rung they really began on (empty: they did not finish)"
            " and outcome: finished, refused or failed.",
            ("rung", "outcome"),
            registry=self.registry,
        )
        self._climb = Histogram(
            "woodfrog_node_agent_climb_seconds",
            "Finished climbs from order to serving, by rung.",
            ("rung",),
            buckets=metrics.CLIMB_S,
            registry=self.registry,
        )
        self._stage = Histogram(
            "woodfrog_node_agent_stage_seconds",
            "Stages of finished climbs, by the span's name.",
            ("stage",),
            buckets=_STAGE_S,
            registry=self.registry,
        )
        self._refusals = Counter(
            "woodfrog_node_agent_refusals",
            "Climbs that did not finish, by reason.",
            ("reason",),
            registry=self.registry,
        )
        self.fallbacks = Counter(
            "woodfrog_node_agent_fallbacks",
            "Snapshots that were passed over in a climb, by reason.",
            ("reason",),
            registry=self.registry,
        )
        self.checkpoints = Counter(
            "woodfrog_node_agent_checkpoints",
            "Checkpoints that ended, by outcome: finished or failed.",
            ("outcome",),
            registry=self.registry,
        )
        self._gauges()

    def _gauges(self) -> None:
        self._replicas = Gauge(
            "woodfrog_node_agent_replicas",
            "Replicas of this node, by state.",
            ("state",),
            registry=self.registry,
        )
        self._promised = Gauge(
            "woodfrog_node_agent_memory_promised_bytes",
            "Memory promised to replicas, by their state: what the rungs of the ladder cost.",
            ("state",),
            registry=self.registry,
        )
        memory = Gauge(
            "woodfrog_node_agent_memory_bytes",
            "Memory that may be promised to replicas.",
            registry=self.registry,
        )
        memory.set_function(lambda: self._state.memory_bytes)
        draining = Gauge(
            "woodfrog_node_agent_draining_nodes",
            "1 while this node drains.",
            registry=self.registry,
        )
        draining.set_function(lambda: self._state.draining)
        self._gpu_promised = Gauge(
            "woodfrog_node_agent_gpu_promised_bytes",
            "GPU memory promised, by GPU.",
            ("gpu",),
            registry=self.registry,
        )
        self._gpu = Gauge(
            "woodfrog_node_agent_gpu_memory_bytes",
            "GPU memory that may be promised, by GPU.",
            ("gpu",),
            registry=self.registry,
        )

        self._weights = Gauge(
            "woodfrog_node_agent_weights_bytes",
            "Weights that a GPU has at hand, by GPU and tier: gpu, or pinned memory of the host.",
            ("gpu", "tier"),
            registry=self.registry,
        )

    def look(self) -> None:
        promises = [*self._state.promises.values()]
        for each in ReplicaState:
            theirs = [promise for promise in promises if promise.state is each]
            self._replicas.labels(each.value).set(len(theirs))
            self._promised.labels(each.value).set(sum(promise.memory_bytes for promise in theirs))
        for gpu in self._state.gpus.values():
            facts = gpu.facts()
            self._gpu_promised.labels(facts.uuid).set(facts.promised_bytes)
            self._gpu.labels(facts.uuid).set(facts.memory_bytes)
            self._weights.labels(facts.uuid, "gpu").set(sum(gpu.weights.values()))
            self._weights.labels(facts.uuid, "pinned").set(sum(gpu.pinned.values()))

    def finished(self, climbed: Climbed, took_s: float) -> None:
        rung, exemplar = climbed.from_rung.value, metrics.exemplar()
        self._climbs.labels(rung, "finished").inc()
        self._climb.labels(rung).observe(took_s, exemplar)
        for stage in climbed.stages:
            self._stage.labels(stage.name).observe(stage.duration_s, exemplar)

    def ended(self, reason: str, *, refused: bool) -> None:
        """A climb that did not finish."""
        self._climbs.labels("", "refused" if refused else "failed").inc()
        self._refusals.labels(reason).inc()
