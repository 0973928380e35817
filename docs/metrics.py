"""Writes docs/metrics.md, the table of all metrics, from the services' metrics modules.

.venv/bin/python docs/metrics.py
"""

from pathlib import Path
from typing import Any

from woodfrog.node_agent.metrics import Metrics as NodeAgentMetrics
from woodfrog.node_agent.state import NodeState
from woodfrog.router.metrics import Metrics as RouterMetrics
from woodfrog.scheduler.metrics import Metrics as SchedulerMetrics
from woodfrog.snapshot_store.metrics import Metrics as SnapshotStoreMetrics
from woodfrog.snapshot_store.state import Inventory
from woodfrog.telemetry.metrics import ServiceMetrics
from woodfrog.weight_fs.metrics import Metrics as WeightFsMetrics

OUT = Path(__file__).with_suffix(".md")
_HEAD = """# Metrics

Each service serves its own as OpenMetrics: where `WOODFROG_<SERVICE>_METRICS_LISTEN` says, below `/metrics`; keep those ports from users, for they tell what each tenant used. `woodfrog up` chooses the ports and lists them in `.woodfrog/prometheus-targets.json`, which a Prometheus reads by `file_sd_configs`; [deploy/grafana](../deploy/grafana/README.md) has one. Buckets carry exemplars with `trace_id`, where the trace is exported.

A metric is called `woodfrog_<service>_<what>_<unit>`. Written by `docs/metrics.py`; do not edit.
"""


def services() -> dict[str, ServiceMetrics]:
    """Each service's metrics, of no process that runs."""
    nothing: Any = type("NoCache", (), {"trees": {}, "used_bytes": 0, "bytes_max": 0})()
    return {
        "router": RouterMetrics(),
        "scheduler": SchedulerMetrics(),
        "node_agent": NodeAgentMetrics(NodeState(0, 1, ())),
        "weight_fs": WeightFsMetrics(nothing),
        "snapshot_store": SnapshotStoreMetrics(Inventory()),
    }


def draw() -> str:
    page = _HEAD
    for service, metrics in services().items():
        page += f"\n## {service}\n\n| metric | kind | says |\n| --- | --- | --- |\n"
        for family in metrics.registry.collect():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            page += f"| `{name}` | {family.type} | {family.documentation} |\n"
    return page


if __name__ == "__main__":
    OUT.write_text(draw())
