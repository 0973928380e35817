"""The real decisions in a simulated cell, where everything goes wrong: what must hold holds, and every request ends.

One to three schedulers, by the seed, and two routers, each of which asks them in an order of its own.
A failure names its seed: `WOODFROG_SIMULATION_SEED=7 pytest tests/simulation` runs that one alone.
"""

import os
import random
from collections import Counter
from dataclasses import replace

import pytest
from loadtest.simulated_faults import FaultyCell
from loadtest.simulated_node import NodeSize
from loadtest.simulated_router import WAIT_S
from loadtest.simulated_scheduler import Order, SimulatedScheduler
from loadtest.simulated_setup import Arrival, Faults, Setup, Timing

from woodfrog.model import digest
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler import events as on
from woodfrog.scheduler.board import Limits

GIB = 1 << 30
#: Longer than any climb with all its tries, beside what moves from nodes that drain, and than an idle replica stays that no
#: plan names.
SETTLE_S = Limits().freeze_s + 600.0
ENDS_S = WAIT_S + 15.0  # an answer takes 3.3 s at most, and there are three tries
SEEDS = [int(seed) for seed in os.environ.get("WOODFROG_SIMULATION_SEED", "").split()] or range(9)


def models(count: int) -> list[ModelSpec]:
    return [
        ModelSpec(
            f"m{n}", digest.of_bytes(f"m{n}".encode()), (4 + n % 12) * GIB, memory_bytes=4 * GIB,
            gpu_bytes=(3 * GIB if n % 4 else 0), slots=2, replicas_max=1 + n % 3,
            park_after_s=2.0 + n % 5, freeze_after_s=20.0 + n if n % 3 else None,
        )
        for n in range(count)
    ]  # fmt: skip


def arrivals(chance: random.Random, count: int, model_count: int, over_s: float) -> list[Arrival]:
    """Bursts, of models of which few are asked for most."""
    found: list[Arrival] = []
    while len(found) < count:
        at = chance.uniform(0, over_s)
        model = f"m{min(int(chance.paretovariate(0.8)) - 1, model_count - 1)}"
        for _ in range(chance.choice((1, 1, 1, 2, 9))):
            found.append(Arrival(at + chance.uniform(0, 0.2), model, chance.uniform(0.05, 3.0)))
    return found


def simulated(
    seed: int, faults: Faults, count: int = 200, kind: type[FaultyCell] = FaultyCell
) -> Counter[str]:
    return run(seed, faults, count, kind)[0]


class CellOfTenants(FaultyCell):
    """One node takes only acme's models; of these some go nowhere else. Nodes assert that nothing else is sent to them."""

    def __init__(
        self, seed: int, models: list[ModelSpec], nodes: int, setup: Setup, faults: Faults
    ) -> None:
        owned = [
            replace(m, tenant="acme" if n % 3 == 1 else "", dedicated=n % 6 == 1)
            for n, m in enumerate(models)
        ]
        super().__init__(seed, owned, nodes, replace(setup, tenants={0: ("acme",)}), faults)


def run(
    seed: int, faults: Faults, count: int = 200, kind: type[FaultyCell] = FaultyCell
) -> tuple[Counter[str], list[int]]:
    """Outcomes, and how many replicas were left on each node whose drain ended.

    Checked: no node promises more than it has, every request ends in time, and so does every climb; nothing is lowered that
    its scheduler could know to answer; afterwards all is at rest, and schedulers and routers know of it what nodes do.
    """
    memory_gib = (64, 22)[seed // 3 % 2]  # for all replicas that it may have, or fewer
    size = NodeSize(memory_gib * GIB, 6, 1, 40 * GIB, 60 * GIB, 300 * GIB)
    setup = Setup(
        size, Timing(cold_s=8.0, plan_s=0.5), plan_every_s=5.0, gpu_price=0.001 * (seed % 2),
        schedulers=1 + seed % 3, routers=2,
    )  # fmt: skip
    cell = kind(seed, models(10), 3, setup, faults)
    try:
        requests = cell.run(arrivals(random.Random(seed), count, 10, 120.0))
        late = [r.number for r in requests if r.ended is None or r.ended > r.arrival.at + ENDS_S]
        assert not late, f"requests {late} took too long"
        cell.settle(SETTLE_S)
    except Exception as error:
        error.add_note(f"again: WOODFROG_SIMULATION_SEED={seed} pytest tests/simulation")
        raise
    finally:
        cell.stop()
    return Counter(r.outcome for r in requests), cell.drained


@pytest.mark.parametrize("seed", SEEDS)
def test_without_faults_every_request_is_answered(seed: int) -> None:
    outcomes = simulated(seed, Faults())
    assert outcomes.keys() <= {"answered", "NO_CAPACITY"}, (seed, outcomes)
    assert outcomes["answered"] > 0.9 * outcomes.total(), (seed, outcomes)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_dies_every_request_ends_and_nothing_is_promised_twice(seed: int) -> None:
    faults = Faults(
        replica_dies_s=6.0, node_dies_s=25.0, stream_breaks_s=9.0, scheduler_dies_s=30.0,
        line_breaks_s=8.0, leader_goes_s=15.0, climb_fails=0.1, away_s=6.0, late=0.1, late_s=2.0,
        lost=0.03, node_drains_s=5.0,
    )  # fmt: skip
    outcomes = simulated(seed, faults)
    assert outcomes["answered"] > 0.5 * outcomes.total(), (seed, outcomes)


@pytest.mark.parametrize("seed", SEEDS)
def test_draining_a_node_empties_it_and_breaks_no_answer(seed: int) -> None:
    outcomes, left = run(seed, Faults(node_drains_s=3.0, drain_s=60.0))
    assert outcomes.keys() <= {"answered", "NO_CAPACITY"}, (seed, outcomes)
    assert outcomes["answered"] > 0.75 * outcomes.total(), (seed, outcomes)  # a third is away
    assert left, seed
    assert not any(left), (seed, left)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_goes_to_another_tenants_node(seed: int) -> None:
    """Where a dedicated model's one node drains or is away it waits, and is refused if that takes long."""
    faults = Faults(
        node_dies_s=40.0, stream_breaks_s=20.0, scheduler_dies_s=40.0, away_s=3.0, late=0.1,
        node_drains_s=20.0, drain_s=20.0,
    )  # fmt: skip
    outcomes = simulated(seed, faults, kind=CellOfTenants)
    assert outcomes["answered"] > 0.5 * outcomes.total(), (seed, outcomes)


def test_the_same_seed_is_the_same_story() -> None:
    faults = Faults(replica_dies_s=6.0, node_dies_s=25.0, stream_breaks_s=9.0, late=0.1, lost=0.03)
    assert simulated(3, faults) == simulated(3, faults)


class Mute(FaultyCell):
    """Its nodes never say that a climb is over."""

    def carry(self, by: SimulatedScheduler, order: Order) -> None:
        if isinstance(order, on.StartClimb):
            self.after(self.delay(), lambda: self.nodes[order.node].climb(order, lambda _: None))
        else:
            super().carry(by, order)


def test_a_climb_that_never_ends_is_found_and_its_seed_told() -> None:
    with pytest.raises(AssertionError, match="climbs that never end") as found:
        simulated(4, Faults(), count=5, kind=Mute)
    assert "WOODFROG_SIMULATION_SEED=4 " in found.value.__notes__[0]
