"""How long a model on a GPU takes to its first token, from each rung, on a real local cluster with a real GPU.

    python -m loadtest.gpu_ladder --shape llama-8b [--runs 7] [--cases cold,hot,parked,frozen] [--tokenizer DIR] [--work DIR]

Weights are random, at true sizes. The floor of `parked` and `frozen` is copying the weights from pinned memory at the
rate measured in the same run plus one warm request; of `hot` one warm request. `parked` and `frozen` have their weights
in pinned memory only, `frozen_page_cache` in the page cache only, `frozen_disk` with neither snapshot nor weights in memory, `stored` nothing on the node. `cold` is a
cold start with pinned weights; rungs are compared with the very first one, which brought the weights from the store.
"""

import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loadtest import shapes, weights_path
from loadtest.lab import (
    CHAT,
    CLASSIFY,
    EMBEDDING,
    IMAGE,
    LOOK,
    WAIT_S,
    Lab,
    Request,
    Timed,
    first_token,
    laboratory,
    median_ms,
    stages_of,
    unix,
)
from loadtest.report import Bench
from woodfrog.cli import models, options
from woodfrog.cli.show import rule, table
from woodfrog.clients.node_agent import NodeAgentClient
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.replica.client import ControlClient

CASES = (
    "weights", "cold", "hot", "parked", "frozen", "frozen_page_cache", "frozen_disk", "stored", "clones4",
)  # fmt: skip
_SLOW = ("cold", "stored")  # run at most twice: each takes up to a minute
_COLD = "cold-frog"  # the same weights, never a snapshot
MODEL = "frog"
_AGENT = "WOODFROG_NODE_AGENT_"
GIB = 1 << 30
_THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


class GpuLab:
    """One model of a shape on a cluster of its own."""

    def __init__(self, lab: Lab, folder: Path, weights_bytes: int, *, drops: bool = False) -> None:
        """`drops`: the folder, once its weights are added."""
        self.drops = drops
        self.lab = lab
        self.folder = folder
        self.weights_bytes = weights_bytes
        path = lab.cluster.run_dir / "vault" / "0.sock"
        self._vault = ControlClient(path, "the vault")

    def vault(self, verb: str, **fields: Any) -> dict[str, Any]:
        reply = asyncio.run(self._vault.call(verb, 600, **fields))
        for fd in reply.pop("fds", []):
            os.close(fd)
        return reply

    def drop(self, *, host: bool) -> None:
        """The weights leave the GPU, and pinned memory too."""
        for weights in self.vault("describe")["weights"]:
            self.vault("drop", weights=weights, device=True, host=host)

    def rest(self, case: str) -> None:
        """The model to the rung of the case."""
        rung = {"hot": Rung.HOT, "parked": Rung.PARKED}.get(case, Rung.FROZEN)
        self.lab.descend(MODEL, rung)
        if case == "stored":
            self.drop(host=True)
            pointer = self.lab.snapshot(MODEL)
            self.lab.evict(pointer.manifest, pointer.fingerprint.weights)
            return
        if case != "hot":
            self.drop(host=case in ("frozen_page_cache", "frozen_disk"))
        if case == "frozen_disk":
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("1")


def main() -> None:
    parser = options.Parser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", default="llama-8b", choices=shapes.NAMES)
    parser.add_argument("--runs", type=options.whole(1, 10_000), default=7)
    parser.add_argument("--cases", type=options.listed(options.one_of(CASES)), default=list(CASES))
    parser.add_argument("--tokenizer", type=options.folder)
    parser.add_argument("--work", type=options.folder, help="where the weights are made and kept")
    parser.add_argument(
        "--gpu-memory", type=options.whole(1, 1024, "GiB"), default=12, metavar="GIB"
    )
    parser.add_argument("--compile", action="store_true", help="as models add has it")
    parser.add_argument("--drop", action="store_true", help="the weights made, once they are added")
    parser.add_argument(
        "--name", type=options.name, help="of the results, where several runs make up one shape's"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="woodfrog-shapes-") as temporary:
        folder = (args.work or Path(temporary)) / args.shape
        if not folder.exists():
            shapes.make(args.shape, folder, args.tokenizer)
        weights_bytes = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        with agent_settings(weights_bytes), laboratory() as lab:
            gpu = GpuLab(lab, folder, weights_bytes, drops=args.drop)
            measure(
                gpu, args.shape, args.runs, args.cases, args.gpu_memory * GIB,
                compiled=args.compile, name=args.name,
            )  # fmt: skip


@contextmanager
def agent_settings(weights_bytes: int, *, thp: bool = True) -> Iterator[None]:
    """Of a cluster's node: its first GPU, an arena with room for the weights, and huge pages for all memory."""
    blocks = -(-weights_bytes // GIB) + 1
    os.environ |= {
        _AGENT + "GPUS": "0",
        _AGENT + "ARENA_BYTES": str(blocks * GIB),
        # A cold start of 70B takes minutes.
        _AGENT + "COLD_TIMEOUT_S": str(WAIT_S),
        "WOODFROG_SCHEDULER_CLIMB_TIMEOUT_S": str(WAIT_S),
        "WOODFROG_ROUTER_WAKE_WAIT_S": str(WAIT_S),
    }
    if not thp:
        yield
        return
    before = _THP.read_text()
    _THP.write_text("always")
    try:
        yield
    finally:
        _THP.write_text(before[before.index("[") + 1 : before.index("]")])


def measure(
    gpu: GpuLab, shape: str, runs: int, cases: list[str], gpu_bytes: int, *,
    compiled: bool = False, name: str | None = None,
) -> None:  # fmt: skip
    bench = Bench("gpu_ladder." + (name or shape + "-compiled" * compiled))
    lab = gpu.lab
    lab.request = _request(shape)
    if "weights" in cases:
        _weights(gpu, bench, runs)
    began = time.monotonic()
    lab.add(
        MODEL, "eager", gpu.folder,
        slots=4, gpu_bytes=gpu_bytes, memory_bytes=16 << 30, replicas_max=8,
        engine_args={"context_tokens": 1024, "compile": int(compiled)},
    )  # fmt: skip
    print(f"added in {time.monotonic() - began:.1f} s")
    if gpu.drops:
        shutil.rmtree(gpu.folder)
    cold = lab.ask(MODEL)
    print(f"cold start {cold.first_token_s:.2f} s ({cold.rung})")
    _show(lab, [cold], "cold")
    pointer = lab.snapshot(MODEL)
    rate = copy_rate()
    copy_s = gpu.weights_bytes / rate
    print(
        f"weights {gpu.weights_bytes / 1e9:.2f} GB, pinned copy {rate / 1e9:.1f} GB/s: {copy_s:.3f} s"
    )
    if "cold" in cases:
        lab.descend(MODEL, Rung.FROZEN)
        _cold(gpu, bench, gpu_bytes)
        lab.ask(MODEL)
    bench.add("snapshot", "size_bytes", [float(pointer.size_bytes)])
    for name, value in _sizes(lab, pointer).items():
        bench.add("snapshot", name, [float(value)])
    if "clones4" in cases:
        lab.descend(MODEL, Rung.FROZEN)
        for count in (2, 4):
            bench.add(f"clones{count}", "last_first_token_s", [clones(gpu, count, pointer)])
            bench.write()
    for case in ("hot", "parked", "frozen", "frozen_page_cache", "frozen_disk", "stored"):
        if case not in cases:
            continue
        warm, woken, held = [], [], []
        for _ in range(min(runs, 2) if case in _SLOW else runs):
            lab.ask(MODEL)
            warm.append(lab.ask(MODEL).first_token_s)
            gpu.rest(case)
            held.append(float(gpu_memory()))
            woken.append(lab.ask(MODEL))
        rungs = {each.rung for each in woken}
        assert rungs == {case.split("_")[0]}, rungs
        floor = statistics.median(warm) + (0 if case == "hot" else copy_s)
        note = "one warm request" + ("" if case == "hot" else " + pinned copy of the weights")
        bench.add(
            case, "first_token_s", [each.first_token_s for each in woken],
            floor=floor, floor_note=note, rivals={"cold start, same engine": cold.first_token_s},
        )  # fmt: skip
        bench.add(case, "warm_request_s", warm)
        bench.add(case, "gpu_used_bytes", held)
        _show(lab, woken, case, bench)
        bench.write()  # a run that is cut keeps the cases that it has done
    bench.finish()


def _cold(gpu: GpuLab, bench: Bench, gpu_bytes: int) -> None:
    """Cold starts with the weights in pinned memory, so that nothing but the engine is waited for."""
    lab = gpu.lab
    lab.add(_COLD, "never", gpu.folder, slots=4, gpu_bytes=gpu_bytes, memory_bytes=16 << 30)
    taken = []
    for _ in range(2):
        taken.append(lab.ask(_COLD))
        lab.descend(_COLD, Rung.FROZEN)
    bench.add("cold", "first_token_s", [each.first_token_s for each in taken])
    _show(lab, taken, "cold, weights pinned", bench)


def _request(shape: str) -> Request:
    if shape.startswith("sdxl"):
        return IMAGE
    return {"embeddings": EMBEDDING, "vit": CLASSIFY, "vlm": LOOK}.get(shape, CHAT)


def _weights(gpu: GpuLab, bench: Bench, runs: int) -> None:
    """Page cache → GPU by the vault, beside what others load the same files with."""
    folder = gpu.folder
    results = weights_path.run(_one_part(folder), min(runs, 3), "cuda:0")
    print(
        weights_path.show(
            results, weights_path.weight_bytes(weights_path.weight_files(_one_part(folder)))
        )
    )
    rivals = {each.loader: statistics.median(each.seconds) for each in results if each.seconds}
    floor = rivals.pop(weights_path.FLOOR)
    seconds: dict[str, list[float]] = {"page cache to GPU and pinned": [], "pinned to GPU": []}
    for _ in range(runs):
        for name in seconds:
            began = time.perf_counter()
            gpu.vault("load", weights="bench", folder=str(_one_part(folder)), host=True)
            seconds[name].append(time.perf_counter() - began)
            gpu.vault("drop", weights="bench", device=True)
        gpu.vault("drop", weights="bench", host=True)
    for name, samples in seconds.items():
        bench.add(
            "weights", f"{name}, s", samples,
            floor=floor, floor_note="copying as many bytes from pinned memory", rivals=rivals,
        )  # fmt: skip


def _one_part(folder: Path) -> Path:
    """The folder, or of a pipeline its largest part."""
    if any(folder.glob("*.safetensors")):
        return folder
    sizes = {
        part: sum(path.stat().st_size for path in part.glob("*.safetensors"))
        for part in folder.iterdir()
        if part.is_dir()
    }
    return max(sizes, key=lambda part: sizes[part])


def clones(gpu: GpuLab, count: int, pointer: SnapshotPointer) -> float:
    """Climbs at once of one snapshot, asked of the node itself: seconds to the last one's first token."""
    lab = gpu.lab

    async def work() -> float:
        async with models.connect(lab.cluster) as cell:
            spec = await cell.catalog.get_model(MODEL)
        async with NodeAgentClient(lab.cluster.address("node_agent")) as agent:
            began = time.perf_counter()
            ids: list[str] = []

            async def one(index: int) -> None:
                climbed = await agent.climb(
                    spec, pointer, None, request_id=f"{began}-{index}", timeout_s=120
                )
                path = Path(climbed.replica.socket_path)
                await asyncio.to_thread(first_token, lambda: unix(path), MODEL, lab.request)
                ids.append(climbed.replica.replica_id)

            await asyncio.gather(*(one(index) for index in range(count)))
            took = time.perf_counter() - began
            print(f"{count} clones: {took:.3f} s, GPU holds {gpu_memory() / 1e9:.2f} GB")
            for replica_id in ids:
                await agent.descend(replica_id, Rung.FROZEN)
            return took

    took = asyncio.run(work())
    time.sleep(2.0)
    return took


def copy_rate() -> float:
    """Bytes a second from pinned memory to the GPU: a process of its own copies 1 GiB, the best of nine."""
    script = (
        "import torch,time\n"
        "a=torch.empty(1<<30,dtype=torch.uint8,pin_memory=True);b=torch.empty_like(a,device='cuda')\n"
        "r=[]\n"
        "for _ in range(9):\n"
        " t=time.perf_counter();b.copy_(a);torch.cuda.synchronize();r.append((1<<30)/(time.perf_counter()-t))\n"
        "print(max(r))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        raise SystemExit(f"the copy rate cannot be measured: {done.stderr[-300:]}")
    return float(done.stdout)


def gpu_memory(kind: str = "used") -> int:
    """Of the first GPU: "used" by all processes, or in "total"."""
    said = subprocess.run(
        ["nvidia-smi", f"--query-gpu=memory.{kind}", "--format=csv,noheader,nounits"],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    return int(said.stdout.split()[0]) << 20


def _sizes(lab: Lab, pointer: SnapshotPointer) -> dict[str, int]:
    async def work() -> dict[str, Any]:
        async with models.connect(lab.cluster) as cell:
            return dict((await cell.store.get_manifest(pointer.manifest)).manifest.attributes)

    attributes = asyncio.run(work())
    return {name: attributes[name] for name in ("image_bytes", "pages_bytes")}


def _show(lab: Lab, timed: list[Timed], case: str, bench: Bench | None = None) -> None:
    _, stages = stages_of(lab, timed)
    print(rule(f"{case}: where the time goes, medians"))
    print(
        table(
            ("stage", "starts at ms", "lasts ms"),
            [(name, f"{at * 1e3:.1f}", f"{median_ms(took):.1f}") for name, at, took in stages],
        )
    )
    if bench is not None:
        for name, _, durations in stages:
            bench.add(case, f"stage {name}", durations)


if __name__ == "__main__":
    main()
