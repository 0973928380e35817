"""A simulated cell: the scheduler's and the node agents' real decisions, on a clock that is moved, with made-up processes.

Real are `scheduler.state` with all it decides by, and each node's `node_agent.state`, whose word on memory is final. Made up
are what takes time (climbs, descents, messages, answers) and what nodes have in their caches; in `simulated_faults` also what
goes wrong. All of it follows from one seed.
"""

import heapq
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from loadtest.simulated_cache import Cache, Lane
from loadtest.simulated_node import PRINT, NodeSize, Process, SimulatedNode
from loadtest.simulated_scheduler import Order, SimulatedScheduler, ToRouters
from loadtest.simulated_setup import Arrival, Request, Setup
from woodfrog.model import digest
from woodfrog.model.node import NodeUpdate, Replica, ReplicaState
from woodfrog.model.placement import Acquired, ReadyReplica, ReplicaUsage
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import Fingerprint, SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.node_agent.gpu_state import Bring
from woodfrog.scheduler import events as on

_ROUTER = "router"
_TRIES = 8  # of one request, as often as the scheduler tries a climb


class SimulatedCell:
    """`run` it with requests; every one of them ends, with an outcome."""

    def __init__(
        self,
        seed: int,
        models: Sequence[ModelSpec],
        node_count: int,
        setup: Setup | None = None,
    ) -> None:
        setup = setup or Setup()
        self.chance = random.Random(seed)
        self.timing, self.checked = setup.timing, setup.checked
        self.make_state = setup.make_state
        self.now = 0.0
        self.models = {model.name: model for model in models}
        self.pointers: dict[str, SnapshotPointer] = {}
        self.requests: dict[int, Request] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._names = 0
        self._tickets: dict[int, Request] = {}
        self._ready: dict[str, dict[str, ReadyReplica]] = {}  # that the router knows, by model
        self._model_of: dict[str, str] = {}  # of these
        self._active: dict[str, int] = {}
        self._reported_at = 0.0
        self.nodes = {
            f"n{n:04}": SimulatedNode(
                self,
                f"n{n:04}",
                replace(setup.size, tenants=setup.tenants.get(n, ())),
                self._cache(setup.size),
            )
            for n in range(node_count)
        }
        if setup.snapshots:
            eager = (model for model in models if model.snapshot == "eager")
            gpus = [uuid for node in self.nodes.values() for uuid in node.state.gpus]
            self.chance.shuffle(gpus)  # models of a size are spread
            self.pointers = {
                model.name: self._pointer(model, gpus[n % len(gpus)] if model.gpu_bytes else "")
                for n, model in enumerate(eager)
            }
        self._fill_disks(setup.copies)
        self.schedulers = self._make_schedulers(setup)
        for scheduler in self.schedulers:
            scheduler.start()
        if setup.plan_every_s:
            for scheduler in self.schedulers:
                scheduler.plan(setup.plan_every_s, self.timing.plan_s, setup.gpu_price)

    def _make_schedulers(self, setup: Setup) -> list[SimulatedScheduler]:
        return [SimulatedScheduler(self, "e")]

    def _cache(self, size: NodeSize) -> Cache:
        timing = self.timing
        disk, store = Lane(timing.disk_bytes_s), Lane(timing.store_bytes_s)
        return Cache(size.disk_bytes, size.page_cache_bytes, disk, store)

    def _fill_disks(self, copies: int) -> None:
        """Each model's files on so many nodes: those behind the one that its snapshot is from, and that one."""
        names = list(self.nodes)
        for n, model in enumerate(self.models.values()):
            pointer = self.pointers.get(model.name)
            home = pointer.gpu.rsplit("-", 1)[0] if pointer is not None else ""
            first = names.index(home) if home else n
            for step in range(min(copies, len(names))):
                cache = self.nodes[names[(first + step) % len(names)]].cache
                if cache.fill(model.weights, model.weights_bytes) and pointer is not None:
                    cache.fill(pointer.manifest, pointer.size_bytes)

    # --- time ---

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.now + seconds, self._count, do))

    def delay(self) -> float:
        """Of one message."""
        return self.noisy(self.timing.message_s)

    def noisy(self, seconds: float) -> float:
        return seconds * self.chance.uniform(1 - self.timing.noise, 1 + self.timing.noise)

    def run(self, arrivals: Iterable[Arrival], patience_s: float = 600.0) -> list[Request]:
        """Until every request has ended. AssertionError when one has not `patience_s` after the last came."""
        last = 0.0
        for arrival in arrivals:
            number = len(self.requests)
            request = self.requests[number] = Request(number, arrival)
            last = max(last, arrival.at)
            self.after(arrival.at - self.now, lambda request=request: self.ask(request))  # type: ignore[misc]
        open_requests = len(self.requests)
        while self._heap and open_requests:
            self.now, _, do = heapq.heappop(self._heap)
            assert self.now < last + patience_s, f"{open_requests} requests never ended"
            do()
            open_requests -= self._ended
            self._ended = 0
        assert not open_requests, f"{open_requests} requests were lost"
        return list(self.requests.values())

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self.now, _, do = heapq.heappop(self._heap)
            do()
        self.now = end

    _ended = 0

    def new_name(self, node: str) -> str:
        self._names += 1
        return f"{node}-r{self._names}"

    # --- schedulers ---

    def carry(self, by: SimulatedScheduler, order: Order) -> None:
        node, answer = self.nodes[order.node], by.answers()
        self.after(self.delay(), lambda: node.do(order, answer))

    def tell(self, by: SimulatedScheduler, said: ToRouters) -> None:
        """The one router, which hears what is ready at once."""
        match said:
            case on.Grant(ticket, acquired):
                self._granted(self._tickets.pop(ticket), acquired)
            case on.Refuse(ticket, _, reason):
                self.end(self._tickets.pop(ticket), reason)
            case on.Announce(ready, gone):
                for each in ready:
                    self._ready.setdefault(each.model, {})[each.replica_id] = each
                    self._model_of[each.replica_id] = each.model
                for name in gone:
                    self._ready.get(self._model_of.pop(name, ""), {}).pop(name, None)

    def stream(self, node: SimulatedNode, update: NodeUpdate) -> None:
        for scheduler in self.schedulers:
            scheduler.hear(node, update)

    # --- the router: it chooses as the real one does ---

    def ask(self, request: Request) -> None:
        free = [
            each
            for each in self._ready.get(request.arrival.model, {}).values()
            if each.replica_id not in request.excluded
            and self._active.get(each.replica_id, 0) < each.slots
        ]
        if free:
            best = min(free, key=lambda each: self._active.get(each.replica_id, 0))
            self._forward(request, best, Rung.SERVING, None)
            return
        self._count += 1
        ticket = self._count
        self._tickets[ticket] = request
        excluded = frozenset(request.excluded)
        self.schedulers[0].later(
            on.AcquireRequested(ticket, request.arrival.model, self.now + 300.0, _ROUTER, excluded)
        )

    def _forward(
        self, request: Request, to: ReadyReplica, rung: Rung, placement_id: str | None
    ) -> None:
        process = self.nodes[to.node].processes.get(to.replica_id)
        serves = process is not None and process.replica.state is ReplicaState.SERVING
        if process is None or not serves or len(process.running) >= to.slots:
            self._ready.get(to.model, {}).pop(to.replica_id, None)
            request.excluded.add(to.replica_id)
            request.tries += 1
            if placement_id is not None:
                self.schedulers[0].later(on.Released(placement_id, replica_failed=True))
            if request.tries >= _TRIES:
                self.end(request, "REPLICA_UNREACHABLE")
            else:
                self.ask(request)
            return
        process.running.add(request.number)
        request.replica, request.began, request.rung = to.replica_id, self.now, rung
        self._active[to.replica_id] = self._active.get(to.replica_id, 0) + 1
        self._report(to.replica_id, started=1)
        self.after(self.noisy(request.arrival.answer_s), lambda: self._answered(request, process))

    def _answered(self, request: Request, process: Process) -> None:
        process.running.discard(request.number)
        self._active[request.replica] -= 1
        self._report(request.replica)
        self.end(request, "answered")

    def _granted(self, request: Request, acquired: Acquired) -> None:
        to, rung, name = acquired.replica, acquired.rung, acquired.placement_id
        self.after(self.delay(), lambda: self._forward(request, to, rung, name))

    def _report(self, replica_id: str, started: int = 0) -> None:
        usage = ReplicaUsage(replica_id, self._active.get(replica_id, 0), started)
        at = max(self.now + self.delay(), self._reported_at)
        self._reported_at = at
        event = on.UsageReported(_ROUTER, (usage,))
        self.after(at - self.now, lambda: self.schedulers[0].handle(event))

    def broken(self, number: int) -> None:
        raise AssertionError("nothing dies in this cell")

    def end(self, request: Request, outcome: str) -> None:
        assert not request.outcome, "a request ended twice"
        request.outcome, request.ended = outcome, self.now
        self._ended += 1

    # --- what takes time ---

    def climb_s(
        self, node: SimulatedNode, order: on.StartClimb, bring: Bring | None, pinned: bool
    ) -> tuple[float, Rung]:
        """Of a restore or a cold start: how long, and from which rung. A copy of its own begins when it is restored."""
        timing, pointer = self.timing, order.snapshot
        if pointer is None:
            away_s, over_s, _ = self._weights_s(node, order.spec, bring, pinned)
            return self.noisy(max(timing.cold_s, away_s, over_s)), Rung.ABSENT
        pages_s, stored = node.reach(pointer.manifest, pointer.size_bytes)
        away_s, over_s, fetched = self._weights_s(node, order.spec, bring, pinned)
        process_s = pages_s + timing.restore_s
        if bring is not None and bring.own:
            seconds = max(process_s, away_s) + over_s
        elif over_s:
            seconds = max(process_s, timing.beside_s + max(away_s, over_s))
        else:
            seconds = max(process_s, away_s)
        return self.noisy(seconds), Rung.STORED if stored or fetched else Rung.FROZEN

    def _weights_s(
        self, node: SimulatedNode, spec: ModelSpec, bring: Bring | None, pinned: bool
    ) -> tuple[float, float, bool]:
        """Until they are in memory, from there onto the GPU meanwhile, and whether they come from the store."""
        timing = self.timing
        fits = spec.weights_bytes <= node.size.arena_bytes
        if bring is not None and not bring.host and (bring.own or fits):  # they lie on the GPU
            return 0.0, spec.weights_bytes / timing.pcie_bytes_s if bring.own else 0.0, False
        if pinned:
            return 0.0, spec.weights_bytes / timing.pcie_bytes_s, False
        # What is read once, into pinned memory, is what the page cache lets go first.
        stays = bring is None or not bring.host
        away_s, stored = node.reach(spec.weights, spec.weights_bytes, stays)
        over_s = spec.weights_bytes / timing.pin_bytes_s if bring is not None else 0.0
        return away_s, over_s, stored

    def lower_s(self) -> float:
        return self.noisy(self.timing.lower_s)

    def breaks(self) -> bool:
        return False

    def thaw_s(
        self, node: SimulatedNode, order: on.StartClimb, bring: Bring | None, pinned: bool
    ) -> tuple[float, Rung]:
        timing = self.timing
        if order.rung is Rung.HOT:
            return self.noisy(timing.hot_s), Rung.HOT
        away_s, over_s, _ = (
            self._weights_s(node, order.spec, bring, pinned) if bring else (0.0, 0.0, False)
        )
        return self.noisy(timing.parked_s + max(away_s, over_s)), Rung.PARKED

    def climbed(
        self, node: SimulatedNode, order: on.StartClimb, replica: Replica, rung: Rung
    ) -> None:
        spec = order.spec
        if rung is Rung.ABSENT and spec.snapshot == "eager" and spec.name not in self.pointers:
            gpu = replica.gpu
            self.after(self.timing.checkpoint_s, lambda: self._checkpointed(node, spec, gpu))

    def _checkpointed(self, node: SimulatedNode, spec: ModelSpec, gpu: str) -> None:
        if not node.up or spec.name in self.pointers:
            return
        pointer = self._pointer(spec, gpu)
        self.pointers[spec.name] = pointer
        node.keep(pointer.manifest, pointer.size_bytes)
        for scheduler in self.schedulers:
            scheduler.later(on.SnapshotListed(pointer))

    def _pointer(self, spec: ModelSpec, gpu: str) -> SnapshotPointer:
        fingerprint = Fingerprint(PRINT, {"engine": spec.engine}, spec.weights)
        manifest = digest.of_bytes(f"snapshot of {spec.name}".encode())
        return SnapshotPointer(
            spec.name, manifest, fingerprint, self.timing.snapshot_bytes, self.now, gpu
        )
