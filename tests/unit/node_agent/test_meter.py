"""What is charged is what was held, to the second and the byte."""

import math
from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.node_agent.test_gpu_state import GIB, gpu, need, on_gpu

from woodfrog.clock import FakeClock
from woodfrog.metering import HOUR_S, Ledger, Usage
from woodfrog.model.node import ReplicaState
from woodfrog.model.rung import Rung
from woodfrog.node_agent import state
from woodfrog.node_agent.board import Board
from woodfrog.node_agent.charges import Charges
from woodfrog.node_agent.meter import Holding, Meter, holdings
from woodfrog.node_agent.state import NodeState

REPLICAS = ("a", "b", "c")
HELD = st.dictionaries(
    st.sampled_from(REPLICAS),
    st.builds(
        Holding,
        st.sampled_from(["m", "n"]),
        st.integers(0, 1 << 40),
        st.sampled_from([0.0, 0.25, 1.0]),
    ),
)
STEPS = st.lists(
    st.tuples(
        st.one_of(st.just(0.0), st.integers(0, 9000).map(float), st.floats(0, 1e5)),
        st.one_of(st.just(0.0), st.floats(-1e6, 1e6)),  # a jump of the wall's clock
        HELD,
    ),
    max_size=20,
)
TENANTS = {"a": "one", "b": "two"}


@given(STEPS, st.floats(1e9, 2e9))
@settings(deadline=None)
def test_it_charges_exactly_the_time_that_passed_whatever_the_wall_says(
    steps: list[tuple[float, float, dict[str, Holding]]], wall: float
) -> None:
    now = 0.0
    meter = Meter(now)
    held: dict[str, Holding] = {}
    gpu_s: dict[tuple[str, str], float] = defaultdict(float)
    host: dict[tuple[str, str], float] = defaultdict(float)
    for seconds, jump, following in steps:
        now, wall = now + seconds, wall + seconds + jump
        for replica_id, holding in held.items():
            key = TENANTS.get(replica_id, ""), holding.model
            gpu_s[key] += holding.gpu_share * seconds
            host[key] += holding.host_bytes * seconds
        meter.hold(following, TENANTS, now, wall)
        held = following
    found: dict[tuple[str, str], Usage] = defaultdict(Usage)
    for row in meter.take():
        assert row.usage.gpu_s >= 0
        assert row.usage.host_byte_s >= 0
        found[row.tenant, row.model] += row.usage
    for key in gpu_s.keys() | found.keys():
        assert math.isclose(found[key].gpu_s, gpu_s[key], rel_tol=1e-6, abs_tol=1e-3)
        assert math.isclose(found[key].host_byte_s, host[key], rel_tol=1e-6, abs_tol=1e-3 * GIB)
    assert meter.take() == []


def test_an_interval_is_cut_at_full_hours() -> None:
    meter = Meter(0.0)
    meter.hold({"a": Holding("m", 2, 0.5)}, {}, 10.0, 100 * HOUR_S - 3.0)
    meter.hold({}, {}, 10.0 + 3.0 + HOUR_S + 4.0, 101 * HOUR_S + 4.0)
    rows = {row.hour: row.usage for row in meter.take()}
    assert {hour: usage.gpu_s for hour, usage in rows.items()} == {99: 1.5, 100: 1800.0, 101: 2.0}
    assert rows[99].host_byte_s == 6.0


def test_weights_are_split_among_those_who_use_them() -> None:
    node = NodeState(64 * GIB, 8, [gpu(30)])
    on_gpu(node, "a", need())
    alone = holdings(node)["a"].gpu_share
    private = node.gpus["gpu-0"].occupants["a"].held_bytes
    weights = sum(node.gpus["gpu-0"].weights.values())
    memory = node.gpus["gpu-0"].memory_bytes
    assert alone == (private + weights) / memory
    on_gpu(node, "b", need())
    shares = {name: holding.gpu_share for name, holding in holdings(node).items()}
    assert shares["a"] == shares["b"] == (private + weights / 2) / memory
    node.handle(state.ClimbFinished("b"))
    node.handle(state.DescendRequested("b", Rung.PARKED))
    node.handle(state.DescendFinished("b", ReplicaState.PARKED))
    shares = {name: holding.gpu_share for name, holding in holdings(node).items()}
    assert shares["a"] == alone
    assert 0 < shares["b"] < shares["a"]
    promised = node.gpus["gpu-0"].facts().promised_bytes
    assert math.isclose(sum(shares.values()), promised / memory)


def test_a_node_charges_from_the_climb_to_the_end() -> None:
    clock, ledger = FakeClock(wall=100 * HOUR_S), Ledger(None)
    node = NodeState(4 * GIB, 8)
    board = Board("node", node, {})
    charges = Charges(board, node, ledger, clock)
    clock.advance(5)
    board.decide(state.StartRequested("a", "m", GIB))
    clock.advance(10)
    board.decide(state.ClimbFinished("a"))
    clock.advance(20)
    charges.settle()
    (row,) = ledger.page(0, 1 << 40)
    assert (row.hour, row.model, row.usage) == (100, "m", Usage(host_byte_s=30.0 * GIB))
    clock.advance(1)
    board.decide(state.ReplicaEnded("a"))
    clock.advance(100)
    charges.settle()
    charges.settle()
    (row,) = ledger.page(0, 1 << 40)
    assert row.usage == Usage(host_byte_s=31.0 * GIB)
