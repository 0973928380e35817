"""Whether a model on a GPU is the same after each rung, and whether trouble costs latency and nothing else.

    python -m loadtest.gpu_correctness [--shape llama-1b] [--cycles 100] [--gpus 1] [--tokenizer DIR] [--work DIR] [--simulated] [--room]

Answers are compared token for token, and the log-probabilities of the 20 likeliest tokens of each step (float32, over the
whole vocabulary) to the last bit. With `--gpus 2` what was frozen on one GPU wakes on both at once. `--simulated` runs on
simulated GPUs, and the result file says so.
"""

import asyncio
import http.client
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from loadtest import shapes
from loadtest.gpu_ladder import GIB, MODEL, GpuLab, agent_settings, gpu_memory
from loadtest.gpu_trouble import hog, kill_replicas
from loadtest.lab import WAIT_S, Lab, laboratory, unix
from loadtest.report import RESULTS, Bench
from woodfrog.cli import models, options
from woodfrog.clients.node_agent import NodeAgentClient
from woodfrog.errors import WoodfrogError
from woodfrog.model.node import Climbed, NodeUpdate
from woodfrog.model.rung import Rung
from woodfrog.node_agent.gpu_state import need_of
from woodfrog.replica.client import ControlClient

_CHAT = {"role": "user", "content": "Say in one short sentence what a frog does in winter."}
_TOKENS = 16
_SLACK_BYTES = 64 << 20  # of GPU memory: what the driver rounds
_INTO_A_LIFT_S = 0.004  # when it has surely begun
SIMULATED = {
    "SIMULATED_GPU_BYTES": str(8 << 30),
    "WOODFROG_NODE_AGENT_VAULT_DEVICE": "tests.memory.simulated_gpu:SimulatedDevice",
    "WOODFROG_NODE_AGENT_REPLICA_MEMORY": "tests.memory.simulated_gpu:SimulatedMemory",
    "WOODFROG_NODE_AGENT_CUDA_DRIVER": "tests.memory.simulated_cuda:SimulatedDriver",
}


@dataclass(frozen=True, slots=True)
class Answer:
    tokens: Any  # with their log-probabilities
    rung: str
    fallback: str


@dataclass(slots=True)
class Report:
    """What was checked, and what did not hold."""

    checks: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def check(self, name: str, holds: bool, found: Any) -> None:
        self.checks[name] = found
        if not holds:
            self.failures.append(f"{name}: {found}")
        print(f"{'ok  ' if holds else 'FAIL'} {name}: {found}", flush=True)


class Case:
    """One model on a cluster with a GPU, and what it answers when nothing was done to it."""

    def __init__(self, gpu: GpuLab, report: Report, used_bytes: Callable[[], int]) -> None:
        self.gpu = gpu
        self.lab = gpu.lab
        self.report = report
        self.used_bytes = used_bytes
        self.pointer = self.lab.snapshot(MODEL)
        self.expected = self.ask().tokens
        self.lab.descend(MODEL, Rung.FROZEN)
        gpu.drop(host=False)
        self.idle_bytes = used_bytes()  # with no replica and no weights

    def ask(self, replica: Path | None = None) -> Answer:
        """Through the gateway, or of the replica at a socket."""
        body = {
            "model": MODEL, "messages": [_CHAT], "max_tokens": _TOKENS, "temperature": 0,
            "logprobs": True, "top_logprobs": 20,
        }  # fmt: skip
        link = http.client.HTTPConnection("127.0.0.1", self.lab.cluster.http_port, timeout=WAIT_S)
        if replica is not None:
            link.sock = unix(replica)
        try:
            link.request("POST", "/v1/chat/completions", json.dumps(body))
            response = link.getresponse()
            value = json.loads(response.read())
        finally:
            link.close()
        if response.status != 200:
            raise WoodfrogError(f"HTTP_{response.status}", value["error"]["message"])
        headers = {name.lower(): text for name, text in response.getheaders()}
        return Answer(
            value["choices"][0]["logprobs"]["content"],
            headers.get("x-woodfrog-rung", ""),
            headers.get("x-woodfrog-fallback", ""),
        )

    def is_right(self, name: str, answer: Answer, rung: str) -> None:
        same = answer.tokens == self.expected
        self.report.check(
            name, same and answer.rung == rung, f"from {answer.rung}, the same: {same}"
        )

    def cycles(self, rung: Rung, count: int) -> None:
        """Down to the rung and back, each answer compared."""
        self.ask()
        wrong = 0
        for _ in range(count):
            self.lab.descend(MODEL, rung, rest_s=0.0)
            if rung is Rung.PARKED:
                self.gpu.drop(host=False)
            answer = self.ask()
            wrong += answer.tokens != self.expected or answer.rung != rung.value
        self.report.check(f"{count} cycles of {rung.value}", wrong == 0, f"{wrong} wrong")

    def clones(self, count: int) -> None:
        self.lab.descend(MODEL, Rung.FROZEN)
        climbed = asyncio.run(self._climb(count))
        digests = {asyncio.run(_control(c, "canary"))["digest"] for c in climbed}
        draws = [asyncio.run(_control(c, "draw"))["torch"] for c in climbed]
        found = f"{len(digests)} digests, {len(set(draws))} of {count} draws differ"
        self.report.check(
            f"{count} clones at once", len(digests) == 1 and len(set(draws)) == count, found
        )
        asyncio.run(self._end([c.replica.replica_id for c in climbed]))
        self.leaves_nothing(f"{count} clones that ended")

    def kills(self, delays_s: list[float]) -> None:
        """Every process of a climbing replica is killed that long after the climb began; the next climb must work."""
        for delay_s in delays_s:
            self.lab.descend(MODEL, Rung.FROZEN)
            outcome = asyncio.run(self._killed_climb(delay_s))
            self.lab.descend(MODEL, Rung.FROZEN)
            self.leaves_nothing(f"killed {delay_s:.2f} s into a climb ({outcome})")
            answer = self.ask()
            self.is_right(f"a wake after a kill at {delay_s:.2f} s", answer, "frozen")

    def kills_at_rest(self) -> None:
        """Every process of a replica is killed as it is lifted; a request in the middle may fail, the next must not."""
        for rung in (Rung.HOT, Rung.PARKED):
            self.ask()
            self.lab.descend(MODEL, rung)
            if rung is Rung.PARKED:
                self.gpu.drop(host=False)
            with ThreadPoolExecutor(1) as pool:
                asked = pool.submit(self._outcome)
                time.sleep(_INTO_A_LIFT_S)
                killed = kill_replicas(self.lab)
                outcome = asked.result()
            time.sleep(0.5)  # one that was killed while it served is noticed
            answer = self.ask()
            found = f"{killed} killed, {outcome}, then from {answer.rung}"
            self.report.check(
                f"killed as it is lifted from {rung.value}", answer.tokens == self.expected, found
            )
            self.lab.descend(MODEL, Rung.FROZEN)
            self.leaves_nothing(f"a kill from {rung.value}")

    def moves(self) -> None:
        """Two at once, and each GPU has room for one: both answer as the one that was frozen did."""
        self.lab.descend(MODEL, Rung.FROZEN)
        climbed = asyncio.run(self._climb(2))
        gpus = {c.replica.gpu for c in climbed}
        same = all(self.ask(Path(c.replica.socket_path)).tokens == self.expected for c in climbed)
        rungs = {c.from_rung for c in climbed}
        found = f"on {len(gpus)} GPUs, from {'/'.join(r.value for r in rungs)}, the same: {same}"
        holds = len(gpus) == 2 and same and rungs == {Rung.FROZEN}
        self.report.check("frozen on one GPU, woken on both at once", holds, found)
        for rung in (Rung.HOT, Rung.PARKED):
            lifted = asyncio.run(self._lifted(climbed, rung))
            same = all(
                self.ask(Path(c.replica.socket_path)).tokens == self.expected for c in lifted
            )
            found = f"from {'/'.join({c.from_rung.value for c in lifted})}, the same: {same}"
            self.report.check(f"both lowered to {rung.value} and lifted", same, found)
        asyncio.run(self._end([c.replica.replica_id for c in climbed]))
        self.leaves_nothing("replicas on two GPUs")

    def makes_room(self) -> None:
        """Three rest and a fourth needs room: one of them goes, whose turn it is, and no other; the rest wake as they were."""
        self.lab.descend(MODEL, Rung.FROZEN)
        ids = [each.replica.replica_id for each in asyncio.run(self._climb(3))]
        turns = (ids[1], ids[2], ids[0])
        short, fourth, left = asyncio.run(self._crowd(turns))
        gone = [name for name in ids if name not in left]
        named = [ids.index(name) + 1 for name in gone]
        same = self.ask(Path(fourth.replica.socket_path)).tokens == self.expected
        found = f"{short >> 20} MiB short: replica {named} of 3 went, the fourth the same: {same}"
        self.report.check("who makes room is whose turn it is", gone == [ids[1]] and same, found)
        asyncio.run(self._end([fourth.replica.replica_id]))
        lifted = [asyncio.run(self._thawed(name)) for name in left]
        same = all(self.ask(Path(c.replica.socket_path)).tokens == self.expected for c in lifted)
        self.report.check("those that stayed wake", same, f"{len(lifted)}, the same: {same}")
        asyncio.run(self._end(left))
        self.leaves_nothing("replicas that made room")

    async def _crowd(self, turns: tuple[str, ...]) -> tuple[int, Climbed, list[str]]:
        """All to rest, then one more, a little too large: what was missing, that one, and who is left of them."""
        async with models.connect(self.lab.cluster) as cell:
            spec = await cell.catalog.get_model(MODEL)
        async with NodeAgentClient(self.lab.cluster.address("node_agent")) as agent:
            for replica_id in turns:
                await agent.descend(replica_id, Rung.PARKED)
            update = await _now(agent)
            assert update.facts is not None
            (before,) = update.facts.gpus
            short = update.replicas[0].gpu_bytes // 2  # of what each holds at rest
            need = need_of(spec, "")
            assert need is not None
            free = before.memory_bytes - before.promised_bytes - need.weights_bytes
            larger = replace(spec, gpu_bytes=free + short)
            climbed = await agent.climb(
                larger, self.pointer, None,
                request_id=os.urandom(4).hex(), timeout_s=WAIT_S, yields=turns,
            )  # fmt: skip
            there = {each.replica_id for each in (await _now(agent)).replicas}
            return short, climbed, [name for name in turns if name in there]

    async def _thawed(self, replica_id: str) -> Climbed:
        async with models.connect(self.lab.cluster) as cell:
            spec = await cell.catalog.get_model(MODEL)
        async with NodeAgentClient(self.lab.cluster.address("node_agent")) as agent:
            key = os.urandom(4).hex()
            return await agent.climb(spec, None, replica_id, request_id=key, timeout_s=WAIT_S)

    def full_arena(self) -> None:
        """Pinned memory is taken by others: weights go through small pieces of it."""
        self.lab.descend(MODEL, Rung.FROZEN)
        self.gpu.drop(host=True)
        self.gpu.vault("load", weights="filler", folder=str(self.gpu.folder), host=True)
        self.gpu.vault("drop", weights="filler", device=True)
        answer = self.ask()
        held = self.gpu.vault("describe")["weights"]
        in_arena = any(each["host"] for name, each in held.items() if name != "filler")
        self.report.check("the arena was full", not in_arena, f"weights in it: {in_arena}")
        self.is_right("a wake beside a full arena", answer, "frozen")
        self.lab.descend(MODEL, Rung.FROZEN)
        self.gpu.drop(host=True)

    def wrong_fingerprint(self) -> None:
        self.lab.descend(MODEL, Rung.FROZEN)
        other = replace(
            self.pointer,
            fingerprint=replace(
                self.pointer.fingerprint,
                engine={**self.pointer.fingerprint.engine, "python": "0.0"},
            ),
        )
        with self._asked_of_the_node(other) as climbed:
            said = climbed.fallback_reason
            right = "engine python" in said and climbed.from_rung is Rung.ABSENT
            self.report.check("a wrong fingerprint", right, said)

    def truncated_snapshot(self) -> None:
        """The node sees it and takes the bytes from the store again."""
        self.lab.descend(MODEL, Rung.FROZEN)
        self.pointer = self.lab.snapshot(MODEL)  # the wrong fingerprint made a new one
        name = self.pointer.manifest.removeprefix("sha256:")
        pages = next((self.lab.cluster.home / "node" / "cache" / name).rglob("pages"))
        os.chmod(pages, 0o600)
        os.truncate(pages, 4096)
        self.is_right("a snapshot that is truncated in the node's cache", self.ask(), "stored")

    def leaves_nothing(self, what: str) -> None:
        self.gpu.drop(host=False)
        deadline = time.monotonic() + 10
        while self.used_bytes() > self.idle_bytes + _SLACK_BYTES and time.monotonic() < deadline:
            time.sleep(0.2)
        left = self.used_bytes() - self.idle_bytes
        self.report.check(
            f"no GPU memory left by {what}", left <= _SLACK_BYTES, f"{left >> 20} MiB"
        )

    def _outcome(self) -> str:
        try:
            answer = self.ask()
        except (WoodfrogError, OSError, http.client.HTTPException) as error:
            return f"an error ({type(error).__name__})"
        return f"an answer from {answer.rung}, the same: {answer.tokens == self.expected}"

    @contextmanager
    def _asked_of_the_node(self, pointer: Any) -> Iterator[Climbed]:
        climbed = asyncio.run(self._climb(1, pointer))[0]
        yield climbed
        asyncio.run(self._end([climbed.replica.replica_id]))

    async def _climb(self, count: int, pointer: Any = None) -> list[Climbed]:
        async with models.connect(self.lab.cluster) as cell:
            spec = await cell.catalog.get_model(MODEL)
        async with NodeAgentClient(self.lab.cluster.address("node_agent")) as agent:
            key = os.urandom(4).hex()
            return list(
                await asyncio.gather(
                    *(
                        agent.climb(
                            spec,
                            pointer or self.pointer,
                            None,
                            request_id=f"{key}-{i}",
                            timeout_s=WAIT_S,
                        )
                        for i in range(count)
                    )
                )
            )

    async def _lifted(self, climbed: list[Climbed], rung: Rung) -> list[Climbed]:
        """The same replicas, after a rest."""
        lifted = []
        for each in climbed:
            async with NodeAgentClient(self.lab.cluster.address("node_agent")) as agent:
                await agent.descend(each.replica.replica_id, rung)
            lifted.append(await self._thawed(each.replica.replica_id))
        return lifted

    async def _end(self, replica_ids: list[str]) -> None:
        async with NodeAgentClient(self.lab.cluster.address("node_agent")) as agent:
            for replica_id in replica_ids:
                await agent.descend(replica_id, Rung.FROZEN)

    async def _killed_climb(self, delay_s: float) -> str:
        climbing = asyncio.create_task(self._climb(1))
        await asyncio.sleep(delay_s)
        killed = kill_replicas(self.lab)
        try:
            [climbed] = await climbing
        except WoodfrogError as error:
            return f"{killed} killed, {error.reason}"
        await asyncio.sleep(0.5)  # one that was killed after its climb is noticed
        with suppress(WoodfrogError):
            await self._end([climbed.replica.replica_id])
        return f"{killed} killed, served from {climbed.from_rung.value}"


async def _now(agent: NodeAgentClient) -> NodeUpdate:
    """What the node says of itself."""
    async with aclosing(agent.watch()) as updates:
        async for update in updates:
            return update
    raise AssertionError("a watch never just ends")


async def _control(climbed: Climbed, verb: str) -> dict[str, Any]:
    path = Path(climbed.replica.socket_path).with_name("control.sock")
    return await ControlClient(path).call(verb, 30)


def full_gpu(case: Case) -> None:
    """A GPU that somebody else filled: a refusal in one sentence, and a wake once it is free."""
    case.lab.descend(MODEL, Rung.FROZEN)
    case.gpu.drop(host=False)
    with hog(GIB):
        try:
            said = f"an answer from {case.ask().rung}"
            refused = False
        except WoodfrogError as error:
            said, refused = error.message, True
    case.report.check("a full GPU is refused", refused and "\n" not in said, said)
    case.lab.descend(MODEL, Rung.FROZEN)
    case.leaves_nothing("a refusal")
    deadline = time.monotonic() + 60
    while True:  # the gateway asks for patience first
        try:
            answer = case.ask()
            break
        except WoodfrogError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
    case.is_right("a wake once the GPU is free", answer, "frozen")


def run(case: Case, cycles: int, kills: list[float], simulated: bool) -> None:
    for rung in (Rung.HOT, Rung.PARKED, Rung.FROZEN):
        case.cycles(rung, cycles)
    for count in (2, 4):
        case.clones(count)
    case.kills(kills)
    case.kills_at_rest()
    case.makes_room()
    case.full_arena()
    case.wrong_fingerprint()
    if not simulated:  # nobody else can fill a simulated one
        full_gpu(case)
    case.truncated_snapshot()


def main() -> None:
    parser = options.Parser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", default="llama-1b", choices=shapes.NAMES)
    parser.add_argument("--cycles", type=options.whole(1, 1_000_000), default=100)
    parser.add_argument(
        "--kills",
        type=options.listed(options.number(0, 3600, "seconds")),
        default="0.02,0.08,0.15,0.25,0.4",
    )
    parser.add_argument("--gpus", type=options.whole(1, 2), default=1)
    parser.add_argument("--tokenizer", type=options.folder)
    parser.add_argument("--work", type=options.folder, help="where the weights are made and kept")
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--room", action="store_true", help="only who makes room")
    args = parser.parse_args()
    with TemporaryDirectory(prefix="woodfrog-shapes-") as temporary:
        folder = (args.work or Path(temporary)) / args.shape
        if not folder.exists():
            shapes.make(args.shape, folder, args.tokenizer)
        report = Report()
        size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        with simulation(Path(temporary)) if args.simulated else agent_settings(size):
            os.environ["WOODFROG_NODE_AGENT_GPUS"] = ",".join(map(str, range(args.gpus)))
            with laboratory() as lab:
                if args.gpus == 2:  # over a half of one, so that each has room for one replica
                    gib = 5 if args.simulated else gpu_memory("total") * 6 // 10 // GIB
                else:
                    gib = 1 if args.simulated else 8
                gpu = start(lab, folder, size, gib)
                used = (lambda: _simulated_used(gpu)) if args.simulated else gpu_memory
                case = Case(gpu, report, used)
                if args.gpus == 2:
                    case.moves()
                elif args.room:
                    case.makes_room()
                else:
                    run(case, args.cycles, args.kills, args.simulated)
    part = ".two-gpus" if args.gpus == 2 else ".room" if args.room else ""
    _write(report, args.shape + part, args.simulated)
    if report.failures:
        raise SystemExit("\n".join(report.failures))


def start(lab: Lab, folder: Path, weights_bytes: int, gpu_gib: int) -> GpuLab:
    gpu = GpuLab(lab, folder, weights_bytes)
    lab.add(
        MODEL, "eager", folder,
        slots=4, gpu_bytes=gpu_gib * GIB, memory_bytes=4 * GIB, replicas_max=8,
    )  # fmt: skip
    print(f"cold start {lab.ask(MODEL).first_token_s:.1f} s", flush=True)
    return gpu


@contextmanager
def simulation(folder: Path) -> Iterator[None]:
    """The settings of a node with one simulated GPU."""
    cuda = folder / "simulated-cuda"
    cuda.mkdir()
    (cuda / "any").touch()
    root = str(Path(__file__).parent.parent)
    with agent_settings(1 << 28, thp=False):
        os.environ |= {
            **SIMULATED,
            "SIMULATED_CUDA": str(cuda),
            "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}",
            "WOODFROG_NODE_AGENT_GPU_CONTEXT_BYTES": str(64 << 20),
        }
        yield


def _simulated_used(gpu: GpuLab) -> int:
    facts = gpu.vault("describe")
    return int(facts["memory_bytes"] - facts["free_bytes"])


def _write(report: Report, shape: str, simulated: bool) -> None:
    bench = Bench(f"gpu_correctness.{shape}{'.simulated' if simulated else ''}")
    value = {**bench.value(), **asdict(report)}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{bench.name}{'' if simulated else '.gpu'}.json"
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    print(
        f"written: {os.path.relpath(path)}; {len(report.failures)} of {len(report.checks)} failed"
    )


if __name__ == "__main__":
    main()
