"""A simulated cell: the scheduler's and the node agents' real decisions, on a clock that is moved, with made-up processes.

Real are `scheduler.state` with all it decides by, and each node's `node_agent.state`, whose word on memory is final. Made up
are what takes time (climbs, descents, messages, answers) and what nodes have in their caches; in `simulated_faults` also what
goes wrong. All of it follows from one seed.
"""

import heapq
import random
from collections.abc import Callable, Iterable, Sequence

from loadtest.simulated_cache import Cache, Lane
from loadtest.simulated_node import PRINT, NodeSize, Process, SimulatedNode
from loadtest.simulated_setup import Arrival, Request, Setup, plan
from woodfrog.model import digest
from woodfrog.model.node import (
    Climbed,
    NodeUpdate,
    Replica,
    ReplicaState,
)
from woodfrog.model.placement import Acquired, ReadyReplica, ReplicaUsage
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import Fingerprint, SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.node_agent.gpu_state import Bring
from woodfrog.scheduler import events as on
from woodfrog.scheduler.planner import Planner
from woodfrog.scheduler.state import SchedulerState

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
        self._make_state = setup.make_state
        self._planner, self._gpu_price = Planner(), setup.gpu_price
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
        self._lives = 0
        self._scheduler: SchedulerState | None = None
        self._connected: set[str] = set()
        self._early: dict[str, float] = {}  # the last message of each stream arrives then
        self._tick_at: float | None = None
        self.climbs: set[str] = set()  # that any scheduler began
        self.nodes = {
            name: SimulatedNode(self, name, setup.size, self._cache(setup.size))
            for name in (f"n{number:04}" for number in range(node_count))
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
        self._start_scheduler()
        if setup.plan_every_s:
            self._plan(setup.plan_every_s)

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

    def loses(self) -> bool:
        """Whether a call gets lost, there or on its way back."""
        return False

    def noisy(self, seconds: float) -> float:
        return seconds * self.chance.uniform(1 - self.timing.noise, 1 + self.timing.noise)

    def run(self, arrivals: Iterable[Arrival], patience_s: float = 600.0) -> list[Request]:
        """Until every request has ended. AssertionError when one has not `patience_s` after the last came."""
        last = 0.0
        for arrival in arrivals:
            number = len(self.requests)
            request = self.requests[number] = Request(number, arrival)
            last = max(last, arrival.at)
            self.after(arrival.at - self.now, lambda request=request: self._ask(request))  # type: ignore[misc]
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

    # --- the scheduler ---

    def _start_scheduler(self) -> None:
        self._lives += 1
        self._scheduler = self._make_state(f"e{self._lives}")
        self._tick_at = None
        self._handle(
            on.CatalogListed(
                tuple(self.models.values()), tuple(self.pointers.values()), tuple(self.nodes)
            )
        )
        for node in self.nodes.values():
            if node.up:
                self._connect(node)
        for request in list(self._tickets.values()):  # their calls failed; routers ask again
            self.after(self.timing.message_s, lambda request=request: self._ask(request))  # type: ignore[misc]
        self._tickets.clear()
        active = tuple(ReplicaUsage(name, count) for name, count in self._active.items() if count)
        if active:
            self._handle(on.UsageReported(_ROUTER, active))

    def _handle(self, event: on.Event) -> None:
        if self._scheduler is None:
            return
        commands = self._scheduler.handle(event, self.now)
        if self.checked:
            self._scheduler.check()
        for command in commands:
            self._carry_out(command)
        self._arm()

    def _arm(self) -> None:
        scheduler = self._scheduler
        when = scheduler.next_time() if scheduler else None
        if when is None or (self._tick_at is not None and self._tick_at <= when):
            return
        self._tick_at = max(when, self.now)

        def tick() -> None:
            if (
                self._scheduler is scheduler
                and self._tick_at is not None
                and self._tick_at <= self.now
            ):
                self._tick_at = None
                self._handle(on.Ticked())

        self.after(max(0.0, when - self.now) + 1e-9, tick)

    def _plan(self, every_s: float) -> None:
        if self._scheduler is not None:
            self._handle(plan(self._scheduler, self._planner, self.now, self._gpu_price))
        self.after(every_s, lambda: self._plan(every_s))

    def answer(self, event: on.Event) -> None:
        """To the scheduler that asked; another one does not know of it."""
        asked = self._scheduler
        self.after(self.delay(), lambda: self._handle(event) if self._scheduler is asked else None)

    def stream(self, node: SimulatedNode, update: NodeUpdate) -> None:
        """While the stream is up."""
        if node.name not in self._connected or self._scheduler is None:
            return
        asked = self._scheduler
        life = node.lives

        def arrive() -> None:
            if self._scheduler is asked and node.name in self._connected and node.lives == life:
                self._handle(on.NodeReported(node.name, update))

        self._in_order(node.name, arrive)

    def _in_order(self, stream: str, arrive: Callable[[], None]) -> None:
        at = max(self.now + self.delay(), self._early.get(stream, 0.0))
        self._early[stream] = at
        self.after(at - self.now, arrive)

    def _connect(self, node: SimulatedNode) -> None:
        if not node.up or self._scheduler is None:
            return
        self._connected.add(node.name)
        self._handle(on.NodeListed(node.name))
        self.stream(node, node.full())

    def _disconnect(self, node: SimulatedNode, for_s: float, *, lost_after_s: float = 3.0) -> None:
        self._connected.discard(node.name)
        self._handle(on.NodeSilent(node.name))
        life = node.lives

        def lose() -> None:
            if node.name not in self._connected:
                self._handle(on.NodeLost(node.name))

        self.after(lost_after_s, lose)

        def back() -> None:
            if not node.up and node.lives == life:
                node.start()
            if node.name not in self._connected:
                self._connect(node)

        self.after(for_s, back)

    def _carry_out(self, command: on.Command) -> None:
        match command:
            case on.StartClimb() | on.Descend() | on.Prefetch():
                self._ask_node(command)
            case on.Grant(ticket, acquired):
                self._granted(self._tickets.pop(ticket, None), acquired)
            case on.Refuse(ticket, _, reason):
                request = self._tickets.pop(ticket, None)
                if request is not None:
                    self._end(request, reason)
            case on.Announce(ready, gone):
                for each in ready:
                    self._ready.setdefault(each.model, {})[each.replica_id] = each
                    self._model_of[each.replica_id] = each.model
                for name in gone:
                    self._ready.get(self._model_of.pop(name, ""), {}).pop(name, None)

    def _ask_node(self, order: on.StartClimb | on.Descend | on.Prefetch) -> None:
        match order:
            case on.StartClimb(attempt=attempt):
                self.climbs.add(order.climb)
                away: on.Event = on.ClimbFailed(attempt, "RPC_UNAVAILABLE", "its node is away")
                self._to_node(order.node, lambda node: node.climb(order), away)
            case on.Prefetch(attempt):
                away = on.PrefetchFailed(attempt, "RPC_UNAVAILABLE", "its node is away")
                self._to_node(order.node, lambda node: node.prefetch(order), away)
            case on.Descend(replica_id):
                away = on.DescendFailed(replica_id, "RPC_UNAVAILABLE", "its node is away")
                self._to_node(order.node, lambda node: node.descend(order), away)

    def _to_node(self, name: str, ask: Callable[[SimulatedNode], None], away: on.Event) -> None:
        node = self.nodes[name]

        def arrive() -> None:
            if node.up:
                ask(node)
            else:
                self.answer(away)

        if self.loses():
            self.after(self.timing.lost_s, lambda: self.answer(away))
        else:
            self.after(self.delay(), arrive)

    # --- the router ---

    def _ask(self, request: Request) -> None:
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
        if self._scheduler is None:
            self.after(0.2, lambda: self._ask(request))
            return
        if self.loses():
            self.after(self.timing.lost_s, lambda: self._ask(request))
            return
        self._count += 1
        ticket = self._count
        self._tickets[ticket] = request
        excluded = frozenset(request.excluded)
        acquire = on.AcquireRequested(
            ticket, request.arrival.model, self.now + 300.0, _ROUTER, excluded
        )
        self.answer(acquire)

    def _forward(
        self, request: Request, to: ReadyReplica, rung: Rung, placement_id: str | None
    ) -> None:
        node = self.nodes[to.node]
        process = node.processes.get(to.replica_id) if node.up else None
        serves = process is not None and process.replica.state is ReplicaState.SERVING
        if process is None or not serves or len(process.running) >= to.slots:
            self._ready.get(to.model, {}).pop(to.replica_id, None)
            request.excluded.add(to.replica_id)
            request.tries += 1
            if placement_id is not None:
                self.answer(on.Released(placement_id, replica_failed=True))
            if request.tries >= _TRIES:
                self._end(request, "REPLICA_UNREACHABLE")
            else:
                self._ask(request)
            return
        process.running.add(request.number)
        request.replica, request.began, request.rung = to.replica_id, self.now, rung
        self._active[to.replica_id] = self._active.get(to.replica_id, 0) + 1
        self._report(to.replica_id, started=1)
        self.after(self.noisy(request.arrival.answer_s), lambda: self._answered(request, process))

    def _answered(self, request: Request, process: Process) -> None:
        if request.outcome:
            return  # it broke
        process.running.discard(request.number)
        self._left(request)
        self._end(request, "answered")

    def broken(self, number: int) -> None:
        request = self.requests[number]
        self._left(request)
        self._end(request, "broken")

    def _left(self, request: Request) -> None:
        self._active[request.replica] -= 1
        self._report(request.replica)

    def _granted(self, request: Request | None, acquired: Acquired) -> None:
        """Without a request nobody waits any more."""
        if request is None:
            self.answer(on.Released(acquired.placement_id))
        elif self.loses():
            self.after(self.timing.lost_s, lambda: self._ask(request))
        else:
            to, rung, name = acquired.replica, acquired.rung, acquired.placement_id
            self.after(self.delay(), lambda: self._forward(request, to, rung, name))

    def _report(self, replica_id: str, started: int = 0) -> None:
        usage = ReplicaUsage(replica_id, self._active.get(replica_id, 0), started)
        asked = self._scheduler

        def arrive() -> None:
            if self._scheduler is asked:
                self._handle(on.UsageReported(_ROUTER, (usage,)))

        self._in_order(_ROUTER, arrive)

    def _end(self, request: Request, outcome: str) -> None:
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
        self.answer(on.ClimbFinished(order.attempt, Climbed(replica, rung)))
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
        self.answer(on.SnapshotListed(pointer))

    def _pointer(self, spec: ModelSpec, gpu: str) -> SnapshotPointer:
        fingerprint = Fingerprint(PRINT, {"engine": spec.engine}, spec.weights)
        manifest = digest.of_bytes(f"snapshot of {spec.name}".encode())
        return SnapshotPointer(
            spec.name, manifest, fingerprint, self.timing.snapshot_bytes, self.now, gpu
        )
