"""A cluster of a bench's own, what a bench does to it, and how it is timed."""

import asyncio
import json
import re
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from woodfrog.cli import commands, models, supervisor, trace_file, up
from woodfrog.cli.cluster import Cluster
from woodfrog.clients.node_agent import NodeAgentClient
from woodfrog.clients.store import ChunkClient, StoreClient
from woodfrog.clients.weight_fs import WeightFsClient
from woodfrog.engine.pictures import SMALL_SIZE, pattern
from woodfrog.errors import FailedPrecondition
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Request:
    """What a bench asks of a model."""

    path: str
    body: dict[str, Any]
    first: bytes  # a pattern: the answer has begun once it is there


MODEL = Path(".woodfrog/models/smollm2-135m")
PROMPT = "Say in one short sentence what a frog does in winter."
REST_S = 1.0  # sandboxes of the pool are made again, so that each run meets the same node
WAIT_S = 600.0  # the cold start of a large model
_LOG_CHARACTERS = 3000
CHAT = Request(
    "/v1/chat/completions",
    {
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 1,
        "temperature": 0,
        "stream": True,
    },
    rb'"content": ?"[^"]',
)
IMAGE = Request(
    "/v1/images/generations",
    {"prompt": PROMPT, "num_inference_steps": 1, "seed": 1},
    rb'"b64_json": ?"',
)
EMBEDDING = Request("/v1/embeddings", {"input": PROMPT}, rb'"embedding": ?\[')
CLASSIFY = Request("/v1/classify", {"input": pattern(32, 32)}, rb'"probs": ?\[')
LOOK = Request(
    "/v1/chat/completions",
    {
        **CHAT.body,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": pattern(*SMALL_SIZE)}},
                    {"type": "text", "text": "What is to be seen here?"},
                ],
            }
        ],
    },
    CHAT.first,
)
_WOKEN = re.compile(rb": woken rung=(\w+)")


@dataclass(frozen=True, slots=True)
class Timed:
    first_token_s: float
    rung: str
    trace_id: str


class Lab:
    """A cluster of its own, and what a case does to it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.request = CHAT

    def add(self, name: str, snapshot: str, folder: Path = MODEL, **changes: Any) -> None:
        """`changes` to the spec of a small model on the CPU."""
        given: dict[str, Any] = {
            "engine_args": {"context_tokens": 1024}, "slots": 4, "memory_bytes": 1 << 30,
            "park_after_s": 3600, "freeze_after_s": 3600, **changes,
        }  # fmt: skip
        spec = ModelSpec(name, "sha256:" + "0" * 64, 0, snapshot=snapshot, **given)

        async def work() -> None:
            async with models.connect(self.cluster) as cell:
                await models.add(cell, spec, folder, lambda line: None)
            await commands.wait_known(self.cluster, name)

        asyncio.run(work())

    def ask(self, model: str) -> Timed:
        port = self.cluster.http_port
        return first_token(
            lambda: socket.create_connection(("127.0.0.1", port)), model, self.request
        )

    def snapshot(self, model: str) -> SnapshotPointer:
        async def work() -> SnapshotPointer:
            deadline = time.monotonic() + WAIT_S
            async with models.connect(self.cluster) as cell:
                while time.monotonic() < deadline:
                    if found := await cell.catalog.list_snapshots(model):
                        return found[0]
                    await asyncio.sleep(0.1)
            raise SystemExit(f"{model} has no snapshot after {WAIT_S:.0f} s")

        return asyncio.run(work())

    def descend(self, model: str, rung: Rung, rest_s: float = REST_S) -> None:
        """Every replica of a model, and waits until the scheduler has seen it."""

        async def work() -> None:
            agents = {node.name: node.agent for node in self.cluster.nodes}
            for replica in await self.replicas(model):
                async with NodeAgentClient(agents[replica.node]) as agent:
                    await agent.descend(replica.replica_id, rung)
            wanted = [] if rung is Rung.FROZEN else [rung.value]
            deadline = time.monotonic() + WAIT_S
            while [r.state.value for r in await self.replicas(model)] != wanted:
                if time.monotonic() > deadline:
                    raise SystemExit(f"{model} does not descend to {rung.value}")
                await asyncio.sleep(0.02)

        asyncio.run(work())
        time.sleep(rest_s)

    def evict(self, *manifests: str) -> None:
        async def work() -> None:
            async with WeightFsClient(self.cluster.address("weight_fs")) as weight_fs:
                for manifest in manifests:
                    for _ in range(100):
                        try:
                            await weight_fs.evict(manifest)
                            break
                        except FailedPrecondition:  # still pinned by a replica that just ended
                            await asyncio.sleep(0.05)
                    else:
                        raise SystemExit(f"{manifest} cannot be evicted")

        asyncio.run(work())

    def spans(self, trace_id: str) -> list[dict[str, Any]]:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            spans = trace_file.read(self.cluster.traces_file, trace_id)
            ids = {span["span_id"] for span in spans}
            if spans and all(not s["parent_id"] or s["parent_id"] in ids for s in spans):
                return spans
            time.sleep(0.1)
        return []

    async def replicas(self, model: str) -> list[Any]:
        view = await commands.describe(self.cluster)
        return [replica for each in view.models if each.model == model for replica in each.replicas]


def first_token(connect: Any, model: str, request: Request = CHAT) -> Timed:
    """One request by plain sockets, so that the client costs next to nothing; until what it asked for begins to come."""
    payload = json.dumps({"model": model, **request.body}).encode()
    expected = re.compile(request.first)
    head = (
        f"POST {request.path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(payload)}\r\nconnection: close\r\n\r\n"
    ).encode()
    with connect() as link:
        link.settimeout(WAIT_S)
        began = time.perf_counter()
        link.sendall(head + payload)
        data = b""
        first = 0.0
        while piece := link.recv(65536):
            data += piece
            if not first and expected.search(data):
                first = time.perf_counter() - began
    if not first:
        raise SystemExit(f"nothing came: {data[-2000:]!r}")
    headers = dict(
        line.lower().split(": ", 1)
        for line in data.split(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    )
    said = _WOKEN.search(data)  # in place of the headers, when those had to go out earlier
    rung = headers.get("x-woodfrog-rung") or (said[1].decode() if said else "?")
    return Timed(first, rung, headers.get("x-woodfrog-trace-id", ""))


def memcpy_rate() -> float:
    """Bytes per second of copying into fresh memory, page faults included; the median of nine."""
    source = np.ones(32 << 20, np.uint8)
    rates = []
    for _ in range(9):
        began = time.perf_counter()
        source.copy()
        rates.append(source.nbytes / (time.perf_counter() - began))
    return statistics.median(rates)


def store_rate(cluster: Cluster, manifest: str) -> float:
    """Bytes per second at which one client reads verified chunks of a snapshot from the store."""

    async def work() -> float:
        async with StoreClient(cluster.address("snapshot_store")) as store, ChunkClient() as chunks:
            stored = await store.get_manifest(manifest)
            digests = sorted(stored.manifest.chunk_digests)[:32]
            began = time.perf_counter()
            parts = await asyncio.gather(*(chunks.get(stored.chunks_url, d) for d in digests))
            return sum(map(len, parts)) / (time.perf_counter() - began)

    return asyncio.run(work())


def private_bytes(replica_socket: Path) -> int:
    """What a replica owns: its private dirty pages."""
    sandbox = replica_socket.parent.name
    total = 0
    for procs in Path("/sys/fs/cgroup").rglob(f"{sandbox}/cgroup.procs"):
        for pid in procs.read_text().split():
            status = Path(f"/proc/{pid}/status").read_text()
            inside = next(line for line in status.splitlines() if line.startswith("NSpid:"))
            if inside.split()[-1] == "1000":
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                line = next(x for x in rollup.splitlines() if x.startswith("Private_Dirty:"))
                return int(line.split()[1]) * 1024
    return total


def unix(path: Path) -> socket.socket:
    link = socket.socket(socket.AF_UNIX)
    link.connect(str(path))
    return link


@contextmanager
def laboratory(node_count: int = 1) -> Iterator[Lab]:
    """When the work in it fails, the ends of the services' logs are printed: the folder goes."""
    with tempfile.TemporaryDirectory(prefix="woodfrog-lab-") as folder:
        cluster = Cluster.open(Path(folder), node_count=node_count)
        up.start(cluster)
        try:
            yield Lab(cluster)
        except BaseException:
            for path in sorted(
                (*cluster.home.rglob("logs/*.log"), *cluster.home.rglob("vault*.log"))
            ):
                print(f"--- {path.name}\n{path.read_text(errors='replace')[-_LOG_CHARACTERS:]}")
            raise
        finally:
            supervisor.stop(cluster.home)


def median_ms(seconds: list[float]) -> float:
    return statistics.median(seconds) * 1000


def stages_of(
    lab: Lab, timed: list[Timed]
) -> tuple[list[float], list[tuple[str, float, list[float]]]]:
    """Request in → forward begins, of each run; and the spans by name: median start, lengths, in order. Seconds."""
    before, found = [], dict[str, list[tuple[float, float]]]()
    for each in timed:
        spans = lab.spans(each.trace_id)
        root = next(span for span in spans if not span["parent_id"])
        for span in spans:
            start = (span["start_ns"] - root["start_ns"]) / 1e9
            name = f"{span['name']} ({span['service'].removeprefix('woodfrog-')})"
            found.setdefault(name, []).append((start, span["duration_ms"] / 1000))
            if span["name"] == "router.forward":
                before.append(start)
    rows = [
        (name, statistics.median(s for s, _ in times), [d for _, d in times])
        for name, times in found.items()
    ]
    return before, sorted(rows, key=lambda row: row[1])
