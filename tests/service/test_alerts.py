"""Prometheus's own trial of the alert rules: each fires on what it is for, and none on a cluster that is well."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.capabilities import PROMETHEUS, ROOT, need

RULES = ROOT / "deploy/grafana/alerts.yaml"
PROMTOOL = PROMETHEUS.with_name("promtool")
MINUTES = 40
pytestmark = need("prometheus")

_ROUTER = 'job="woodfrog",service="router",instance="r:1"'
_NODE = 'job="woodfrog",service="node_agent",instance="n:1",node="node-1"'
_FIRST_BYTE = "woodfrog_router_first_byte_seconds_bucket"
#: Series and values a minute, of a cluster that is well; and by alert, what makes it fire and the alert's labels.
WELL = {
    f"up{{{_ROUTER}}}": "1x40",
    "woodfrog_scheduler_leading_schedulers{}": "1x40",
    f'woodfrog_router_requests_total{{{_ROUTER},status="200"}}': "0+1000x40",
    f'woodfrog_router_requests_total{{{_ROUTER},status="503"}}': "0+5x40",
    'woodfrog_scheduler_climbs_total{outcome="finished"}': "0+100x40",
    'woodfrog_scheduler_climbs_total{outcome="failed"}': "0+5x40",
    f'woodfrog_node_agent_fallbacks_total{{{_NODE},reason="CANARY_DIFFERS"}}': "0 1x39",
    f'{_FIRST_BYTE}{{{_ROUTER},rung="frozen",le="0.5"}}': "0+100x40",
    f'{_FIRST_BYTE}{{{_ROUTER},rung="frozen",le="30"}}': "0+100x40",
    f'{_FIRST_BYTE}{{{_ROUTER},rung="frozen",le="+Inf"}}': "0+100x40",
    f"woodfrog_weight_fs_cache_bytes{{{_NODE}}}": "90x40",
    f"woodfrog_weight_fs_cache_limit_bytes{{{_NODE}}}": "100x40",
    f'woodfrog_router_spans_total{{{_ROUTER},outcome="exported"}}': "0+1000x40",
    f'woodfrog_router_spans_total{{{_ROUTER},outcome="dropped"}}': "7x40",
}
ILL: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "WoodfrogDown": (
        {f"up{{{_ROUTER}}}": "0x40"},
        {"job": "woodfrog", "service": "router", "instance": "r:1"},
    ),
    "WoodfrogNobodyLeads": ({"woodfrog_scheduler_leading_schedulers{}": "0x40"}, {}),
    "WoodfrogRequestsFail": (
        {f'woodfrog_router_requests_total{{{_ROUTER},status="503"}}': "0+20x40"},
        {},
    ),
    "WoodfrogClimbsFail": (
        {'woodfrog_scheduler_climbs_total{outcome="failed"}': "0+20x40"},
        {},
    ),
    "WoodfrogSnapshotsPassedOver": (
        {f'woodfrog_node_agent_fallbacks_total{{{_NODE},reason="CANARY_DIFFERS"}}': "0+1x40"},
        {"node": "node-1", "reason": "CANARY_DIFFERS"},
    ),
    "WoodfrogWakesSlow": ({f'{_FIRST_BYTE}{{{_ROUTER},rung="frozen",le="0.5"}}': "0+95x40"}, {}),
    "WoodfrogCacheFull": (
        {f"woodfrog_weight_fs_cache_bytes{{{_NODE}}}": "96x40"},
        {"job": "woodfrog", "service": "node_agent", "instance": "n:1", "node": "node-1"},
    ),
    "WoodfrogSpansLost": (
        {f'woodfrog_router_spans_total{{{_ROUTER},outcome="dropped"}}': "0+1x40"},
        {"service": "router"},
    ),
}


def summaries() -> dict[str, str]:
    """By alert."""
    form = r'- alert: (\w+)\n.*?annotations: \{summary: "(.*?)"\}'
    return dict(re.findall(form, RULES.read_text(), re.DOTALL))


def test_each_rule_is_tried() -> None:
    assert ILL.keys() == summaries().keys()


@pytest.mark.parametrize("ill", [None, *ILL])
def test_what_fires_is_what_is_ill(tmp_path: Path, ill: str | None) -> None:
    changes, labels = ILL[ill] if ill is not None else ({}, {})
    series = [{"series": name, "values": values} for name, values in (WELL | changes).items()]
    wanted = [
        {
            "eval_time": f"{MINUTES}m",
            "alertname": name,
            "exp_alerts": [expected(summary, labels)] if name == ill else [],
        }
        for name, summary in summaries().items()
    ]
    trial = {
        "rule_files": [str(RULES)],
        "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": wanted}],
    }
    file = tmp_path / "trial.yaml"
    file.write_text(json.dumps(trial))
    done = subprocess.run(
        [PROMTOOL, "test", "rules", file], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def expected(summary: str, labels: dict[str, str]) -> dict[str, Any]:
    """The alert, with its labels in its text."""

    def told(label: re.Match[str]) -> str:
        return labels[label[1]]

    text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", told, summary)
    return {"exp_labels": labels, "exp_annotations": {"summary": text}}
