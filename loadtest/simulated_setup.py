"""What a simulated cell is made of, what is asked of it, and how its plan is made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from loadtest.simulated_node import NodeSize
from woodfrog.model.rung import Rung
from woodfrog.scheduler import planning
from woodfrog.scheduler.plan import Item, Resource, Solution
from woodfrog.scheduler.planner import Planner
from woodfrog.scheduler.state import SchedulerState


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds, and bytes a second: docs/figures.md, first_token_s less warm_request_s, of gpu_ladder.llama-8b if not said."""

    message_s: float = 0.001
    lost_s: float = 0.5  # until a caller knows that its call got lost
    hot_s: float = 0.01  # case hot
    parked_s: float = 0.026  # case parked, less 15.0 GB at `pcie_bytes_s`
    restore_s: float = 0.28  # case frozen of embeddings, vlm and vit, whose weights are small
    beside_s: float = 0.11  # case frozen, less 15.0 GB at `pcie_bytes_s`; llama-70b: 0.12
    cold_s: float = 30.0  # rival of the wakes, weights in the page cache
    plan_s: float = 0.0  # made up: until a plan is there
    lower_s: float = 0.05  # made up; `Rates.lower_s` is its prior
    pcie_bytes_s: float = 50e9  # from pinned memory: "pinned copy of the weights"
    pin_bytes_s: float = 29e9  # case frozen_page_cache, less `beside_s`; llama-70b: 30e9
    disk_bytes_s: float = 2.0e9  # case frozen_disk: 16.8 GB, with the snapshot, in 8.3 s more
    store_bytes_s: float = 0.75e9  # case stored, the longer: 16.8 GB in 22.3 s
    checkpoint_s: float = 5.0  # made up: from a cold start to its snapshot
    noise: float = 0.1  # each is so much longer or shorter at most
    snapshot_bytes: int = 1_810_900_000  # snapshot, size_bytes


@dataclass(frozen=True, slots=True)
class Faults:
    """Mean seconds between two of a kind; 0: none."""

    replica_dies_s: float = 0.0
    node_dies_s: float = 0.0
    stream_breaks_s: float = 0.0
    scheduler_dies_s: float = 0.0
    line_breaks_s: float = 0.0  # between a router and a scheduler
    leader_goes_s: float = 0.0  # whoever leads then, if anybody does
    node_drains_s: float = 0.0  # from the end of one drain to the next
    drain_s: float = 15.0  # how long a node drains, also when it is empty sooner; longer for bytes
    away_s: float = 5.0  # how long a node or the scheduler is
    # Shares.
    climb_fails: float = 0.0  # prefetches too
    late: float = 0.0  # of messages, which others overtake
    late_s: float = 1.0  # so much at most
    lost: float = 0.0  # of calls, there or back


@dataclass(frozen=True, slots=True)
class Arrival:
    at: float
    model: str
    answer_s: float  # the answer takes, once it began


@dataclass(slots=True)
class Request:
    number: int
    arrival: Arrival
    tries: int = 0
    excluded: set[str] = field(default_factory=set)
    replica: str = ""
    began: float | None = None  #: its answer
    ended: float | None = None
    outcome: str = ""  #: "answered" or the reason of a refusal
    rung: Rung = Rung.SERVING


#: Of this machine's time: enough that no plan depends on how busy it is.
PLAN_WITHIN_S = 60.0


def solved(
    state: SchedulerState, planner: Planner, now: float, gpu_price: float
) -> tuple[dict[str, Item], Solution]:
    """The plan, as the scheduler's loop makes one: what idles, by model, and where it should rest."""
    items = [i for i in planning.items(state.view, state.demand, state.estimates, now) if i]
    by_model = {item.model: item for item in items}
    limits = planning.limits(state.view, by_model)
    prices = planning.prices(state.view, {Resource.GPU: gpu_price})
    return by_model, planner.solve(items, limits, prices, within_s=PLAN_WITHIN_S)


@dataclass(frozen=True, slots=True)
class Setup:
    size: NodeSize = field(default_factory=NodeSize)
    timing: Timing = field(default_factory=Timing)
    checked: bool = True  # invariants after each event; AssertionError when one is broken
    plan_every_s: float = 0.0  # 0: no plan
    gpu_price: float = 0.0
    copies: int = 0  # of each model on the nodes' disks when it begins
    snapshots: bool = False  # every model that may has one already, in the store
    # Of a FaultyCell; another has one of each.
    schedulers: int = 1
    routers: int = 1
    tenants: Mapping[int, tuple[str, ...]] = field(default_factory=dict)  # of some nodes, by number
    make_state: Callable[[str], SchedulerState] = SchedulerState  # each life's, from its name
