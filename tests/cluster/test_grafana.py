"""Real load on a real cluster, scraped by a real Prometheus: each panel has data, each alert is evaluated, each wake is traced."""

import importlib.util
import json
import math
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import openai
import pytest

from tests.capabilities import PROMETHEUS, ROOT, need
from tests.cluster.conftest import Running, wait
from tests.service.processes import free_addresses
from woodfrog.cli import scrape, trace_file
from woodfrog.telemetry import names

NAME = "watched"
GRAFANA = ROOT / "deploy/grafana"
PARK_S = 6.0  # the test's own pause between two requests is far shorter
RATE_WINDOW = "60s"  # longer than the load takes, so that each wake is in one
pytestmark = need("prometheus")


@pytest.fixture(scope="module")
def prometheus(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address, while it scrapes the cluster by deploy/grafana's own configuration."""
    folder = tmp_path_factory.mktemp("prometheus")
    text = (GRAFANA / "prometheus.yaml").read_text().replace("5s", "1s")
    targets = running.cluster.home / scrape.FILE
    (folder / "prometheus.yaml").write_text(
        text.replace("/woodfrog/prometheus-targets.json", str(targets))
    )
    (folder / "alerts.yaml").write_text((GRAFANA / "alerts.yaml").read_text())
    (address,) = free_addresses(1)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                PROMETHEUS, f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address={address}", "--enable-feature=exemplar-storage",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait(lambda: len(scraped(address)) == 5, "five targets that answer")
        yield address
    finally:
        process.terminate()
        process.wait(30)


def scraped(address: str) -> list[Any]:
    try:
        found: list[Any] = get(address, "query", query='up{job="woodfrog"} == 1')["result"]
    except OSError:  # it is starting
        return []
    return found


def get(address: str, what: str, **arguments: object) -> Any:
    url = f"http://{address}/api/v1/{what}?{urllib.parse.urlencode(arguments)}"
    with urllib.request.urlopen(url, timeout=30) as response:
        return json.load(response)["data"]


@contextmanager
def no_trace_wanted(running: Running) -> Iterator[str]:
    """Requests as a client whose own trace is not sampled makes them; its trace's id."""
    trace_id = "5" * 31 + "1"
    header = {"traceparent": f"00-{trace_id}-{'b' * 16}-00"}
    client, running.client = running.client, running.client.with_options(default_headers=header)
    try:
        yield trace_id
    finally:
        running.client = client


def test_under_load_each_panel_has_data_and_each_wake_is_traced(
    running: Running, prometheus: str
) -> None:
    running.add(NAME, park_after_s=PARK_S)
    began = time.time()
    assert running.ask("What is the capital of France?", NAME).rung == "absent"
    running.freeze(NAME)
    first = running.ask("Name three animals.", NAME)
    assert first.rung == "frozen"
    with pytest.raises(openai.NotFoundError):
        running.ask("Are you there?", "nobody")
    running.freeze(NAME)
    look(prometheus)
    with no_trace_wanted(running) as trace_id:
        woken = running.ask("Name three animals.", NAME)
        assert woken.rung == "frozen"
        assert running.ask("And three more?", NAME).rung == "serving"
    wait(lambda: len(tops(running, trace_id)) == 1, "a wake of an unsampled trace")
    check_trace(running, trace_id)
    with pytest.raises(openai.NotFoundError):
        running.ask("Are you there?", "nobody")
    wait(lambda: [each.state.value for each in running.replicas(NAME)] == ["parked"], "a descent")
    look(prometheus)
    check_panels(running, prometheus, began)
    check_alerts(prometheus)
    check_names(running)
    check_cli(running, first.trace_id)
    assert len(tops(running, trace_id)) == 1  # that of the request which woke, not the other's
    running.remove(NAME)


def tops(running: Running, trace_id: str) -> list[Any]:
    """The requests of a trace."""
    spans = trace_file.read(running.cluster.traces_file, trace_id)
    return [span for span in spans if span["name"].startswith("POST ")]


def look(prometheus: str) -> None:
    """Waits until what was until now is scraped."""
    now = time.time()
    query = 'min(timestamp(up{job="woodfrog"}))'
    wait(
        lambda: float(get(prometheus, "query", query=query)["result"][0]["value"][1]) > now,
        "a scrape of all",
    )


def check_trace(running: Running, trace_id: str) -> None:
    """A request that nobody sampled is whole, because it climbed."""
    wait(lambda: rootless(running, trace_id) == ["POST /v1/chat/completions"], "its whole tree")
    spans = trace_file.read(running.cluster.traces_file, trace_id)
    called = {span["name"] for span in spans}
    assert {names.ROUTER_ACQUIRE, names.SCHEDULER_PLACE, names.CLIMB, names.RESTORE_CRIU} <= called
    services = {span["service"] for span in spans}
    assert {"woodfrog-router", "woodfrog-scheduler", "woodfrog-node_agent"} <= services
    rpc = next(span for span in spans if span["name"].endswith("Replicas/Climb"))
    assert rpc["attributes"][names.RPC_SYSTEM] == "grpc"


def rootless(running: Running, trace_id: str) -> list[str]:
    """Names of the spans whose parent is not there; nothing while the climb's is still to come."""
    spans = trace_file.read(running.cluster.traces_file, trace_id)
    ids = {span["span_id"] for span in spans}
    climbed = any(span["name"] == names.CLIMB for span in spans)
    return [span["name"] for span in spans if span["parent_id"] not in ids] if climbed else []


def check_panels(running: Running, prometheus: str, began: float) -> None:
    for name in dashboards().DASHBOARDS:
        path = GRAFANA / f"dashboards/{name}.json"
        drawn = dashboards().draw(name)
        assert path.read_text() == drawn, "run: .venv/bin/python deploy/grafana/dashboards.py"
        without = no_gpu_panels(name)
        for panel in json.loads(drawn)["panels"]:
            for target in panel["targets"]:
                if "expr" in target:  # else a table of Tempo's
                    query = target["expr"].replace("$__rate_interval", RATE_WINDOW)
                    query = query.replace("$model", NAME).replace("$node", running.cluster.node)
                    if panel["title"] in without:
                        check_names_of(query)
                        continue
                    what = f"data of {panel['title']!r}: {query}"
                    # A rate is of two scrapes, the second of which may be to come.
                    wait(partial(has_data, prometheus, query, began), what, 20.0)
    exemplars = get(
        prometheus,
        "query_exemplars",
        query="woodfrog_router_first_byte_seconds_bucket",
        start=began,
        end=time.time(),
    )
    told = {each["labels"]["trace_id"] for series in exemplars for each in series["exemplars"]}
    kept = {span["trace_id"] for span in trace_file.read(running.cluster.traces_file)}
    assert told
    assert told <= kept


def no_gpu_panels(name: str) -> set[str]:
    """Titles of what has no data on a machine without a GPU, as this cluster's is."""
    return {panel.title for panel in dashboards().DASHBOARDS[name].panels if panel.gpu}


def check_names_of(query: str) -> None:
    """Each metric of an expression that has no data here is one that there is."""
    found = re.findall(r"woodfrog_\w+", query)
    assert found
    assert set(found) <= listed_names()


def listed_names() -> set[str]:
    page = (ROOT / "docs/metrics.md").read_text()
    return set(re.findall(r"^\| `(woodfrog_\w+)` ", page, re.MULTILINE))


def has_data(prometheus: str, query: str, began: float) -> bool:
    """Whether the expression gave anything but NaN since then."""
    found = get(prometheus, "query_range", query=query, start=began, end=time.time(), step="1s")
    values = [float(value) for series in found["result"] for _, value in series["values"]]
    return any(not math.isnan(value) for value in values)


def check_alerts(prometheus: str) -> None:
    def evaluated() -> list[Any]:
        (group,) = get(prometheus, "rules")["groups"]
        return [rule for rule in group["rules"] if rule["health"] == "ok"]

    count = (GRAFANA / "alerts.yaml").read_text().count("- alert:")
    wait(lambda: len(evaluated()) == count, f"{count} alerts evaluated")
    firing = [rule["name"] for rule in evaluated() if rule["state"] == "firing"]
    assert firing == []


def check_names(running: Running) -> None:
    """docs/metrics.md lists what the services really expose."""
    exposed = set()
    for address in running.cluster.metrics.values():
        request = urllib.request.Request(f"http://{address}/metrics")
        with urllib.request.urlopen(request, timeout=30) as response:
            text = response.read().decode()
        exposed |= set(re.findall(r"^# TYPE (woodfrog_\w+)", text, re.MULTILINE))
    exposed = {name for name in exposed if not name.endswith("_created")}
    assert exposed == listed_names()


def check_cli(running: Running, trace_id: str) -> None:
    def said(*arguments: str) -> str:
        home = str(running.cluster.home)
        command = [sys.executable, "-m", "woodfrog.cli", "--home", home, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    assert trace_id in said("trace")
    lines = said("trace", trace_id[:12]).splitlines()
    assert lines[0].startswith(f"trace {trace_id}")
    assert any(line.split()[:2] == ["restore.criu", "node_agent"] for line in lines)
    (row,) = [line for line in said("top", "--once").splitlines() if line.startswith(f"{NAME} ")]
    assert row.split()[1:3] == ["●●●●··", "parked"]


def dashboards() -> Any:
    path = GRAFANA / "dashboards.py"
    spec = importlib.util.spec_from_file_location("dashboards", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dashboards"] = module
    spec.loader.exec_module(module)
    return module
