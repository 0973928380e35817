"""How long a model takes to its first token, from each rung of the ladder, on a real local cluster.

    python -m loadtest.coldstart [--runs 7] [--cases cold,parked,frozen,stored,clones4,clones16]
                                 [--engine transformers|llamacpp]

A request is one streamed chat of 37 prompt tokens over a fresh TCP connection to the gateway; the clock runs from its
first byte sent to the first token received. The floor of a wake is what no implementation of this design can avoid: one
warm request, and copying the memory that the woken replica owns afterwards at the rate of this machine's memcpy (for
`stored`, fetching the first-touch bytes at the store's own rate as well). Another engine than the built-in one is measured
behind it, and has its medians as rivals.
"""

import asyncio
import statistics
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from loadtest.lab import (
    MODEL,
    REST_S,
    WAIT_S,
    Lab,
    Timed,
    first_token,
    laboratory,
    median_ms,
    memcpy_rate,
    private_bytes,
    stages_of,
    store_rate,
    unix,
)
from loadtest.report import Bench
from woodfrog.cli import models, options
from woodfrog.cli.import_model import find_smollm2
from woodfrog.cli.requantize import to_q8
from woodfrog.cli.show import rule, table
from woodfrog.clients.node_agent import NodeAgentClient
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ENGINES

CASES = ("cold", "parked", "frozen", "stored", "clones4", "clones16")
_COLD, _FROG = "cold", "frog"


def run_clones(lab: Lab, count: int, pointer: SnapshotPointer) -> tuple[float, list[int]]:
    """Climbs at once, asked of the node itself: seconds to the last one's first token, and what each owns."""

    async def work() -> tuple[float, list[int]]:
        async with models.connect(lab.cluster) as cell:
            spec = await cell.catalog.get_model(_FROG)
        async with NodeAgentClient(lab.cluster.address("node_agent")) as agent:
            began = time.perf_counter()

            async def one(index: int) -> Path:
                climbed = await agent.climb(
                    spec, pointer, None, request_id=f"{began}-{index}", timeout_s=WAIT_S
                )
                path = Path(climbed.replica.socket_path)
                asking = asyncio.get_running_loop()
                await asking.run_in_executor(askers, first_token, lambda: unix(path), _FROG)
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


def main() -> None:
    parser = options.Parser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=options.whole(1, 10_000), default=7)
    parser.add_argument("--engine", type=options.one_of(ENGINES), default=ENGINES[0])
    parser.add_argument("--cases", type=options.listed(options.one_of(CASES)), default=list(CASES))
    args = parser.parse_args()
    if args.engine == ENGINES[0]:
        measure(args.runs, args.cases, args.engine).finish()
        return
    built_in = measure(args.runs, args.cases, ENGINES[0])
    measure(args.runs, args.cases, args.engine, built_in).finish()


def measure(runs: int, cases: list[str], engine: str, beside: Bench | None = None) -> Bench:
    """On a cluster of its own; `beside` has what another engine took just before, as rivals."""
    with laboratory() as lab:
        bench = Bench("coldstart" if engine == ENGINES[0] else f"coldstart.{engine}")
        _measure(lab, runs, cases, engine, bench, _medians(beside))
        return bench


def _medians(beside: Bench | None) -> dict[str, dict[str, float]]:
    """By case, as rivals of its first token."""
    rows = beside.rows if beside else []
    return {
        row.case: {"built-in engine, bf16": row.median}
        for row in rows
        if row.metric == "first_token_s"
    }


def _measure(
    lab: Lab,
    runs: int,
    cases: list[str],
    engine: str,
    bench: Bench,
    beside: Mapping[str, Mapping[str, float]],
) -> None:
    folder = MODEL
    if engine == "llamacpp":
        folder = MODEL.with_suffix(".Q8_0.gguf")
        to_q8(find_smollm2(), folder)
    lab.add(_FROG, "eager", folder, engine=engine)
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
    bench.add("warm", "first_token_s", warm, rivals=beside.get("warm"))
    bench.add("frozen", "snapshot_bytes", [pointer.size_bytes])
    bench.add("frozen", "private_bytes", [owned])
    cold = _cold(lab, runs, folder, engine) if "cold" in cases else []
    if cold:
        bench.add(
            "cold", "first_token_s", cold,
            floor=statistics.median(warm), floor_note="one warm request", rivals=beside.get("cold"),
        )  # fmt: skip
    own = {"cold start, same engine": statistics.median(cold)} if cold else {}
    rivals = {case: {**own, **beside.get(case, {})} for case in CASES}
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
            bench.add(case, "first_token_s", samples, floor=at, floor_note=why, rivals=rivals[case])
            added = [woken.first_token_s - warm for warm, woken in pairs]
            bench.add(
                case, "over_warm_s", added, floor=0.0, floor_note="the warm request just before"
            )
            _add_stages(lab, bench, case, timed)
    for case in ("clones4", "clones16"):
        if case in cases:
            count = int(case.removeprefix("clones"))
            lab.descend(_FROG, Rung.FROZEN)
            results = [run_clones(lab, count, pointer) for _ in range(runs)]
            last = [took for took, _ in results]
            bench.add(
                case, "first_token_s", last, floor=floor, floor_note=note, rivals=rivals[case]
            )
            bench.add(case, "private_bytes", [float(b) for _, owned in results for b in owned])


def _add_stages(lab: Lab, bench: Bench, case: str, timed: list[Timed]) -> None:
    before, stages = stages_of(lab, timed)
    bench.add(case, "before_forward_s", before)
    for name, _, durations in stages:
        bench.add(case, f"stage {name}", durations)
    print(rule(f"{case}: where the time goes, medians"))
    rows = [(n, f"{at * 1e3:.1f}", f"{median_ms(took):.1f}") for n, at, took in stages]
    print(table(("stage", "starts at ms", "lasts ms"), rows))


def _cold(lab: Lab, runs: int, folder: Path, engine: str) -> list[float]:
    lab.add(_COLD, "never", folder, engine=engine)
    lab.ask(_COLD)  # brings the weights into the page cache and the bytecode into being
    taken = []
    for _ in range(runs):
        lab.descend(_COLD, Rung.FROZEN)
        taken.append(lab.ask(_COLD).first_token_s)
    lab.descend(_COLD, Rung.FROZEN)
    return taken


def _wake(lab: Lab, case: str, pointer: SnapshotPointer) -> tuple[float, Timed]:
    """Seconds of a request to the serving replica, and the wake that comes next, each after the same rest."""
    lab.ask(_FROG)
    time.sleep(REST_S)
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


if __name__ == "__main__":
    main()
