"""What the gateway adds to a request, and how many it carries.

    python -m loadtest.gateway [--connections 1,32,256] [--seconds 5] [--routers 1] [--simulated | --real]

Two back ends. `simulated`: an engine that answers at once from memory and says that it is simulated, behind a real router
process with a real etcd and a simulated scheduler: here the gateway is what is measured, by wrk. `paced` rows are of the same,
asked so often a second in all as their name says, so that little queues. Without that word: the real engine in a real cluster, where what counts
is the added latency. The targets are `direct`, the engine's own socket; `hop`, a process that only copies bytes; `woodfrog`,
the router; with `--routers N` also `woodfrog-N`, N processes that share an address; and `litellm`, LiteLLM's proxy before the simulated engine, if `deploy/clients.sh proxy` has installed it. They
are asked in turn by the same client: round by round, so that each has the machine for itself; the real ones, with one
connection, request by request, for there the engine's own time varies most.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.service import router_process
from tests.service.processes import free_addresses
from tests.service.router_process import child, cpu_s, until

from loadtest import litellm_proxy, wrk
from loadtest.load_client import Load
from loadtest.report import Bench, quantile
from woodfrog.cli import commands, models, options, supervisor, up
from woodfrog.cli.cluster import Cluster
from woodfrog.errors import WoodfrogError
from woodfrog.model.spec import ModelSpec

_ROOT = Path(__file__).resolve().parent.parent
_MODEL = _ROOT / ".woodfrog" / "models" / "smollm2-135m"
_NAME = "bench"
_SLOTS = 512
_REAL_SLOTS = 32
_STREAM_TOKENS = 64
_ROUNDS = 5
_REAL_SHARE = 2  # of the seconds: a real answer takes so long that a p99 needs them
_WAIT_S = 60.0
_P99_SAMPLES_MIN = 100
_MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
_WHOLE = {"model": _NAME, "messages": _MESSAGES, "max_tokens": 1, "temperature": 0}
_STREAM = {**_WHOLE, "stream": True, "max_tokens": _STREAM_TOKENS}
_STREAM_EVENTS = _STREAM_TOKENS + 2  # with the reason of its end, and [DONE]
_LITELLM_SLOWNESS = 5
_PACED_RATES, _PACED_CLIENTS_MAX = (30, 1000), 32
_LITELLM_RATE_MAX = 100  # a second: more than it carries is no measure of it
_HOP_NOTE = "a process in between that only copies bytes, same run"
_NOISE_NOTE = "; 0 where it is less than the noise"


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    address: str  # for the load client
    pids: tuple[int, ...]  # whose CPU is counted
    slowness: int = 1  # its rounds of wrk last so many times as long, those of streams thrice that


@dataclass(slots=True)
class Rounds:
    """What one target did at one number of connections, round by round."""

    loads: list[Load] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def p50s(self) -> list[float]:
        return [statistics.median(load.latencies_ms) for load in self.loads]

    def latencies(self) -> list[float]:
        return sorted(latency for load in self.loads for latency in load.latencies_ms)


@dataclass(slots=True)
class Carried:
    """What one target did under wrk, round by round."""

    loads: list[wrk.WrkLoad] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def added(self, direct: "Carried", metric: str) -> list[float]:
        pairs = zip(self.loads, direct.loads, strict=True)
        return [getattr(ours, metric) - getattr(least, metric) for ours, least in pairs]

    def requests_per_s(self) -> list[float]:
        return [load.requests / load.seconds for load in self.loads]

    def requests_per_s_core(self) -> list[float]:
        return [load.requests / cpu for load, cpu in zip(self.loads, self.cpu_s, strict=True)]


Measured = Mapping[str, Rounds]  # by target


def spent_s(target: Target) -> float:
    return sum(map(cpu_s, target.pids))


async def load(
    targets: Sequence[Target],
    clients: int,
    seconds: float,
    request: Mapping[str, object],
    rate: float = 0,
) -> list[tuple[Load, float]]:
    """One round: of each target what the clients saw, and its CPU seconds. Raises RuntimeError."""
    addresses = ",".join(target.address for target in targets)
    command = [sys.executable, "-m", "loadtest.load_client", addresses]
    command += [str(clients), str(seconds), str(rate)]
    before = [spent_s(target) for target in targets]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        said, _ = await process.communicate(json.dumps(request).encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"the load client failed on {addresses}")
    loads = [Load(**value) for value in json.loads(said)]
    spent = [spent_s(target) - cpu for target, cpu in zip(targets, before, strict=True)]
    return list(zip(loads, spent, strict=True))


async def in_turn(
    groups: Sequence[Sequence[Target]],
    clients: int,
    seconds: float,
    request: Mapping[str, object],
    rate: float = 0,
) -> Measured:
    """`seconds` for each target, in rounds; those of one group share theirs."""
    measured = {target.name: Rounds() for group in groups for target in group}
    for _ in range(_ROUNDS):
        for group in groups:
            for target, (seen, cpu) in zip(
                group,
                await load(group, clients, seconds * len(group) / _ROUNDS, request, rate),
                strict=True,
            ):
                measured[target.name].loads.append(seen)
                measured[target.name].cpu_s.append(cpu)
    return measured


def add_latency(bench: Bench, case: str, measured: Measured, target: str = "woodfrog") -> None:
    """What is added is the difference to `direct`: of the medians round by round, of the p99 over all rounds."""
    direct, hop, ours = (measured[name] for name in ("direct", "hop", target))
    added = [a - b for a, b in zip(ours.p50s(), direct.p50s(), strict=True)]
    floors = [a - b for a, b in zip(hop.p50s(), direct.p50s(), strict=True)]
    if target == "woodfrog":
        bench.add(f"direct/{case}", "p50_ms", direct.p50s())
    bench.add(f"{target}/{case}", "p50_ms", ours.p50s())
    if statistics.median(added) < 0 or max(added) - min(added) > 2 * abs(statistics.median(added)):
        print(f"{case}: what is added cannot be told from the engine's own spread")
        return
    bench.add(
        f"{target}/{case}",
        "added_p50_ms",
        added,
        floor=max(0.0, statistics.median(floors)),
        floor_note=_HOP_NOTE + _NOISE_NOTE,
    )
    pooled = [rounds.latencies() for rounds in (direct, hop, ours)]
    if min(map(len, pooled)) >= _P99_SAMPLES_MIN:
        least, floor, most = (quantile(ordered, 0.99) for ordered in pooled)
        bench.add(
            f"{target}/{case}",
            "added_p99_ms",
            [most - least],
            floor=max(0.0, floor - least),
            floor_note=_HOP_NOTE + _NOISE_NOTE,
        )


async def simulated(bench: Bench, connections: Sequence[int], seconds: float, routers: int) -> None:
    """A router process before a simulated engine's process, `routers` of them if more, LiteLLM's proxy before the same."""
    with tempfile.TemporaryDirectory(prefix="woodfrog-load-") as name:
        async with simulated_targets(Path(name), routers) as targets:
            for count in connections:
                whole = await wrk_in_turn(targets, count, seconds, _WHOLE)
                stream = await wrk_in_turn(targets, count, seconds, _STREAM)
                add_simulated(bench, f"c{count}", whole, stream)
            for count in connections:
                for rate in _PACED_RATES if count <= _PACED_CLIENTS_MAX else ():
                    fit = [
                        each for each in targets if each.slowness == 1 or rate <= _LITELLM_RATE_MAX
                    ]
                    alone = [[target] for target in fit]
                    paced = await in_turn(alone, count, seconds, _WHOLE, rate=rate)
                    for target in gateways(fit):
                        add_latency(bench, f"c{count}/paced-{rate}", paced, target)


def gateways(targets: Sequence[Target]) -> list[str]:
    return [target.name for target in targets if target.name not in ("direct", "hop")]


def add_simulated(
    bench: Bench, case: str, whole: Mapping[str, Carried], stream: Mapping[str, Carried]
) -> None:
    for name in (name for name in whole if name != "hop"):
        if name != "direct":
            for metric in ("p50_ms", "p99_ms"):
                floor = statistics.median(whole["hop"].added(whole["direct"], metric))
                bench.add(
                    f"{name}/{case}",
                    f"added_{metric}",
                    whole[name].added(whole["direct"], metric),
                    floor=max(0.0, floor),
                    floor_note=_HOP_NOTE + _NOISE_NOTE,
                )
        bench.add(f"{name}/{case}", "p50_ms", [load.p50_ms for load in whole[name].loads])
        bench.add(f"{name}/{case}", "requests_per_s", whole[name].requests_per_s())
        bench.add(f"{name}/{case}", "requests_per_s_core", whole[name].requests_per_s_core())
        events = [_STREAM_EVENTS * rate for rate in stream[name].requests_per_s()]
        bench.add(f"{name}/{case}", "sse_events_per_s", events)


async def wrk_in_turn(
    targets: Sequence[Target], count: int, seconds: float, request: Mapping[str, object]
) -> dict[str, Carried]:
    """`seconds` for each target, in rounds of a second at least."""
    carried = {target.name: Carried() for target in targets}
    for _ in range(_ROUNDS):
        for target in targets:
            before = spent_s(target)
            share = seconds / _ROUNDS * target.slowness
            if target.slowness > 1 and "stream" in request:
                share *= 3
            seen = await wrk.load(target.address, count, share, request)
            carried[target.name].loads.append(seen)
            carried[target.name].cpu_s.append(spent_s(target) - before)
    return carried


@asynccontextmanager
async def simulated_targets(folder: Path, routers: int) -> AsyncIterator[list[Target]]:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        router = await enter(router_process.opened(folder, _NAME, _SLOTS))
        targets = [
            Target("direct", router.engine, (router.engine_pid,)),
            await enter(hop_before(router.engine_socket)),
            Target("woodfrog", router.http, router.pids),
        ]
        if routers > 1:
            beside = folder / "several"
            beside.mkdir()
            several = await enter(router_process.opened(beside, _NAME, _SLOTS, routers=routers))
            targets.append(Target(f"woodfrog-{routers}", several.http, several.pids))
        if litellm_proxy.INSTALLED.exists():
            serving = litellm_proxy.serving(folder, _NAME, router.engine)
            address, pid = await enter(serving)
            targets.append(Target("litellm", address, (pid,), _LITELLM_SLOWNESS))
        else:
            print("litellm is left out; deploy/clients.sh proxy installs it")
        yield targets


def real(bench: Bench, connections: Sequence[int], seconds: float, model: Path) -> None:
    """A whole cluster with one replica of a real model, in a home of its own."""
    home = Path(tempfile.mkdtemp(prefix="woodfrog-load-"))
    cluster = Cluster.open(home)
    try:
        up.start(cluster)
        asyncio.run(real_rounds(bench, cluster, connections, seconds, model))
    finally:
        supervisor.stop(home)
        shutil.rmtree(home)


async def real_rounds(
    bench: Bench, cluster: Cluster, connections: Sequence[int], seconds: float, model: Path
) -> None:
    engine_socket = await serving_replica(cluster, model)
    router = int((cluster.home / "pids" / "router").read_text())
    async with hop_before(engine_socket) as hop:
        # Nobody asks here for the engine's CPU, which is in a sandbox: the router's stands for it.
        direct = Target("direct", f"unix:{engine_socket}", (router,))
        ours = Target("woodfrog", f"127.0.0.1:{cluster.http_port}", (router,))
        together = [[direct, hop, ours]]
        alone = [[direct], [hop], [ours]]  # many requests at once get in step with the engine
        for count in (count for count in connections if count <= _REAL_SLOTS):
            groups = together if count == 1 else alone
            add_latency(
                bench,
                f"c{count}/real-engine",
                await in_turn(groups, count, _REAL_SHARE * seconds, _WHOLE),
            )


async def serving_replica(cluster: Cluster, model: Path) -> Path:
    """Adds the model and wakes it; the socket of its one replica, once its snapshot is made and it serves again."""
    spec = ModelSpec(
        name=_NAME,
        weights="sha256:" + "0" * 64,  # found when the files are ingested
        weights_bytes=0,
        engine_args={"context_tokens": 1024},
        slots=_REAL_SLOTS,
        park_after_s=3600.0,
        freeze_after_s=3600.0,
    )
    gateway = Target("woodfrog", f"127.0.0.1:{cluster.http_port}", (os.getpid(),))
    async with models.connect(cluster) as cell:
        await models.add(cell, spec, model, lambda line: None)
        await commands.wait_known(cluster, _NAME)
        await load([gateway], 1, 0.1, _WHOLE)
        deadline = time.monotonic() + _WAIT_S
        while not await cell.catalog.list_snapshots(_NAME):
            if time.monotonic() > deadline:
                raise RuntimeError(f"no snapshot came within {_WAIT_S:.0f} s")
            await asyncio.sleep(0.1)
        await load([gateway], 1, 0.1, _WHOLE)
    (engine_socket,) = cluster.run_dir.glob("*/engine.sock")
    return engine_socket


@asynccontextmanager
async def hop_before(engine_socket: Path) -> AsyncIterator[Target]:
    (address,) = free_addresses(1)
    async with child("loadtest.byte_hop", address, str(engine_socket)) as pid:
        await until(lambda: listens(address), "the hop")
        yield Target("hop", address, (pid,))


def listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    wanted = f"{int(port):04X} 00000000:0000 0A "
    assert host == "127.0.0.1"
    return f"0100007F:{wanted}" in Path("/proc/net/tcp").read_text()


def arguments() -> argparse.Namespace:
    parser = options.Parser(prog="python -m loadtest.gateway", description=__doc__)
    parser.add_argument(
        "--connections",
        type=options.listed(options.whole(1, 8192)),
        default=[1, 32, 256],
        help="numbers, with commas between",
    )
    parser.add_argument(
        "--seconds",
        type=options.number(0.1, 86_400),
        default=5.0,
        help="of load, for each target and case",
    )
    parser.add_argument(
        "--model", type=options.folder, default=_MODEL, help="folder of the real model"
    )
    parser.add_argument(
        "--routers",
        type=options.whole(1, 64),
        default=1,
        help="so many behind one address are measured too, before a simulated engine of their own; each wants a core",
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--simulated", action="store_true", help="only the simulated engine")
    only.add_argument("--real", action="store_true", help="only the real engine")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # leaves as Ctrl-C does
    name = "gateway" if given.routers == 1 else f"gateway.{given.routers}-routers"
    bench = Bench(name, may_use_gpu=False)
    if not given.real:
        asyncio.run(simulated(bench, given.connections, given.seconds, given.routers))
    if not given.simulated:
        real(bench, given.connections, given.seconds, given.model)
    bench.finish()


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, WoodfrogError) as error:
        sys.exit(f"gateway bench: {error}")
