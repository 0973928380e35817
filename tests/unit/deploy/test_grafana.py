"""That the files of deploy/grafana agree with each other; neither Grafana nor Tempo is run in any test."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
GRAFANA = ROOT / "deploy/grafana"
COMPOSE = (GRAFANA / "compose.yaml").read_text()
SOURCES = (GRAFANA / "provisioning/datasources/woodfrog.yaml").read_text()
PROVIDERS = (GRAFANA / "provisioning/dashboards/woodfrog.yaml").read_text()
TEMPO = (GRAFANA / "tempo.yaml").read_text()


def mounts() -> dict[str, str]:
    """Where each file or folder of ours is in its container."""
    return dict(re.findall(r"- \./([\w./]+):([\w./-]+):ro", COMPOSE))


def test_what_is_mounted_is_there_and_is_looked_for() -> None:
    assert all((GRAFANA / name).exists() for name in mounts())
    for name in ("prometheus.yaml", "tempo.yaml"):
        assert f"config.file={mounts()[name]}" in COMPOSE
    assert mounts()["provisioning"] == "/etc/grafana/provisioning"
    assert f"path: {mounts()['dashboards']}\n" in PROVIDERS
    prometheus = (GRAFANA / "prometheus.yaml").read_text()
    assert "/woodfrog/prometheus-targets.json" in prometheus
    assert "${WOODFROG_HOME:-../../.woodfrog}:/woodfrog:ro" in COMPOSE
    assert Path(mounts()["alerts.yaml"]).name in prometheus
    assert "--enable-feature=exemplar-storage" in COMPOSE


def test_dashboards_know_the_sources_and_no_others() -> None:
    uids = set(re.findall(r"^    uid: (\w+)$", SOURCES, re.MULTILINE))
    assert uids == {"prometheus", "tempo"}
    boards = [json.loads(path.read_text()) for path in GRAFANA.glob("dashboards/*.json")]
    panels = [panel for board in boards for panel in board["panels"]]
    assert {panel["datasource"]["uid"] for panel in panels} == uids
    assert len({board["uid"] for board in boards}) == len(boards) == 5
    for board in boards:
        for each in board["templating"]["list"]:
            assert each["datasource"]["uid"] == "prometheus"


def test_each_source_is_where_it_listens_and_leads_to_the_other() -> None:
    (listens,) = re.findall(r"--web.listen-address=(\S+)", COMPOSE)
    assert f"url: http://{listens}\n" in SOURCES
    port, address = re.findall(r"http_listen_port: (\d+), http_listen_address: ([\d.]+)", TEMPO)[0]
    assert f"url: http://{address}:{port}\n" in SOURCES
    (otlp,) = re.findall(r'grpc: \{endpoint: "([\d.:]+)"\}', TEMPO)
    assert f"OTEL_EXPORTER_OTLP_ENDPOINT=http://{otlp} " in (GRAFANA / "README.md").read_text()
    assert re.search(
        r"exemplarTraceIdDestinations:\n\s+- name: trace_id\n\s+datasourceUid: tempo", SOURCES
    )
    assert re.search(r"tracesToMetrics:\n\s+datasourceUid: prometheus", SOURCES)
    (query,) = re.findall(r"query: (histogram_quantile.*)", SOURCES)
    listed = (ROOT / "docs/metrics.md").read_text()
    (metric,) = re.findall(r"woodfrog_\w+_seconds", query)
    assert f"`{metric}`" in listed
