"""Anything at any time: callers, routers, agents that lag, refuse, fail and vanish. What must hold holds after each event."""

from collections import deque
from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.unit.scheduler.cell import (
    GIB,
    OTHER_PRINT,
    PRINT,
    facts,
    pointer,
    replica,
    resident,
    spec,
)

from woodfrog.model.node import Climbed, GpuFacts, NodeFacts, NodeUpdate, Replica, ReplicaState
from woodfrog.model.placement import ReplicaUsage
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler import events as on
from woodfrog.scheduler import planning
from woodfrog.scheduler.board import Limits
from woodfrog.scheduler.plan import Resource
from woodfrog.scheduler.planner import Planner
from woodfrog.scheduler.room import room_bytes, sharable
from woodfrog.scheduler.state import SchedulerState
from woodfrog.scheduler.view import RESTING

MODELS = {
    "frog": spec("frog", replicas_max=2, park_after_s=3.0, freeze_after_s=9.0),
    "toad": spec("toad", slots=1, replicas_max=3, park_after_s=4.0, freeze_after_s=4.0),
    "olm": spec("olm", memory_bytes=GIB, gpu_bytes=3 * GIB, replicas_max=2, park_after_s=3.0),
    "eft": spec("eft", memory_bytes=GIB, gpu_bytes=3 * GIB, park_after_s=2.0, freeze_after_s=9.0),
    "newt": spec("newt", slots=3, memory_bytes=9 * GIB, park_after_s=0.0, freeze_after_s=6.0),
    "salp": spec("salp", memory_bytes=GIB, park_after_s=2.0),
    "gar": spec("gar", memory_bytes=GIB, park_after_s=2.0, replicas_min=1, replicas_max=2),
}
NODES = ("a", "b", "c")
GPUS = {"a": "GPU-0", "b": "GPU-1"}  # snapshots are from the first
GPU_BYTES = 5 * GIB  # one replica fits
WEIGHTS_BYTES = spec().weights_bytes
CONTEXT_BYTES = GIB // 4  # what rests keeps there
WAIT_S = 20.0
LIMITS = Limits(waiting_max=6)


def snapshot(model: ModelSpec) -> SnapshotPointer:
    return pointer(model, gpu=GPUS["a"] if model.gpu_bytes else "")


@dataclass
class Agent:
    """One node's truth, and what its stream has still to tell."""

    name: str
    replicas: dict[str, Replica] = field(default_factory=dict)
    stream: deque[NodeUpdate] = field(default_factory=deque)
    connected: bool = False
    draining: bool = False

    @property
    def facts(self) -> NodeFacts:
        promised = sum(each.memory_bytes for each in self.replicas.values())
        node_print = OTHER_PRINT if self.name == "c" else PRINT
        more = {
            "fingerprint": node_print,
            "draining": self.draining,
            "replica_count_max": 3,
            "disk_bytes": 9 * GIB,
        }
        gpus = (self.gpu,) if self.name in GPUS else ()
        return facts(self.name, promised, memory_bytes=13 * GIB, gpus=gpus, **more)

    @property
    def gpu(self) -> GpuFacts:
        there = [each for each in self.replicas.values() if each.gpu]
        users = [each for each in there if not each.own_weights]
        weights = sorted({each.weights for each in users if each.state is not ReplicaState.PARKED})
        promised = sum(each.gpu_bytes for each in there) + len(weights) * WEIGHTS_BYTES
        return GpuFacts(GPUS[self.name], GPU_BYTES, promised, tuple(weights))

    def takes(self, model: ModelSpec, own: bool, thawed: Replica | None = None) -> bool:
        """Whether it may serve from its GPU; who rests there yields, hot ones first."""
        if not model.gpu_bytes or self.name not in GPUS:
            return not model.gpu_bytes
        held = thawed.gpu_bytes if thawed is not None else 0
        for state in (ReplicaState.HOT, ReplicaState.PARKED, None):
            copy = 0 if model.weights in self.gpu.weights and not own else WEIGHTS_BYTES
            free = self.gpu.memory_bytes - self.gpu.promised_bytes
            if model.gpu_bytes - held + copy <= free:
                return True
            for each in [r for r in self.replicas.values() if r.gpu and r.state is state]:
                if each.replica_id != (thawed.replica_id if thawed is not None else ""):
                    self.parks(each) if state is ReplicaState.HOT else self.end(each.replica_id)
        return False

    def climbs(self, told: Replica, model: ModelSpec, own: bool) -> None:
        if model.gpu_bytes:
            held = model.gpu_bytes + (WEIGHTS_BYTES if own else 0)
            told = replace(told, gpu=GPUS[self.name], gpu_bytes=held, own_weights=own)
        self.put(replace(told, state=ReplicaState.CLIMBING))

    def owns(self, start: on.StartClimb) -> bool:
        """Whether what is restored has its own weights, as its snapshot is from elsewhere."""
        home = start.snapshot.gpu if start.snapshot is not None else ""
        return bool(start.spec.gpu_bytes) and home not in ("", GPUS.get(self.name))

    def parks(self, told: Replica, rung: Rung = Rung.PARKED) -> Rung:
        rung = rung if told.gpu else Rung.PARKED
        kept = WEIGHTS_BYTES if told.own_weights and rung is Rung.HOT else 0
        held = min(told.gpu_bytes, CONTEXT_BYTES + kept)
        self.put(replace(told, state=ReplicaState(rung.value), gpu_bytes=held))
        return rung

    def put(self, changed: Replica) -> None:
        self.replicas[changed.replica_id] = changed
        self.stream.append(NodeUpdate(False, self.facts, (changed,)))

    def end(self, name: str) -> None:
        if self.replicas.pop(name, None) is not None:
            self.stream.append(NodeUpdate(False, self.facts, gone=(name,)))

    def full(self) -> NodeUpdate:
        lies = tuple(resident(each.weights, each.weights_bytes) for each in MODELS.values())
        return NodeUpdate(True, self.facts, tuple(self.replicas.values()), residents=lies)


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.state = SchedulerState("e", LIMITS)
        self.now = 0.0
        self.agents = {name: Agent(name) for name in NODES}
        self.open: dict[int, on.AcquireRequested] = {}  # tickets without an answer
        self.tickets = 0
        self.left: dict[str, int] = {}  # model, newest ticket when one of its tickets gave up
        self.attempts: dict[str, on.StartClimb] = {}  # that wait for an answer
        self.lifting: dict[str, str] = {}  # attempt, replica: those that a node took up
        self.seen: set[str] = set()
        self.descents: dict[str, on.Descend] = {}
        self.prefetches: dict[str, on.Prefetch] = {}  # that wait for an answer
        self.late_descents: dict[str, on.Descend] = {}  # ordered before their node was lost
        self.placements: dict[str, str] = {}  # placement, router
        self.routed: set[str] = set()  # replicas that routers think ready
        self.numbers = 0

    # --- the shell ---

    def do(self, event: on.Event) -> None:
        commands = self.state.handle(event, self.now)
        for command in commands:
            self.carry_out(command)
        for command in commands:
            if isinstance(command, on.StartClimb):
                self.check_start(command)
        ready = {each.replica_id for each in self.state.ready()}
        assert self.routed == ready, "routers were told otherwise"

    def carry_out(self, command: on.Command) -> None:
        view = self.state.view
        match command:
            case on.Grant(ticket, acquired, _):
                asked = self.open.pop(ticket)
                record = view.replicas[acquired.replica.replica_id]
                assert record.replica.state is ReplicaState.SERVING
                assert record.replica.model == asked.model
                assert acquired.replica.replica_id not in asked.excluded
                assert self.state.active(record.replica.replica_id) <= record.replica.slots
                self.placements[acquired.placement_id] = asked.router
            case on.Refuse(ticket):
                self.left[self.open.pop(ticket).model] = self.tickets
            case on.StartClimb(climb):
                assert command.attempt not in self.seen, "an attempt's name came twice"
                assert not any(other.climb == climb for other in self.attempts.values())
                self.seen.add(command.attempt)
                self.attempts[command.attempt] = command
            case on.CancelClimb(attempt):
                del self.attempts[attempt]
            case on.Descend(replica_id):
                assert self.state.active(replica_id) == 0, "a replica in use is lowered"
                assert replica_id not in self.descents
                self.descents[replica_id] = command
            case on.Prefetch(attempt):
                assert attempt not in self.seen, "an attempt's name came twice"
                self.seen.add(attempt)
                self.prefetches[attempt] = command
            case on.Announce(ready, gone):
                self.routed -= set(gone)
                self.routed |= {each.replica_id for each in ready}

    def check_start(self, start: on.StartClimb) -> None:
        leaving = any(order.node == start.node for order in self.descents.values())
        if start.replica_id is None and not leaving:  # else room is promised that comes free soon
            node = self.state.view.nodes[start.node]
            assert node.free_bytes >= 0, "promised beyond the view"
            assert node.free_count >= 0, "promised beyond the view"
        if start.spec.gpu_bytes and not leaving:
            record = self.state.view.nodes[start.node]
            (told,) = record.facts.gpus
            thawed = self.state.view.replicas.get(start.replica_id or "")
            home = start.snapshot.gpu if start.snapshot is not None else ""
            wanted = sharable(start.spec, told.uuid, thawed.replica if thawed else None, home)
            assert room_bytes(record, told, wanted, None) >= 0, "promised beyond it"
        if start.attempt != f"{start.climb}.1" or start.replica_id is not None:
            return
        caused = self.open.get(start.ticket)
        if caused is None or caused.excluded or start.ticket <= self.left.get(caused.model, 0):
            return  # room may have been made for it while others left
        if not self.state._climbs.get(start.climb).waiters:
            return  # they had a slot before room was made for it
        others = {
            each.climb
            for each in self.attempts.values()
            if each.spec.name == start.spec.name and each.climb != start.climb
        }
        waiting = sum(each.model == start.spec.name for each in self.open.values())
        assert waiting > len(others) * start.spec.slots, "two climbs where one is enough"

    # --- the world ---

    @initialize(snapshots=st.booleans(), late=st.booleans(), connected=st.booleans())
    def start(self, snapshots: bool, late: bool, connected: bool) -> None:
        if late:
            self.acquire("frog", "r1", False)
        pointers = tuple(map(snapshot, MODELS.values())) if snapshots else ()
        self.do(on.CatalogListed(tuple(MODELS.values()), pointers, NODES))
        for name in NODES if connected else ():
            self.connect(name)

    @rule(
        name=st.sampled_from([*MODELS, "nobody"]),
        router=st.sampled_from(["r1", "r2"]),
        picky=st.booleans(),
    )
    def acquire(self, name: str, router: str, picky: bool) -> None:
        self.tickets += 1
        excluded = frozenset(sorted(self.routed)[:1]) if picky else frozenset()
        event = on.AcquireRequested(self.tickets, name, self.now + WAIT_S, router, excluded)
        self.open[self.tickets] = event
        self.do(event)

    @rule(count=st.integers(2, 5), name=st.sampled_from([*MODELS]))
    def burst(self, count: int, name: str) -> None:
        for _ in range(count):
            self.acquire(name, "r1", False)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.open)))
        self.left[self.open.pop(ticket).model] = self.tickets
        self.do(on.AcquireCancelled(ticket))

    @rule(
        made_up=st.dictionaries(
            st.sampled_from(["x1", "x2"]), st.sampled_from([Rung.HOT, Rung.PARKED, Rung.FROZEN])
        ),
        ahead=st.dictionaries(st.sampled_from([*MODELS, "nobody"]), st.sampled_from([*NODES, "z"])),
    )
    def plan(self, made_up: dict[str, Rung], ahead: dict[str, str]) -> None:
        """A real plan, and one of replicas that are gone."""
        view = self.state.view
        items = [
            i for i in planning.items(view, self.state.demand, self.state.estimates, self.now) if i
        ]
        by_model = {item.model: item for item in items}
        limits = planning.limits(view, by_model)
        solution = Planner().solve(
            items, limits, planning.prices(view, {Resource.GPU: 0.001, Resource.MEMORY: 0.001}), 0.0
        )
        found = planning.rests(view, by_model, solution)
        self.do(
            on.Planned(
                {**found.rungs, **made_up}, found.values, {**found.ahead, **ahead}, found.fetched
            )
        )

    @precondition(lambda self: self.placements)
    @rule(data=st.data(), failed=st.booleans())
    def release(self, data: st.DataObject, failed: bool) -> None:
        placement = data.draw(st.sampled_from(sorted(self.placements)))
        del self.placements[placement]
        self.do(on.Released(placement, failed))

    @precondition(lambda self: self.routed)
    @rule(
        data=st.data(),
        router=st.sampled_from(["r1", "r2"]),
        active=st.integers(0, 2),
        started=st.integers(0, 2),
    )
    def report(self, data: st.DataObject, router: str, active: int, started: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.routed)))
        self.do(on.UsageReported(router, (ReplicaUsage(name, active, started),)))

    @rule(router=st.sampled_from(["r1", "r2"]))
    def lose_router(self, router: str) -> None:
        self.do(on.RouterLost(router))

    @precondition(lambda self: self.attempts.keys() - self.lifting.keys())
    @rule(data=st.data(), luck=st.sampled_from(["takes", "takes", "refuses", "fails", "away"]))
    def node_hears_of_a_climb(self, data: st.DataObject, luck: str) -> None:
        waiting = sorted(self.attempts.keys() - self.lifting.keys())
        self.hears(self.attempts[data.draw(st.sampled_from(waiting))], luck)

    def hears(self, start: on.StartClimb, luck: str) -> None:
        agent = self.agents[start.node]
        if luck == "away":
            self.answer(on.ClimbFailed(start.attempt, "RPC_UNAVAILABLE", "no connection"))
        elif luck == "fails":
            self.answer(on.ClimbFailed(start.attempt, "CLIMB_FAILED", "it broke"))
        elif start.replica_id is not None:
            self.thaw_begins(agent, start)
        elif luck == "refuses" or not self.fits(agent, start):
            self.answer(on.ClimbRefused(start.attempt, agent.facts, "full"))
        else:
            self.numbers += 1
            name = f"{start.spec.name}-{self.numbers}"
            told = replica(name, start.spec, agent.name)
            agent.climbs(told, start.spec, agent.owns(start))
            self.lifting[start.attempt] = name

    def fits(self, agent: Agent, start: on.StartClimb) -> bool:
        told = agent.facts
        free = told.memory_bytes - told.memory_promised_bytes
        fits = start.spec.memory_bytes <= free and not agent.draining
        return fits and agent.takes(start.spec, agent.owns(start))

    def thaw_begins(self, agent: Agent, start: on.StartClimb) -> None:
        assert start.replica_id is not None
        known = agent.replicas.get(start.replica_id)
        if known is None or known.state not in RESTING:
            self.answer(on.ClimbFailed(start.attempt, "REPLICA_GONE", "it is gone"))
        elif agent.draining or not agent.takes(start.spec, known.own_weights, known):
            self.answer(on.ClimbRefused(start.attempt, agent.facts, "full"))
        else:
            agent.climbs(known, start.spec, known.own_weights)
            self.lifting[start.attempt] = start.replica_id

    @precondition(lambda self: self.lifting)
    @rule(data=st.data(), works=st.sampled_from([True, True, False]))
    def climb_ends(self, data: st.DataObject, works: bool) -> None:
        """Also one that the scheduler has given up: the node goes on with it."""
        self.ends(data.draw(st.sampled_from(sorted(self.lifting))), works)

    def ends(self, attempt: str, works: bool) -> None:
        name = self.lifting.pop(attempt)
        agent = next((each for each in self.agents.values() if name in each.replicas), None)
        event: on.ClimbFinished | on.ClimbFailed = on.ClimbFailed(
            attempt, "CLIMB_FAILED", "it broke"
        )
        if agent is not None and works:
            served = replace(agent.replicas[name], state=ReplicaState.SERVING)
            agent.put(served)
            event = on.ClimbFinished(attempt, Climbed(served, Rung.FROZEN))
        elif agent is not None:
            agent.end(name)
        self.answer(event)

    def answer(self, event: on.ClimbFinished | on.ClimbFailed | on.ClimbRefused) -> None:
        if self.attempts.pop(event.attempt, None) is not None:
            self.do(event)

    @precondition(lambda self: self.prefetches)
    @rule(data=st.data(), works=st.booleans())
    def prefetch_ends(self, data: st.DataObject, works: bool) -> None:
        attempt = data.draw(st.sampled_from(sorted(self.prefetches)))
        self.fetched(attempt, works)

    def fetched(self, attempt: str, works: bool) -> None:
        del self.prefetches[attempt]
        failed = on.PrefetchFailed(attempt, "RPC_UNAVAILABLE", "no connection")
        self.do(on.PrefetchFinished(attempt) if works else failed)

    @precondition(lambda self: self.descents or self.late_descents)
    @rule(data=st.data(), luck=st.sampled_from(["done", "done", "busy", "away"]))
    def descent_ends(self, data: st.DataObject, luck: str) -> None:
        self.lowers(data.draw(st.sampled_from(sorted(self.descents | self.late_descents))), luck)

    def lowers(self, name: str, luck: str) -> None:
        order = (self.late_descents if name in self.late_descents else self.descents).pop(name)
        agent = self.agents[order.node]
        if luck == "busy":
            self.do(on.DescendFailed(name, "REPLICA_BUSY", "it answers"))
        elif luck == "away":
            self.do(on.DescendFailed(name, "RPC_UNAVAILABLE", "no connection"))
        else:
            known, rung = agent.replicas.get(name), order.rung
            if rung is Rung.FROZEN:
                agent.end(name)
            elif known is not None:
                rung = agent.parks(known, rung)
            self.do(on.DescendFinished(name, rung))

    @precondition(lambda self: any(each.stream for each in self.agents.values()))
    @rule(data=st.data())
    def stream_moves(self, data: st.DataObject) -> None:
        talking = sorted(name for name, each in self.agents.items() if each.stream)
        agent = self.agents[data.draw(st.sampled_from(talking))]
        update = agent.stream.popleft()
        if agent.connected:
            self.do(on.NodeReported(agent.name, update))

    @rule(quiet=st.booleans(), streams=st.booleans())
    def all_goes_well(self, quiet: bool, streams: bool) -> None:
        """For a while: what was ordered is done, the streams catch up, requests end. Only so much gets far."""
        for name in sorted(self.descents.keys() - self.late_descents.keys()):
            self.lowers(name, "done")
        for attempt in sorted(self.prefetches):
            self.fetched(attempt, works=True)
        for attempt in sorted(self.attempts.keys() - self.lifting.keys()):
            if attempt in self.attempts:
                self.hears(self.attempts[attempt], "takes")
        for attempt in sorted(self.lifting):
            self.ends(attempt, True)
        for agent in self.agents.values() if streams else ():
            while agent.stream and agent.connected:
                self.do(on.NodeReported(agent.name, agent.stream.popleft()))
        for placement in sorted(self.placements) if quiet else ():
            del self.placements[placement]
            self.do(on.Released(placement, False))
        for router in ("r1", "r2") if quiet else ():
            self.do(on.RouterLost(router))

    @rule(name=st.sampled_from(["eft", "olm"]), streams=st.booleans())
    def models_take_turns(self, name: str, streams: bool) -> None:
        """One comes, and parks soon after."""
        self.acquire(name, "r1", False)
        self.all_goes_well(quiet=True, streams=streams)
        self.time_passes(3.0)
        self.all_goes_well(quiet=True, streams=streams)

    def connect(self, name: str) -> None:
        agent = self.agents[name]
        agent.connected = True
        agent.stream.clear()
        self.do(on.NodeReported(name, agent.full()))

    def disconnect(self, name: str, lost: bool, died: bool) -> None:
        agent = self.agents[name]
        agent.connected = False
        self.do(on.NodeSilent(name))
        if died:
            agent.replicas.clear()
            agent.stream.clear()
        if lost:
            ordered = {key: order for key, order in self.descents.items() if order.node == name}
            self.late_descents |= ordered
            self.descents = {k: v for k, v in self.descents.items() if k not in ordered}
            self.do(on.NodeLost(name))

    @rule(
        name=st.sampled_from(NODES),
        kind=st.sampled_from(["up", "silent", "lost", "died", "listed", "drains", "takes"]),
    )
    def node_trouble(self, name: str, kind: str) -> None:
        agent = self.agents[name]
        if kind == "up":
            self.connect(name)
        elif kind == "listed":
            self.do(on.NodeListed(name))
        elif kind in ("drains", "takes"):
            agent.draining = kind == "drains"
            agent.stream.append(NodeUpdate(False, agent.facts))
        else:
            self.disconnect(name, kind != "silent", kind == "died")
            if kind != "lost":
                self.connect(name)

    @rule(name=st.sampled_from(NODES), data=st.data())
    def replica_dies(self, name: str, data: st.DataObject) -> None:
        agent = self.agents[name]
        if agent.replicas:
            agent.end(data.draw(st.sampled_from(sorted(agent.replicas))))

    @rule(
        name=st.sampled_from([*MODELS]),
        kind=st.sampled_from(["gone", "back", "back", "weights", "snapshot", "no snapshot"]),
    )
    def catalog_changes(self, name: str, kind: str) -> None:
        events: dict[str, on.Event] = {
            "gone": on.ModelRemoved(name),
            "back": on.ModelListed(MODELS[name]),
            "weights": on.ModelListed(replace(MODELS[name], weights=spec("new").weights)),
            "snapshot": on.SnapshotListed(snapshot(MODELS[name])),
            "no snapshot": on.SnapshotRemoved(snapshot(MODELS[name])),
        }
        self.do(events[kind])

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, 10.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in range(1000):
            when = self.state.next_time()
            if when is None or when > end:
                break
            self.now = max(self.now, when)
            self.do(on.Ticked())
        else:
            raise AssertionError("ticks without end")
        self.now = end

    @invariant()
    def holds(self) -> None:
        self.state.check()

    def teardown(self) -> None:
        """Every ticket ends, whatever answers never come."""
        self.time_passes(WAIT_S + 1)
        assert not self.open, f"tickets {sorted(self.open)} never ended"


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=120, stateful_step_count=60, deadline=None, derandomize=True
)
