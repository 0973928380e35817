"""A simulated cell in which things go wrong: messages are late, overtake each other and get lost, streams break, replicas,
nodes and schedulers die and come back, and schedulers take the lead from each other. Its routers are the real ones.
"""

from collections.abc import Callable, Sequence

from loadtest.simulated_cell import SimulatedCell
from loadtest.simulated_loop import CellLoop
from loadtest.simulated_node import SimulatedNode
from loadtest.simulated_router import KNOWN_S, Front, SimulatedRouter
from loadtest.simulated_scheduler import Order, SimulatedScheduler, ToRouters
from loadtest.simulated_setup import Faults, Request, Setup
from woodfrog.errors import status
from woodfrog.model.node import ReplicaState
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler import events as on

_AWAY = status.UNREACHABLE
_DOUBT_S = 0.06  # until a stream is opened anew that a lost call made doubtful
_DRAIN_TRIES = 2  # so often as long again does a drain take, at most
_LEADERLESS_S = 5.5  # from a leader's death to the next term


class FaultyCell(SimulatedCell):
    def __init__(
        self,
        seed: int,
        models: Sequence[ModelSpec],
        node_count: int,
        setup: Setup,
        faults: Faults,
    ) -> None:
        self.faults = faults
        self.drained: list[int] = []  #: replicas that were left on each node when its drain ended
        self.loop = CellLoop(lambda: self.now, self.after)  # type: ignore[abstract]
        self._fronts: dict[str, Front] = {}
        self._elections = 0
        super().__init__(seed, models, node_count, setup)
        self.routers = [
            SimulatedRouter(self, f"router-{n}", self.chance.sample(fronts, len(fronts)))
            for fronts in ([*self._fronts.values()],)
            for n in range(setup.routers)
        ]
        for mean_s, cause in (
            (faults.replica_dies_s, self._kill_replica),
            (faults.node_dies_s, self._kill_node),
            (faults.stream_breaks_s, self._break_stream),
            (faults.line_breaks_s, self._break_line),
            (faults.scheduler_dies_s, self._kill_scheduler),
            (faults.leader_goes_s, self._elect),
            (faults.node_drains_s, self._drain_node),
        ):
            if mean_s:
                self._again(mean_s, cause)

    def _make_schedulers(self, setup: Setup) -> list[SimulatedScheduler]:
        """The first leads."""
        made = [SimulatedScheduler(self, "abcdefgh"[n]) for n in range(setup.schedulers)]
        for scheduler in made:
            scheduler.leads = scheduler is made[0]
            self._fronts[scheduler.name] = Front(self, scheduler)
        return made

    def settle(self, seconds: float) -> None:
        """Nothing goes wrong any more. AssertionError when anything is not at rest then, or schedulers and routers know
        otherwise than nodes.
        """
        self.faults = Faults()
        self.after(2 * _LEADERLESS_S, lambda: self._hand_over(self.schedulers[0], 0.0))
        self.pass_time(seconds)
        self.loop.check()
        moving = (ReplicaState.CLIMBING, ReplicaState.DESCENDING)
        for node in self.nodes.values():
            node.state.check()
            assert node.up, f"{node.name} never came back"
            for name, process in node.processes.items():
                assert not process.running, f"{name} answers nobody"
                state = process.replica.state
                assert state not in moving, f"{name} never comes to rest"
                assert state is not ReplicaState.SERVING, f"{name} idles and serves on"
        for scheduler in self.schedulers:
            self._settled(scheduler)
        for router in self.routers:
            router.table.check()
            assert not router.table.ids, f"a router takes {router.table.ids} for ready"
            assert not router.table.running(), "a router counts requests that ended"

    def _settled(self, scheduler: SimulatedScheduler) -> None:
        name, state, front = scheduler.name, scheduler.state, self._fronts[scheduler.name]
        assert state is not None, f"scheduler {name} never came back"
        stuck = sorted(climb for climb in scheduler.climbs if state.climbing(climb))
        assert not stuck, f"climbs that never end: {stuck}"
        assert not front.callers, f"scheduler {name} lets requests wait for ever"
        assert len(front.tracks) == len(self.routers), f"scheduler {name} lost a router"
        for node in self.nodes.values():
            seen = state.view.nodes[node.name]
            assert not seen.silent, f"{name} does not hear {node.name}"
            assert seen.facts == node.facts(), f"{name} knows other facts of {node.name}"
            assert (seen.reserved_bytes, seen.reserved_count, seen.climbs) == (0, 0, 0)
            lies = {each.manifest: each for each in node.cache.residents()}
            assert seen.residents == lies, f"{name} takes other bytes to be on {node.name}"
            told = {i: record.replica for i, record in seen.replicas.items()}
            assert told == {i: process.replica for i, process in node.processes.items()}, (
                f"{name} knows other replicas of {node.name}"
            )
            for record in seen.replicas.values():
                assert record.live, f"{name} waits for {record.replica.replica_id} for ever"
                assert not record.busy, f"{name} takes {record.replica.replica_id} for busy"

    def stop(self) -> None:
        """Call last, also when something failed."""
        self.loop.end()

    # --- messages ---

    def delay(self) -> float:
        late = self.chance.random() < self.faults.late
        return super().delay() + (self.chance.uniform(0, self.faults.late_s) if late else 0.0)

    def message_s(self) -> float:
        return super().delay()

    def loses(self) -> bool:
        return self.chance.random() < self.faults.lost

    def lost_s(self) -> float:
        return self.timing.lost_s

    def breaks(self) -> bool:
        return self.chance.random() < self.faults.climb_fails

    def carry(self, by: SimulatedScheduler, order: Order) -> None:
        """As the scheduler's loop does: where a climb's answer is lost, its node's stream is opened anew."""
        self._check_unused(by, order)
        node, answer, asked = self.nodes[order.node], by.answers(), by.state

        def lose(why: str) -> None:
            """The scheduler finds that out by itself."""
            if by.state is asked:
                by.handle(_lost(order, why))
                self._doubt(by, order)

        def back(event: on.Event) -> None:
            if self.loses():
                lose("its answer was lost")
                return
            answer(event)
            if isinstance(event, on.ClimbRefused) and event.facts.draining:
                self._doubt(by, order)

        def arrive() -> None:
            if node.up:
                node.do(order, back)
            else:
                lose("its node is away")

        if self.loses():
            self.after(self.timing.lost_s, lambda: lose("it was lost"))
        else:
            self.after(self.delay(), arrive)

    def _doubt(self, by: SimulatedScheduler, order: Order) -> None:
        if isinstance(order, on.StartClimb):
            by.cut(self.nodes[order.node], _DOUBT_S)

    def _check_unused(self, by: SimulatedScheduler, order: Order) -> None:
        """What a scheduler lowers answers nobody, as far as it could know."""
        if not isinstance(order, on.Descend):
            return
        name = order.replica_id
        told = self._fronts[by.name].told
        users = [router for router, usage in told.items() if usage.get(name)]
        assert not users, f"{by.name} lowers {name}, on which requests of {users} run"
        process = self.nodes[order.node].processes.get(name)
        for router in self.routers:
            began = router.replicas.oldest(process) if process is not None else None
            if began is not None and began < self.now - KNOWN_S:
                knows = router.lines[by.name].knows
                assert not knows, f"{by.name} lowers {name}, in use since {began:.3f}"

    def tell(self, by: SimulatedScheduler, said: ToRouters) -> None:
        self._fronts[by.name].say(said)

    def ask(self, request: Request) -> None:
        router = self.routers[request.number % len(self.routers)]
        self.loop.spawn(router.serve(request))

    def broken(self, number: int) -> None:
        for router in self.routers:
            if number in router.replicas.exchanges:
                router.replicas.exchanges[number].lose()

    # --- what goes wrong ---

    def _again(self, mean_s: float, cause: Callable[[], None]) -> None:
        faults = self.faults

        def happen() -> None:
            if self.faults is faults:
                cause()
                self._again(mean_s, cause)

        self.after(self.chance.expovariate(1 / mean_s), happen)

    def _kill_replica(self) -> None:
        found = [
            (node, name)
            for node in self.nodes.values()
            if node.up
            for name, process in node.processes.items()
            if process.replica.state is not ReplicaState.CLIMBING
        ]
        if found:
            node, name = self.chance.choice(found)
            node.end(name)

    def _kill_node(self) -> None:
        up = [node for node in self.nodes.values() if node.up]
        if len(up) < 2:
            return
        node = self.chance.choice(up)
        for process in node.processes.values():
            for number in sorted(process.running):
                self.broken(number)
            process.running.clear()
        node.up = False
        away_s = self.noisy(self.faults.away_s)
        for scheduler in self.schedulers:
            scheduler.cut(node, away_s + self.delay())

        def back() -> None:
            node.start()
            for scheduler in self.schedulers:
                scheduler.later(on.NodeListed(node.name))
                self.after(self.delay(), lambda scheduler=scheduler: scheduler.connect(node))  # type: ignore[misc]

        self.after(away_s, back)

    def _drain_node(self) -> None:
        """One at a time."""
        if any(node.draining for node in self.nodes.values()):
            return
        node = self.chance.choice(list(self.nodes.values()))
        node.drain(True)
        drain_s = self.faults.drain_s
        self.after(drain_s, lambda: self._undrain_node(node, drain_s, _DRAIN_TRIES))

    def _undrain_node(self, node: SimulatedNode, drain_s: float, tries: int) -> None:
        """Who drains it waits on while bytes are on their way."""
        states = [scheduler.state for scheduler in self.schedulers]
        moves = any(state is not None and state.moving(node.name) for state in states)
        if node.processes and moves and tries:
            self.after(drain_s, lambda: self._undrain_node(node, drain_s, tries - 1))
            return
        self.drained.append(len(node.processes))
        node.drain(False)

    def _break_stream(self) -> None:
        """From one node to one scheduler."""
        node = self.chance.choice(list(self.nodes.values()))
        self.chance.choice(self.schedulers).cut(node, self.chance.uniform(0.1, 6.0))

    def _break_line(self) -> None:
        """From one router to one scheduler."""
        router = self.chance.choice(self.routers)
        self.chance.choice([*router.lines.values()]).cut()

    def _kill_scheduler(self) -> None:
        scheduler = self.chance.choice(self.schedulers)
        if scheduler.state is None:
            return
        led = scheduler.leads
        self._fronts[scheduler.name].die()
        self.after(self.noisy(self.chance.choice((1.0, self.faults.away_s))), scheduler.start)
        if led:
            self.after(_LEADERLESS_S, self._elect)

    def _elect(self) -> None:
        """Another leads, or the same anew, or nobody; for a moment two believe that they do, or none."""
        to = self.chance.choice([*self.schedulers, None])
        self._hand_over(to, self.chance.uniform(-1.0, 3.0))

    def _hand_over(self, to: SimulatedScheduler | None, gap_s: float) -> None:
        """Below 0 the old one believes so much longer."""
        self._elections += 1
        election = self._elections
        before = [scheduler for scheduler in self.schedulers if scheduler.leads]

        def resign() -> None:
            for scheduler in before:
                if scheduler is not to or election != self._elections:
                    scheduler.lead(False)

        def win() -> None:
            if to is not None and election == self._elections:
                to.lead(True)

        self.after(max(0.0, -gap_s), resign)
        self.after(max(0.0, gap_s), win)


def _lost(order: Order, why: str) -> on.ClimbFailed | on.PrefetchFailed | on.DescendFailed:
    match order:
        case on.StartClimb(attempt=attempt):
            return on.ClimbFailed(attempt, _AWAY, why)
        case on.Prefetch(attempt):
            return on.PrefetchFailed(attempt, _AWAY, why)
        case on.Descend(replica_id):
            return on.DescendFailed(replica_id, _AWAY, why)
