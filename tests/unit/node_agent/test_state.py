"""The node's promises: whatever comes, it never promises more than it has, and a busy replica stays."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from woodfrog.model.node import ReplicaState
from woodfrog.model.rung import Rung
from woodfrog.node_agent import state
from woodfrog.node_agent.state import NodeState

GIB = 1 << 30
IDS = st.sampled_from(["a", "b", "c", "d", "e"])


def serving(node: NodeState, replica_id: str, memory_bytes: int = GIB) -> None:
    assert node.handle(state.StartRequested(replica_id, "m", memory_bytes)) == state.Start(
        replica_id
    )
    node.handle(state.ClimbFinished(replica_id))


def test_a_replica_that_does_not_fit_is_refused() -> None:
    node = NodeState(memory_bytes=2 * GIB, replica_count_max=8)
    serving(node, "a", memory_bytes=GIB)
    refused = node.handle(state.StartRequested("b", "m", GIB + 1))
    assert isinstance(refused, state.Refuse)
    assert refused.reason == "NODE_FULL"
    assert node.memory_promised_bytes == GIB


def test_the_replica_count_is_a_limit_too() -> None:
    node = NodeState(memory_bytes=64 * GIB, replica_count_max=1)
    serving(node, "a")
    assert isinstance(node.handle(state.StartRequested("b", "m", GIB)), state.Refuse)


def test_a_parked_replica_keeps_its_memory_and_a_frozen_one_does_not() -> None:
    node = NodeState(memory_bytes=2 * GIB, replica_count_max=8)
    serving(node, "a")
    assert node.handle(state.DescendRequested("a", Rung.PARKED)) == state.Park("a")
    node.handle(state.DescendFinished("a", ReplicaState.PARKED))
    assert node.memory_promised_bytes == GIB
    assert node.handle(state.DescendRequested("a", Rung.FROZEN)) == state.Freeze("a")
    node.handle(state.ReplicaEnded("a"))
    assert node.memory_promised_bytes == 0


def test_a_busy_replica_serves_on() -> None:
    node = NodeState(memory_bytes=2 * GIB, replica_count_max=8)
    serving(node, "a")
    node.handle(state.DescendRequested("a", Rung.PARKED))
    node.handle(state.DescendFinished("a", ReplicaState.SERVING))
    assert node.promises["a"].state is ReplicaState.SERVING


def test_a_climbing_replica_cannot_descend_and_a_descending_one_cannot_thaw() -> None:
    node = NodeState(memory_bytes=2 * GIB, replica_count_max=8)
    node.handle(state.StartRequested("a", "m", GIB))
    refused = node.handle(state.DescendRequested("a", Rung.FROZEN))
    assert isinstance(refused, state.Refuse)
    assert refused.reason == "REPLICA_BUSY"
    node.handle(state.ClimbFinished("a"))
    node.handle(state.DescendRequested("a", Rung.PARKED))
    refused = node.handle(state.ThawRequested("a"))
    assert isinstance(refused, state.Refuse)
    assert refused.reason == "REPLICA_GONE"


def test_a_replica_that_is_being_ended_is_nobody_s_and_keeps_its_memory() -> None:
    node = NodeState(memory_bytes=GIB, replica_count_max=8)
    serving(node, "a")
    node.handle(state.DescendRequested("a", Rung.PARKED))
    node.handle(state.DescendFinished("a", ReplicaState.PARKED))
    node.handle(state.EndBegun("a"))
    assert isinstance(node.handle(state.ThawRequested("a")), state.Refuse)
    assert isinstance(node.handle(state.DescendRequested("a", Rung.FROZEN)), state.Refuse)
    assert isinstance(node.handle(state.StartRequested("b", "m", GIB)), state.Refuse)
    node.handle(state.ReplicaEnded("a"))
    assert node.handle(state.StartRequested("b", "m", GIB)) == state.Start("b")


def test_a_node_of_some_tenants_starts_no_others_models() -> None:
    node = NodeState(memory_bytes=4 * GIB, replica_count_max=8)
    node.tenants = ("acme", "globex")
    refused = node.handle(state.StartRequested("a", "m", GIB, admitted=False))
    assert refused == state.Refuse("NODE_OF_OTHERS", "it takes only models of: acme, globex")
    assert node.handle(state.StartRequested("b", "m", GIB)) == state.Start("b")


def test_a_draining_node_starts_and_thaws_nothing_and_lowers_what_it_has() -> None:
    node = NodeState(memory_bytes=4 * GIB, replica_count_max=8)
    for name in "abc":
        serving(node, name)
    node.handle(state.StartRequested("d", "m", GIB))
    node.handle(state.DescendRequested("a", Rung.PARKED))
    node.handle(state.DescendFinished("a", ReplicaState.PARKED))
    node.handle(state.DrainSet(True))
    for asked in (state.StartRequested("e", "m", 0), state.ThawRequested("a")):
        refused = node.handle(asked)
        assert isinstance(refused, state.Refuse)
        assert refused.reason == "NODE_DRAINING"
    node.handle(state.ClimbFinished("d"))  # it was under way
    assert node.promises["d"].state is ReplicaState.SERVING
    assert node.handle(state.ThawRequested("b")) == state.Nothing()  # it serves already
    assert node.handle(state.DescendRequested("a", Rung.FROZEN)) == state.Freeze("a")
    node.handle(state.ReplicaEnded("a"))
    node.handle(state.DrainSet(False))
    assert node.handle(state.StartRequested("e", "m", GIB)) == state.Start("e")


def test_the_end_of_a_climb_that_already_ended_changes_nothing() -> None:
    node = NodeState(memory_bytes=4 * GIB, replica_count_max=8)
    node.handle(state.StartRequested("a", "m", GIB))
    node.handle(state.ReplicaEnded("a"))
    assert node.handle(state.ClimbFinished("a")) == state.Nothing()
    assert node.promises == {}


def test_descending_further_than_parked_is_our_own_mistake_when_it_names_another_rung() -> None:
    node = NodeState(memory_bytes=4 * GIB, replica_count_max=8)
    with pytest.raises(AssertionError):
        node.handle(state.DescendRequested("a", Rung.STORED))


class Machine(RuleBasedStateMachine):
    """Any order of requests, with the shell answering each command at some later time, or never."""

    def __init__(self) -> None:
        super().__init__()
        self.node = NodeState(memory_bytes=3 * GIB, replica_count_max=4)

    def in_state(self, *states: ReplicaState) -> list[str]:
        return [i for i, promise in self.node.promises.items() if promise.state in states]

    @rule(replica=IDS, memory=st.integers(0, 2 * GIB))
    def start(self, replica: str, memory: int) -> None:
        if replica not in self.node.promises:
            command = self.node.handle(state.StartRequested(replica, "m", memory))
            assert isinstance(command, state.Refuse) or not self.node.draining

    @rule(replica=IDS)
    def thaw(self, replica: str) -> None:
        self.node.handle(state.ThawRequested(replica))

    @rule(replica=IDS, rung=st.sampled_from([Rung.PARKED, Rung.FROZEN]))
    def descend(self, replica: str, rung: Rung) -> None:
        before = self.node.promises.get(replica)
        command = self.node.handle(state.DescendRequested(replica, rung))
        if before and before.state is ReplicaState.CLIMBING:
            assert isinstance(command, state.Refuse)

    @rule(data=st.data())
    def climb_finishes(self, data: st.DataObject) -> None:
        if climbing := self.in_state(ReplicaState.CLIMBING):
            self.node.handle(state.ClimbFinished(data.draw(st.sampled_from(climbing))))

    @rule(data=st.data(), to=st.sampled_from([ReplicaState.PARKED, ReplicaState.SERVING]))
    def descent_finishes(self, data: st.DataObject, to: ReplicaState) -> None:
        if descending := self.in_state(ReplicaState.DESCENDING):
            self.node.handle(state.DescendFinished(data.draw(st.sampled_from(descending)), to))

    @rule(draining=st.booleans())
    def drains(self, draining: bool) -> None:
        self.node.handle(state.DrainSet(draining))

    @rule(replica=IDS)
    def ends(self, replica: str) -> None:
        self.node.handle(state.ReplicaEnded(replica))
        assert replica not in self.node.promises

    @invariant()
    def holds(self) -> None:
        self.node.check()


TestMachine = Machine.TestCase
