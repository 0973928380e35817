"""How long a model takes to its first token, from each rung of the ladder, on a real local cluster.

    python -m loadtest.coldstart [--runs 7] [--cases cold,parked,frozen,stored,clones4,clones16]

A request is one streamed chat of 37 prompt tokens over a fresh TCP connection to the gateway; the clock runs from its
first byte sent to the first token received. The floor of a wake is what no implementation of this design can avoid: one
warm request, and copying the memory that the woken replica owns afterwards at the rate of this machine's memcpy (for
`stored`, fetching the first-touch bytes at the store's own rate as well).
"""

import argparse
import asyncio
import json
import re
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.report import Bench
from woodfrog.cli import commands, models, supervisor, trace_file, up
from woodfrog.cli.cluster import Cluster
from woodfrog.cli.show import rule, table
from woodfrog.clients.node_agent import NodeAgentClient
from woodfrog.clients.store import ChunkClient, StoreClient
from woodfrog.clients.weight_fs import WeightFsClient
from woodfrog.errors import FailedPrecondition
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec

MODEL = Path(".woodfrog/models/smollm2-135m")
CASES = ("cold", "parked", "frozen", "stored", "clones4", "clones16")
PROMPT = "Say in one short sentence what a frog does in winter."
_REST_S = 1.0  # sandboxes of the pool are made again, so that each run meets the same node
_WAIT_S = 120.0
_COLD, _FROG = "cold", "frog"
_WOKEN = re.compile(rb": woken rung=(\w+)")
_TOKEN = re.compile(rb'"content": ?"[^"]')


@dataclass(frozen=True, slots=True)
class Timed:
    first_token_s: float
    rung: str
    trace_id: str


class Lab:
    """A cluster of its own, and what a case does to it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def add(self, name: str, snapshot: str, replicas_max: int = 1) -> None:
        spec = ModelSpec(
            name, "sha256:" + "0" * 64, 0,
            engine_args={"context_tokens": 1024}, slots=4, replicas_max=replicas_max,
            park_after_s=3600, freeze_after_s=3600, memory_bytes=1 << 30, snapshot=snapshot,
        )  # fmt: skip

        async def work() -> None:
            async with models.connect(self.cluster) as cell:
                await models.add(cell, spec, MODEL, lambda line: None)
            await commands.wait_known(self.cluster, name)

        asyncio.run(work())

    def ask(self, model: str) -> Timed:
        port = self.cluster.http_port
        return first_token(lambda: socket.create_connection(("127.0.0.1", port)), model)

    def snapshot(self, model: str) -> SnapshotPointer:
        async def work() -> SnapshotPointer:
            deadline = time.monotonic() + _WAIT_S
            async with models.connect(self.cluster) as cell:
                while time.monotonic() < deadline:
                    if found := await cell.catalog.list_snapshots(model):
                        return found[0]
                    await asyncio.sleep(0.1)
            raise SystemExit(f"{model} has no snapshot after {_WAIT_S:.0f} s")

        return asyncio.run(work())

    def descend(self, model: str, rung: Rung) -> None:
        """Every replica of a model, and waits until the scheduler has seen it."""

        async def work() -> None:
            async with NodeAgentClient(self.cluster.address("node_agent")) as agent:
                for replica in await self._replicas(model):
                    await agent.descend(replica.replica_id, rung)
            wanted = ["parked"] if rung is Rung.PARKED else []
            deadline = time.monotonic() + _WAIT_S
            while [r.state.value for r in await self._replicas(model)] != wanted:
                if time.monotonic() > deadline:
                    raise SystemExit(f"{model} does not descend to {rung.value}")
                await asyncio.sleep(0.02)

        asyncio.run(work())
        time.sleep(_REST_S)

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

    async def _replicas(self, model: str) -> list[Any]:
        view = await commands.describe(self.cluster)
        return [replica for each in view.models if each.model == model for replica in each.replicas]


def first_token(connect: Any, model: str) -> Timed:
    """One streamed chat by plain sockets, so that the client costs next to nothing."""
    body = {
        "model": model, "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 1, "temperature": 0, "stream": True,
    }  # fmt: skip
    payload = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(payload)}\r\nconnection: close\r\n\r\n"
    ).encode()
    with connect() as link:
        link.settimeout(_WAIT_S)
        began = time.perf_counter()
        link.sendall(head + payload)
        data = b""
        first = 0.0
        while piece := link.recv(65536):
            data += piece
            if not first and _TOKEN.search(data):
                first = time.perf_counter() - began
    if not first:
        raise SystemExit(f"no token came: {data[-300:]!r}")
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


@contextmanager
def laboratory() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="woodfrog-coldstart-") as folder:
        cluster = Cluster.open(Path(folder))
        up.start(cluster)
        try:
            yield Lab(cluster)
        finally:
            supervisor.stop(cluster.home)


def run_clones(lab: Lab, count: int, pointer: SnapshotPointer) -> tuple[float, list[int]]:
    """Climbs at once, asked of the node itself: seconds to the last one's first token, and what each owns."""

    async def work() -> tuple[float, list[int]]:
        async with models.connect(lab.cluster) as cell:
            spec = await cell.catalog.get_model(_FROG)
        async with NodeAgentClient(lab.cluster.address("node_agent")) as agent:
            began = time.perf_counter()

            async def one(index: int) -> Path:
                climbed = await agent.climb(
                    spec, pointer, None, request_id=f"{began}-{index}", timeout_s=_WAIT_S
                )
                path = Path(climbed.replica.socket_path)
                asking = asyncio.get_running_loop()
                await asking.run_in_executor(askers, first_token, lambda: _unix(path), _FROG)
                ids.append(climbed.replica.replica_id)
                return path

            ids: list[str] = []
            paths = await asyncio.gather(*(one(index) for index in range(count)))
            took = time.perf_counter() - began
            owned = [private_bytes(path) for path in paths]
            for replica_id in ids:
                await agent.descend(replica_id, Rung.FROZEN)
        return took, owned

    with ThreadPoolExecutor(count) as askers:
        result = asyncio.run(work())
    time.sleep(2.0)
    return result


def _unix(path: Path) -> socket.socket:
    link = socket.socket(socket.AF_UNIX)
    link.connect(str(path))
    return link


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--cases", default=",".join(CASES))
    args = parser.parse_args()
    with laboratory() as lab:
        measure(lab, args.runs, args.cases.split(","))


def measure(lab: Lab, runs: int, cases: list[str]) -> None:
    bench = Bench("coldstart")
    lab.add(_FROG, "eager")
    lab.ask(_FROG)
    pointer = lab.snapshot(_FROG)
    lab.descend(_FROG, Rung.FROZEN)
    lab.ask(_FROG)
    warm = [lab.ask(_FROG).first_token_s for _ in range(max(runs, 15))]
    socket_path = next(lab.cluster.run_dir.glob("*/engine.sock"))
    owned = private_bytes(socket_path)
    copy = owned / memcpy_rate()
    floor = statistics.median(warm) + copy
    print(
        f"warm request {statistics.median(warm) * 1000:.1f} ms; a woken replica owns {owned / 1e6:.1f} MB"
    )
    cold: list[float] = []
    if "cold" in cases:
        lab.add(_COLD, "never")
        lab.ask(_COLD)  # brings the weights into the page cache and the bytecode into being
        for _ in range(runs):
            lab.descend(_COLD, Rung.FROZEN)
            cold.append(lab.ask(_COLD).first_token_s)
        lab.descend(_COLD, Rung.FROZEN)
        bench.add(
            "cold", "first_token_s", cold,
            floor=statistics.median(warm), floor_note="one warm request",
        )  # fmt: skip
    rivals = {"cold start, same engine": statistics.median(cold)} if cold else {}
    note = "one warm request + copying what the replica owns at this machine's memcpy rate"
    for case in ("parked", "frozen", "stored"):
        if case in cases:
            pairs = [_wake(lab, case, pointer) for _ in range(runs)]
            timed = [woken for _, woken in pairs]
            assert {each.rung for each in timed} == {case}, {each.rung for each in timed}
            just_warm = statistics.median(warm for warm, _ in pairs)
            at = just_warm if case == "parked" else just_warm + copy
            why = "the warm request just before" if case == "parked" else note
            if case == "stored":
                first = sum(n for _, n in _attributes(lab, pointer).get("first_pages", []))
                at += first / store_rate(lab.cluster, pointer.manifest)
                why += ", and fetching the first-touch bytes at the store's rate"
            samples = [t.first_token_s for t in timed]
            bench.add(case, "first_token_s", samples, floor=at, floor_note=why, rivals=rivals)
            added = [woken.first_token_s - warm for warm, woken in pairs]
            bench.add(
                case, "over_warm_s", added, floor=0.0, floor_note="the warm request just before"
            )
            before, stages = _stages(lab, timed)
            bench.add(case, "before_forward_s", before)
            for name, _, durations in stages:
                bench.add(case, f"stage {name}", durations)
            print(rule(f"{case}: where the time goes, medians"))
            rows = [(n, f"{at * 1e3:.1f}", f"{_median_ms(took):.1f}") for n, at, took in stages]
            print(table(("stage", "starts at ms", "lasts ms"), rows))
    for case in ("clones4", "clones16"):
        if case in cases:
            count = int(case.removeprefix("clones"))
            lab.descend(_FROG, Rung.FROZEN)
            results = [run_clones(lab, count, pointer) for _ in range(runs)]
            last = [took for took, _ in results]
            bench.add(case, "first_token_s", last, floor=floor, floor_note=note, rivals=rivals)
            bench.add(case, "private_bytes", [float(b) for _, owned in results for b in owned])
    bench.finish()


def _wake(lab: Lab, case: str, pointer: SnapshotPointer) -> tuple[float, Timed]:
    """Seconds of a request to the serving replica, and the wake that comes next, each after the same rest."""
    lab.ask(_FROG)
    time.sleep(_REST_S)
    warm = lab.ask(_FROG).first_token_s
    lab.descend(_FROG, Rung.PARKED if case == "parked" else Rung.FROZEN)
    if case == "stored":
        lab.evict(pointer.manifest, pointer.fingerprint.weights)
    return warm, lab.ask(_FROG)


def _attributes(lab: Lab, pointer: SnapshotPointer) -> dict[str, Any]:
    async def work() -> dict[str, Any]:
        async with models.connect(lab.cluster) as cell:
            return dict((await cell.store.get_manifest(pointer.manifest)).manifest.attributes)

    return asyncio.run(work())


def _median_ms(seconds: list[float]) -> float:
    return statistics.median(seconds) * 1000


def _stages(
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


if __name__ == "__main__":
    main()
