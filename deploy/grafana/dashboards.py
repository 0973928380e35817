"""Writes Grafana's dashboards into deploy/grafana/dashboards.

.venv/bin/python deploy/grafana/dashboards.py
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "dashboards"
RANGE = "$__rate_interval"
_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 3  # in Grafana's grid of 24 columns
_PROMETHEUS = {"type": "prometheus", "uid": "prometheus"}
_TEMPO = {"type": "tempo", "uid": "tempo"}


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    unit: str  # one of Grafana's
    queries: tuple[tuple[str, str], ...]  # PromQL, and how its lines are called
    stacked: bool = False
    gpu: bool = False  # a node without GPUs has no data for it


@dataclass(frozen=True, slots=True)
class Dashboard:
    title: str
    panels: tuple[Panel, ...]
    variable: str = ""  # a label: of whose values one is chosen
    values_of: str = ""  # the metric that has it
    traces: str = ""  # TraceQL of a table of traces


def rate(metric: str, by: str, where: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{where}[{RANGE}]))"


def quantile(share: float, metric: str, by: str, where: str = "") -> str:
    return f"histogram_quantile({share}, sum by (le, {by}) (rate({metric}_bucket{where}[{RANGE}])))"


def p50_and_p99(metric: str, by: str, where: str = "") -> tuple[tuple[str, str], ...]:
    return (
        (quantile(0.5, metric, by, where), f"p50 {{{{{by}}}}}"),
        (quantile(0.99, metric, by, where), f"p99 {{{{{by}}}}}"),
    )


_OVERVIEW = Dashboard(
    "woodfrog: overview",
    (
        Panel("Requests", "reqps", ((rate("woodfrog_router_requests_total", "status"), "{{status}}"),)),
        Panel("First byte, by the rung that the model was on", "s", p50_and_p99("woodfrog_router_first_byte_seconds", "rung")),
        Panel("Waiting and served", "short", (
            ("sum(woodfrog_router_waiting_requests)", "wait in routers"),
            ("sum(woodfrog_scheduler_waiting_requests)", "wait in schedulers"),
            ("sum(woodfrog_router_active_requests)", "being served"),
        )),
        Panel("Models by rung", "short", (("max by (rung) (woodfrog_scheduler_models)", "{{rung}}"),), stacked=True),
        Panel("Climbs by rung and outcome", "ops", (
            (rate("woodfrog_scheduler_climbs_total", "rung, outcome"), "{{rung}} {{outcome}}"),
        )),
        Panel("Climbs: taken and predicted", "s", (
            (quantile(0.5, "woodfrog_scheduler_climb_seconds", "rung"), "taken {{rung}}"),
            (quantile(0.5, "woodfrog_scheduler_predicted_seconds", "rung"), "predicted {{rung}}"),
        )),
        Panel("Predictions: error, nine in ten", "percentunit", (
            (quantile(0.9, "woodfrog_scheduler_prediction_error_ratio", "rung"), "{{rung}}"),
        )),
        Panel("Requests, to the end of their answer", "s", p50_and_p99("woodfrog_router_request_seconds", "route")),
        Panel("Refusals", "ops", ((rate("woodfrog_router_refusals_total", "reason"), "{{reason}}"),)),
        Panel("Added by the router", "s", (
            (quantile(0.5, "woodfrog_router_added_seconds", "service"), "p50"),
            (quantile(0.99, "woodfrog_router_added_seconds", "service"), "p99"),
        )),
        Panel("Store", "bytes", (
            ("sum by (kind) (woodfrog_snapshot_store_manifest_bytes)", "{{kind}}, as manifests name them"),
            ("sum(woodfrog_snapshot_store_chunk_bytes)", "chunks on disk"),
        )),
        Panel("Descents", "ops", ((rate("woodfrog_scheduler_descents_total", "rung"), "to {{rung}}"),)),
        Panel("Spans that were lost", "ops", (
            (rate("", "service", '{__name__=~"woodfrog_.+_spans_total",outcome!="exported"}'), "{{service}}"),
        )),
    ),
)  # fmt: skip

_MODEL = '{model="$model"}'
_LADDER = Dashboard(
    "woodfrog: one model's ladder",
    (
        Panel("Rung", "short", ((f"max by (rung) (woodfrog_scheduler_model_rungs{_MODEL})", "{{rung}}"),), stacked=True),
        Panel("Replicas by state", "short", (
            (f"max by (state) (woodfrog_scheduler_model_replicas{_MODEL})", "{{state}}"),
        ), stacked=True),
        Panel("Requests", "reqps", (
            (rate("woodfrog_router_requests_total", "route, status", _MODEL), "{{route}} {{status}}"),
        )),
        Panel("A wake now, as predicted", "s", (
            (f"max(woodfrog_scheduler_model_predicted_seconds{_MODEL})", "predicted"),
        )),
        Panel("Climbs by the rung they began on", "ops", (
            (rate("woodfrog_scheduler_model_climb_seconds_count", "rung", _MODEL), "{{rung}}"),
        )),
        Panel("Climbs, mean", "s", ((
            f"{rate('woodfrog_scheduler_model_climb_seconds_sum', 'rung', _MODEL)}"
            f" / {rate('woodfrog_scheduler_model_climb_seconds_count', 'rung', _MODEL)}",
            "{{rung}}",
        ),)),
    ),
    variable="model",
    values_of="woodfrog_scheduler_model_rungs",
)  # fmt: skip

_NODE = '{node="$node"}'
_ONE_NODE = Dashboard(
    "woodfrog: one node",
    (
        Panel("Replicas by state", "short", (
            (f"sum by (state) (woodfrog_node_agent_replicas{_NODE})", "{{state}}"),
        ), stacked=True),
        Panel("Memory promised, by state", "bytes", (
            (f"sum by (state) (woodfrog_node_agent_memory_promised_bytes{_NODE})", "{{state}}"),
            (f"sum(woodfrog_node_agent_memory_bytes{_NODE})", "of"),
        )),
        Panel("Climbs by rung and outcome", "ops", (
            (rate("woodfrog_node_agent_climbs_total", "rung, outcome", _NODE), "{{rung}} {{outcome}}"),
        )),
        Panel("Weights and snapshots by tier", "bytes", (
            (f"sum by (kind, tier) (woodfrog_weight_fs_resident_bytes{_NODE})", "{{kind}} {{tier}}"),
            (f"sum(woodfrog_weight_fs_cache_limit_bytes{_NODE})", "limit"),
        )),
        Panel("Fetched from the store", "Bps", (
            (rate("woodfrog_weight_fs_fetched_bytes_total", "why", _NODE), "{{why}}"),
        )),
        Panel("Faults that waited for a chunk", "ops", (
            (f"sum(rate(woodfrog_weight_fs_fault_seconds_count{_NODE}[{RANGE}]))", "faults"),
        )),
        Panel("Checkpoints", "ops", (
            (rate("woodfrog_node_agent_checkpoints_total", "outcome", _NODE), "{{outcome}}"),
        )),
        Panel("Stages of climbs, median", "s", (
            (quantile(0.5, "woodfrog_node_agent_stage_seconds", "stage", _NODE), "{{stage}}"),
        )),
        Panel("GPU memory promised", "bytes", (
            (f"sum by (gpu) (woodfrog_node_agent_gpu_promised_bytes{_NODE})", "{{gpu}}"),
            (f"sum by (gpu) (woodfrog_node_agent_gpu_memory_bytes{_NODE})", "{{gpu}}, of"),
        ), gpu=True),
        Panel("Weights on GPUs and in pinned memory", "bytes", (
            (f"sum by (gpu, tier) (woodfrog_node_agent_weights_bytes{_NODE})", "{{gpu}} {{tier}}"),
        ), stacked=True, gpu=True),
    ),
    variable="node",
    values_of="woodfrog_node_agent_memory_bytes",
)  # fmt: skip


def _used(unit: str) -> str:
    return rate("woodfrog_router_usage_total", "tenant", f'{{unit="{unit}"}}')


_TENANTS = Dashboard(
    "woodfrog: tenants",
    (
        Panel("Requests", "reqps", ((_used("requests"), "{{tenant}}"),)),
        Panel("Requests that failed", "reqps", ((_used("failed"), "{{tenant}}"),)),
        Panel("Requests that waited for a climb", "reqps", ((_used("wakes"), "{{tenant}}"),)),
        Panel("Tokens of prompts", "ops", ((_used("prompt_tokens"), "{{tenant}}"),), stacked=True),
        Panel("Tokens of answers", "ops", ((_used("completion_tokens"), "{{tenant}}"),), stacked=True),
        Panel("Slots held", "short", ((_used("slot_s"), "{{tenant}}"),), stacked=True),
    ),
)  # fmt: skip

_WATERFALL = Dashboard(
    "woodfrog: wake waterfall",
    (
        Panel("Time of a climb by stage, mean", "s", ((
            "sum by (stage) (rate(woodfrog_node_agent_stage_seconds_sum"
            f"[{RANGE}])) / ignoring(stage) group_left sum(rate(woodfrog_node_agent_climb_seconds_count[{RANGE}]))",
            "{{stage}}",
        ),), stacked=True),
        Panel("Climbs on nodes", "s", p50_and_p99("woodfrog_node_agent_climb_seconds", "rung")),
        Panel("Wait of requests", "s", p50_and_p99("woodfrog_router_wait_seconds", "rung")),
    ),
    traces='{ name = "climb" }',
)  # fmt: skip

DASHBOARDS = {
    "overview": _OVERVIEW,
    "ladder": _LADDER,
    "node": _ONE_NODE,
    "waterfall": _WATERFALL,
    "tenants": _TENANTS,
}


def draw(name: str) -> str:
    """A dashboard as Grafana reads it."""
    board = DASHBOARDS[name]
    panels = [_panel(number, panel) for number, panel in enumerate(board.panels)]
    if board.traces:
        panels.append(_traces(len(panels), board.traces))
    variables = [_variable(board)] if board.variable else []
    value = {
        "uid": f"woodfrog-{name}",
        "title": board.title,
        "tags": ["woodfrog"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": variables},
        "panels": panels,
    }
    return json.dumps(value, indent=1) + "\n"


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    stacking = {"stacking": {"mode": "normal"}, "fillOpacity": 30} if panel.stacked else {}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": _PROMETHEUS,
        "gridPos": _place(number),
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "custom": stacking},
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + each),
                "datasource": _PROMETHEUS,
                "expr": query,
                "legendFormat": legend,
                "exemplar": "_bucket" in query,
            }
            for each, (query, legend) in enumerate(panel.queries)
        ],
    }


def _traces(number: int, query: str) -> dict[str, Any]:
    target = {"refId": "A", "datasource": _TEMPO, "queryType": "traceql", "query": query}
    return {
        "id": number + 1,
        "type": "table",
        "title": "Traces with a climb; each opens its waterfall",
        "datasource": _TEMPO,
        "gridPos": {"x": 0, "y": _HEIGHT * (number // _COLUMNS + 1), "w": 24, "h": 12},
        "targets": [target | {"limit": 50, "tableType": "traces"}],
    }


def _place(number: int) -> dict[str, int]:
    row, column = divmod(number, _COLUMNS)
    return {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}


def _variable(board: Dashboard) -> dict[str, Any]:
    query = f"label_values({board.values_of}, {board.variable})"
    return {
        "name": board.variable,
        "type": "query",
        "datasource": _PROMETHEUS,
        "query": {"query": query, "refId": "values"},
        "refresh": 2,
        "sort": 1,
    }


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for _name in DASHBOARDS:
        (OUT / f"{_name}.json").write_text(draw(_name))
