"""A trace of requests, replayed on a real cluster of several nodes, one of which is killed in the middle.

    python -m loadtest.replay [--trace FILE.csv] [--nodes 4] [--models 30] [--minutes 3] [--speed 2] [--kill]

Every process is real: etcd, the services, a weight_fs and an agent for each node, replicas of small models that wake by
CRIU. All nodes are on this machine, so they share its cores and its disk, not their caches. Requests come as in the trace,
`--speed` times as fast, and are dealt to models by Zipf's law; without a trace they are made (`simulated_load`). Each asks for
one token and is not streamed, so that the router may ask another replica when one is lost: a client never asks twice.
`--kill` kills the agent and the weight_fs of the busiest node by SIGKILL, and again whenever the supervisor starts them,
for a quarter of the replay; then the node comes back. Exit status 1 when a request failed.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from loadtest import simulated_load, small_models
from loadtest.lab import Lab, Request, laboratory
from loadtest.report import Bench, quantile
from loadtest.restores import Restore, restores
from loadtest.simulated_setup import Arrival
from woodfrog.cli import commands, options, trace_file
from woodfrog.cli.cluster import NODES_MAX, Cluster
from woodfrog.cli.show import table
from woodfrog.clock import SystemClock

PARK_S, FREEZE_S = 1.0, 4.0
MEMORY_BYTES = 1 << 29  # of a replica
ANSWER_S = 180.0  # beyond the router's own patience
_TOLD_MAX = 20  # failures and exceptions that are printed one by one
_AWAY_SHARE = 0.25  # of the replay
_LOOK_S = 0.005  # between two looks for a child that was started again
_FLUSHED_S = 2.0  # spans are sent each half second
COMPLETION = Request(
    "/v1/completions", {"prompt": "A frog", "max_tokens": 1, "temperature": 0}, rb'"text": ?"'
)


@dataclass(frozen=True, slots=True)
class Answered:
    """What a client saw of one request."""

    model: str
    at: float  # seconds since the replay began
    seconds: float
    status: int  # 0: the connection failed
    rung: str
    said: str  # of a failure


@dataclass(slots=True)
class Outage:
    """Of one node, in seconds since the replay began."""

    node: str = ""
    began: float = 0.0
    ended: float = 0.0
    kills: int = 0


@dataclass(slots=True)
class Replayed:
    answers: list[Answered]
    restores: list[Restore]
    climbs: list[tuple[str, float, float]]  # rung, predicted and taken seconds
    outage: Outage = field(default_factory=Outage)

    @property
    def failed(self) -> list[Answered]:
        return [answer for answer in self.answers if answer.status != 200]

    @property
    def strayed(self) -> list[Restore]:
        """Restores that found room, and did not go to the hottest pages."""
        return [r for r in self.restores if r.had_room and r.exception]


def prepare(lab: Lab, count: int, folder: Path) -> None:
    """Adds models m0, m1, … and asks each once, so that each has a snapshot, somewhere."""
    lab.request = COMPLETION
    for number in range(count):
        name = f"m{number}"
        weights = small_models.make(folder / name, number)
        lab.add(
            name, "eager", weights, engine_args={"context_tokens": 256},
            slots=16, memory_bytes=MEMORY_BYTES, park_after_s=PARK_S, freeze_after_s=FREEZE_S,
        )  # fmt: skip
        lab.ask(name)
        lab.snapshot(name)


def replay(lab: Lab, arrivals: Sequence[Arrival], seconds: float, kill: bool) -> Replayed:
    """`arrivals` in seconds of the replay."""
    cluster = lab.cluster
    before = len(list(_climbs(cluster)))
    began_ns = int(SystemClock().wall() * 1e9)
    answers, outage = asyncio.run(_replay(cluster, arrivals, seconds, kill))
    time.sleep(_FLUSHED_S)
    older = cluster.traces_file.with_suffix(".jsonl.1")
    spans = [s for path in (older, cluster.traces_file) for s in trace_file.read(path)]
    found = [each for each in restores(spans) if each.start_ns >= began_ns]
    return Replayed(answers, found, list(_climbs(cluster))[before:], outage)


async def _replay(
    cluster: Cluster, arrivals: Sequence[Arrival], seconds: float, kill: bool
) -> tuple[list[Answered], Outage]:
    began = time.perf_counter()
    outage = Outage()
    timeout = aiohttp.ClientTimeout(total=ANSWER_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(timeout=timeout, connector=connector) as session,
        asyncio.TaskGroup() as group,
    ):
        if kill:
            group.create_task(_kill(cluster, began, seconds, outage), name="kill")
        tasks: list[asyncio.Task[Answered]] = []
        for arrival in arrivals:
            await asyncio.sleep(arrival.at - (time.perf_counter() - began))
            ask = _ask(session, cluster.base_url, arrival.model, began)
            tasks.append(group.create_task(ask, name=f"request {len(tasks)}"))
    return [task.result() for task in tasks], outage


async def _ask(session: aiohttp.ClientSession, base_url: str, model: str, began: float) -> Answered:
    sent = time.perf_counter()
    url = base_url.removesuffix("/v1") + COMPLETION.path
    status, rung, said = 0, "?", ""
    try:
        async with session.post(url, json={"model": model, **COMPLETION.body}) as response:
            body = await response.read()
            status = response.status
            rung = response.headers.get("x-woodfrog-rung", "?")
            said = "" if status == 200 else body.decode(errors="replace")
    except (aiohttp.ClientError, TimeoutError) as error:
        said = repr(error)
    return Answered(model, sent - began, time.perf_counter() - sent, status, rung, said)


async def _kill(cluster: Cluster, began: float, seconds: float, outage: Outage) -> None:
    """Keeps the node with most replicas dead, from the middle on, for its share of the time."""
    await asyncio.sleep(seconds / 2 - (time.perf_counter() - began))
    view = await commands.describe(cluster)
    held = Counter(replica.node for model in view.models for replica in model.replicas)
    (outage.node, _), *_ = held.most_common(1) or [(cluster.nodes[-1].name, 0)]
    number = [node.name for node in cluster.nodes].index(outage.node) + 1
    end = "" if number == 1 else f"-{number}"
    outage.began = time.perf_counter() - began
    killed: set[int] = set()
    while (now := time.perf_counter() - began) < outage.began + seconds * _AWAY_SHARE:
        for child in (f"node_agent{end}", f"weight_fs{end}"):
            pid = int((cluster.home / "pids" / child).read_text())
            if pid not in killed:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        await asyncio.sleep(_LOOK_S)
    outage.ended, outage.kills = now, len(killed)


def _climbs(cluster: Cluster) -> Iterator[tuple[str, float, float]]:
    """(rung, predicted seconds, taken seconds) of each that ended well so far."""
    for line in (cluster.home / "logs" / "scheduler.log").read_text().splitlines():
        if '"climb finished"' in line:
            told = json.loads(line)
            yield told["rung"], told["predicted_s"], told["seconds"]


def report(bench: Bench, done: Replayed) -> None:
    for status, count in sorted(Counter(answer.status for answer in done.answers).items()):
        bench.add("all", f"status_{status}_count", [float(count)])
    bench.add("all", "failed_count", [float(len(done.failed))])
    bench.add("all", "first_token_s", [answer.seconds for answer in done.answers])
    rungs = Counter(answer.rung for answer in done.answers)
    for rung in sorted(rungs):
        told = [answer.seconds for answer in done.answers if answer.rung == rung]
        bench.add(f"from {rung}", "first_token_s", told)
    if done.outage.node:
        away = [a.seconds for a in done.answers if done.outage.began <= a.at < done.outage.ended]
        bench.add("while a node was dead", "first_token_s", away or [0.0])
    for rung in sorted({rung for rung, _, _ in done.climbs}):
        taken = [took for found, _, took in done.climbs if found == rung]
        said = [told for found, told, _ in done.climbs if found == rung]
        bench.add(f"climbs from {rung}", "climb_s", taken)
        bench.add(f"climbs from {rung}", "predicted_s", said)
        off = [abs(told - took) / took for told, took in zip(said, taken, strict=True)]
        bench.add(f"climbs from {rung}", "prediction_off_share", off)
    roomy = [each for each in done.restores if each.had_room]
    bench.add("restores", "all_count", [float(len(done.restores))])
    bench.add("restores", "found_room_count", [float(len(roomy))])
    if roomy:
        share = 1 - len(done.strayed) / len(roomy)
        bench.add("restores that found room", "to_hottest_pages_share", [share])
        held = [float(each.pages_bytes) for each in roomy]
        bench.add("restores that found room", "pages_in_memory_bytes", held)


def tell(done: Replayed) -> None:
    """What a table of figures does not say."""
    rows = []
    rungs = Counter(answer.rung for answer in done.answers)
    for rung, count in rungs.most_common():
        told = sorted(answer.seconds for answer in done.answers if answer.rung == rung)
        p50, p99 = statistics.median(told), quantile(told, 0.99)
        rows.append((rung, count, f"{p50:.3f}", f"{p99:.3f}", f"{told[-1]:.3f}"))
    print(table(("RUNG", "REQUESTS", "P50 S", "P99 S", "MAX S"), rows))
    if done.outage.node:
        print(
            f"{done.outage.node} was dead from {done.outage.began:.1f} to {done.outage.ended:.1f} s,"
            f" killed {done.outage.kills} times"
        )
    where = Counter(each.node for each in done.restores)
    print("restores by node:", ", ".join(f"{n} {count}" for n, count in sorted(where.items())))
    roomy = sum(each.had_room for each in done.restores)
    print(
        f"{len(done.restores)} restores, {roomy} found room, {roomy - len(done.strayed)} of these went to"
        " the hottest pages"
    )
    for each in done.strayed[:_TOLD_MAX]:
        print(f"  {each.model} to {each.node}: {each.exception}")
    print(f"{len(done.answers)} requests, {len(done.failed)} failed")
    for answer in done.failed[:_TOLD_MAX]:
        print(f"  {answer.model} at {answer.at:.1f} s: {answer.status} {answer.said[:300]}")


def arrivals_of(args: argparse.Namespace, seconds: float) -> list[Arrival]:
    chance = random.Random(args.seed)
    if args.trace:
        gaps, speed = simulated_load.traced([args.trace]), args.speed
    else:
        gaps, speed = simulated_load.made(chance, args.requests_s), 1.0
    dealt = simulated_load.dealt(gaps, args.models, seconds * speed, chance)
    return [Arrival(each.at / speed, each.model, each.answer_s) for each in dealt]


def main() -> None:
    parser = options.Parser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trace", type=options.file)
    parser.add_argument("--nodes", type=options.whole(1, NODES_MAX), default=4)
    parser.add_argument("--models", type=options.whole(1, 10_000), default=30)
    parser.add_argument("--minutes", type=options.number(0.1, 1440), default=3.0)
    parser.add_argument(
        "--speed", type=options.number(0.01, 1000), default=2.0, help="times that of the trace"
    )
    parser.add_argument(
        "--requests-s", type=options.number(0.001, 1000), default=5.0, help="of made arrivals"
    )
    parser.add_argument("--kill", action="store_true", help="a node, in the middle")
    parser.add_argument("--seed", type=options.whole(0, 1 << 63), default=1)
    args = parser.parse_args()
    seconds = args.minutes * 60
    arrivals = arrivals_of(args, seconds)
    bench = Bench("replay")
    with laboratory(args.nodes) as lab:
        began = time.perf_counter()
        prepare(lab, args.models, lab.cluster.home / "models")
        print(f"{args.models} models have a snapshot after {time.perf_counter() - began:.0f} s")
        print(f"{len(arrivals)} requests in {seconds:.0f} s, to {args.nodes} nodes", flush=True)
        done = replay(lab, arrivals, seconds, args.kill)
    setup = (("nodes", args.nodes), ("models", args.models), ("requests", len(arrivals)))
    for what, count in setup:
        bench.add("setup", f"{what}_count", [float(count)])
    report(bench, done)
    tell(done)
    bench.finish()
    sys.exit(1 if done.failed else 0)


if __name__ == "__main__":
    main()
