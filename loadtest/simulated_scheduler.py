"""One scheduler of a simulated cell: the real state, life after life; its streams, its clock and its term are made up."""

from collections.abc import Callable
from typing import Protocol

from loadtest.simulated_node import SimulatedNode
from loadtest.simulated_setup import solved
from woodfrog.model.node import NodeUpdate
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler import events as on
from woodfrog.scheduler import planning
from woodfrog.scheduler.planner import Planner
from woodfrog.scheduler.state import SchedulerState

Order = on.StartClimb | on.Descend | on.Prefetch
ToRouters = on.Grant | on.Refuse | on.Announce

_PATIENCE_S = 3.0  # a node whose stream broke is lost then


class Cell(Protocol):
    """What a scheduler needs of the cell that it is in."""

    now: float
    checked: bool
    models: dict[str, ModelSpec]
    pointers: dict[str, SnapshotPointer]
    nodes: dict[str, SimulatedNode]
    make_state: Callable[[str], SchedulerState]

    def after(self, seconds: float, do: Callable[[], None]) -> None: ...

    def delay(self) -> float: ...

    def carry(self, by: "SimulatedScheduler", order: Order) -> None:
        """To the node."""

    def tell(self, by: "SimulatedScheduler", said: ToRouters) -> None: ...


class SimulatedScheduler:
    def __init__(self, cell: Cell, name: str) -> None:
        self.name = name
        self.state: SchedulerState | None = None  #: None while it is dead
        self.leads = True  #: as it believes
        self.climbs: set[str] = set()  #: that it began, in any life
        self._cell = cell
        self._lives = 0
        self._planner = Planner()
        self._led = True  # as the state was told last
        self._terms = 0
        self._tick_at: float | None = None
        self._streams: dict[str, int] = {}  # from nodes, by node, with a number of their own
        self._stream_count = 0
        self._silent: dict[str, int] = {}  # nodes whose stream broke, with a number of their own
        self._arrives: dict[str, float] = {}  # the last message from each node does then

    def start(self) -> None:
        cell = self._cell
        self._lives += 1
        self.state = cell.make_state(f"{self.name}{self._lives}")
        self._led = True
        self._tick_at = None
        listed = tuple(cell.models.values()), tuple(cell.pointers.values()), tuple(cell.nodes)
        self.handle(on.CatalogListed(*listed))
        for node in cell.nodes.values():
            self.connect(node)

    def kill(self) -> None:
        self.state = None
        self.leads = False
        self._streams.clear()
        self._silent.clear()

    def lead(self, leads: bool) -> None:
        """It notices that its term began, or ended."""
        if self.leads is not leads and self.state is not None:
            self.leads = leads
            self._terms += 1
            self.handle(on.Ticked())

    def handle(self, event: on.Event) -> None:
        """As the scheduler's loop does."""
        if self.state is None:
            return
        if self._led is not self.leads:
            self._led = self.leads
            self.handle(on.Led(self._led))
        commands = self.state.handle(event, self._cell.now)
        if self._cell.checked:
            self.state.check()
        for command in commands:
            match command:
                case on.StartClimb(climb=climb):
                    self.climbs.add(climb)
                    self._cell.carry(self, command)
                case on.Descend() | on.Prefetch():
                    self._cell.carry(self, command)
                case on.Grant() | on.Refuse() | on.Announce():
                    self._cell.tell(self, command)
        self._arm()

    def later(self, event: on.Event) -> None:
        """Takes a message's time. Only the life that there is now hears of it."""
        asked = self.state
        self._cell.after(
            self._cell.delay(), lambda: self.handle(event) if self.state is asked else None
        )

    def answers(self) -> Callable[[on.Event], None]:
        """Where the answer to an order goes, if the life that gave it still goes on then."""
        asked = self.state

        def answer(event: on.Event) -> None:
            if self.state is asked:
                self.later(event)

        return answer

    def plan(self, every_s: float, takes_s: float, gpu_price: float) -> None:
        """From now on, while it leads. What is planned in a term is not done in another."""
        state, term = self.state, self._terms
        if state is not None and self.leads:
            made = solved(state, self._planner, self._cell.now, gpu_price)

            def order() -> None:
                if self.state is state and self.leads and self._terms == term:
                    self.handle(planning.rests(state.view, *made))

            if takes_s:
                self._cell.after(takes_s, order)
            else:
                order()
        self._cell.after(every_s, lambda: self.plan(every_s, takes_s, gpu_price))

    def _arm(self) -> None:
        state = self.state
        when = state.next_time() if state else None
        if when is None or (self._tick_at is not None and self._tick_at <= when):
            return
        self._tick_at = max(when, self._cell.now)

        def tick() -> None:
            if (
                self.state is state
                and self._tick_at is not None
                and self._tick_at <= self._cell.now
            ):
                self._tick_at = None
                self.handle(on.Ticked())

        self._cell.after(max(0.0, when - self._cell.now) + 1e-9, tick)

    # --- streams of nodes: each message may be late, none overtakes another ---

    def connect(self, node: SimulatedNode) -> None:
        if node.up and self.state is not None and node.name not in self._streams:
            self._stream_count += 1
            self._streams[node.name] = self._stream_count
            self.hear(node, node.full())

    def hear(self, node: SimulatedNode, update: NodeUpdate) -> None:
        stream = self._streams.get(node.name)
        if stream is None:
            return

        def arrive() -> None:
            if self._streams.get(node.name) == stream:
                self._silent.pop(node.name, None)
                self.handle(on.NodeReported(node.name, update))

        now = self._cell.now
        at = max(now + self._cell.delay(), self._arrives.get(node.name, 0.0))
        self._arrives[node.name] = at
        self._cell.after(at - now, arrive)

    def cut(self, node: SimulatedNode, for_s: float) -> None:
        """The node's stream breaks. It is lost unless it is back in time."""
        if self._streams.pop(node.name, None) is None:
            return
        asked = self.state
        if node.name not in self._silent:
            self._stream_count += 1
            cut = self._silent[node.name] = self._stream_count

            def lose() -> None:
                if self.state is asked and self._silent.get(node.name) == cut:
                    del self._silent[node.name]
                    self.handle(on.NodeLost(node.name))

            self._cell.after(_PATIENCE_S, lose)
        self.handle(on.NodeSilent(node.name))
        self._cell.after(for_s, lambda: self.connect(node) if self.state is asked else None)
