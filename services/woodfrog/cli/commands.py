"""What `woodfrog ps`, `models` and `snapshots` print and do."""

import asyncio
import time
import urllib.error
import urllib.parse
import urllib.request
from http import HTTPStatus
from pathlib import Path

from woodfrog.cli import models, tenants
from woodfrog.cli.cluster import Cluster
from woodfrog.cli.show import count, size, table
from woodfrog.clients.scheduler import SchedulerClient
from woodfrog.errors import NotFound, Unavailable
from woodfrog.model.placement import ClusterView, ModelView, NodeView, Predictions
from woodfrog.model.spec import ModelSpec

_TIMEOUT_S = 5.0
_KNOWN_S = 10.0
_TOLD_S = 0.2
_NINE_IN_TEN = 10


async def describe(cluster: Cluster) -> ClusterView:
    async with SchedulerClient(cluster.address("scheduler"), router="") as scheduler:
        return await scheduler.describe()


async def ps(cluster: Cluster) -> None:
    view = await describe(cluster)
    rows = [
        (
            m.model,
            m.rung.value,
            ", ".join(f"{r.replica_id} {r.state.value} ({r.active} active)" for r in m.replicas)
            or "-",
            "-" if m.idle_s is None else f"{m.idle_s:.0f} s",
            "-" if m.predicted_ms is None else f"{m.predicted_ms:.0f} ms",
        )
        for m in view.models
    ]
    print(table(("MODEL", "RUNG", "REPLICAS", "IDLE", "NEXT WAKE (PREDICTED)"), rows))
    for model in view.models:
        if model.trouble:
            print(trouble_line(model))
    for node in view.nodes:
        print(node_line(node))
    if view.predictions.count:
        print(predictions_line(view.predictions))


def predictions_line(told: Predictions) -> str:
    """Of few the ninth in ten is the worst."""
    which = "nine in ten of the last" if told.count >= _NINE_IN_TEN else "the last"
    return f"{which} {count(told.count, 'predicted climb')}: off by {told.error_p90:.0%} at most"


def trouble_line(model: ModelView) -> str:
    """Why it does not start, or when and why it last did not."""
    if model.trouble_age_s is None:
        return f"{model.model} cannot start: {model.trouble}"
    return f"{model.model} did not start {model.trouble_age_s:.0f} s ago: {model.trouble}"


def node_line(node: NodeView) -> str:
    """A node's memory, and that of each of its GPUs."""
    kinds = [("", node.memory_promised_bytes, node.memory_bytes)]
    kinds += [(f"{gpu.uuid} ", gpu.promised_bytes, gpu.memory_bytes) for gpu in node.gpus]
    told = "; ".join(f"{what}{size(part)} of {size(whole)}" for what, part, whole in kinds)
    return f"node {node.node}: {told} promised{', draining' if node.draining else ''}"


async def models_add(
    cluster: Cluster, spec: ModelSpec, path: Path, dtype: str | None = None
) -> None:
    if spec.tenant:
        await tenants.check(cluster, spec.tenant)
    async with models.connect(cluster) as cell:
        added = await models.add(cell, spec, path, lambda line: print(f"  {line}"), dtype)
    await wait_known(cluster, spec.name)
    print(f"added {added.name}: {size(added.weights_bytes)}, {added.weights}")


async def wait_known(cluster: Cluster, model: str) -> None:
    """Until each router and the scheduler have heard of a model, so that it can be asked. Raises Unavailable."""
    deadline = time.monotonic() + _KNOWN_S
    url = f"{cluster.base_url}/models/{urllib.parse.quote(model)}"
    while True:
        view = await describe(cluster)
        listed = await asyncio.to_thread(_answers, url, cluster.connections)
        if listed and any(known.model == model for known in view.models):
            return
        if time.monotonic() > deadline:
            raise Unavailable(
                "NOT_KNOWN_YET",
                f"{model} is added, but the gateway does not list it after {_KNOWN_S:.0f} s; see woodfrog ps",
            )
        await asyncio.sleep(0.02)


def _answers(url: str, connections: int) -> bool:
    """On each of so many."""
    try:
        for _ in range(connections):
            urllib.request.urlopen(url, timeout=_TIMEOUT_S).close()
        return True
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.UNAUTHORIZED:
            return False
        time.sleep(_TOLD_S)  # it does not tell us, and hears of a model within milliseconds
        return True
    except OSError:
        return False


async def models_list(cluster: Cluster) -> None:
    async with models.connect(cluster) as cell:
        specs = await cell.catalog.list_models()
    rows = [
        (
            s.name,
            size(s.weights_bytes),
            s.engine,
            size(s.gpu_bytes) if s.gpu_bytes else "-",
            f"{s.park_after_s:g} s",
            "by plan" if s.freeze_after_s is None else f"{s.freeze_after_s:g} s",
            (s.tenant or "-") + (", dedicated" if s.dedicated else ""),
        )
        for s in specs
    ]
    header = (
        "MODEL", "WEIGHTS", "ENGINE", "GPU MEMORY", "PARKS AFTER", "FREEZES AFTER", "TENANT",
    )  # fmt: skip
    print(table(header, rows))


async def models_rm(cluster: Cluster, name: str) -> None:
    async with models.connect(cluster) as cell:
        await models.remove(cell, name)
    print(f"removed {name}")


async def snapshots_list(cluster: Cluster) -> None:
    async with models.connect(cluster) as cell:
        pointers = await cell.catalog.list_snapshots()
    rows = [
        (
            p.model,
            size(p.size_bytes),
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(p.create_time)),
            p.manifest[:19],
            p.fingerprint.digest[:19],
        )
        for p in pointers
    ]
    print(table(("MODEL", "SIZE", "MADE", "MANIFEST", "FINGERPRINT"), rows))


async def snapshots_rm(cluster: Cluster, model: str) -> None:
    async with models.connect(cluster) as cell:
        pointers = await cell.catalog.list_snapshots(model)
        if not pointers:
            raise NotFound(
                "SNAPSHOT_NOT_FOUND",
                f"model {model!r} has no snapshot; see: woodfrog snapshots list",
            )
        for pointer in pointers:
            await models.drop_snapshot(cell, pointer)
    print(f"removed {len(pointers)} snapshot(s) of {model}")
