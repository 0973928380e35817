"""What goes over the wire comes back the same."""

from dataclasses import replace

from woodfrog.clients import node_agent as convert
from woodfrog.errors import Unavailable, status
from woodfrog.model.node import (
    Climbed,
    GpuFacts,
    NodeFacts,
    NodeUpdate,
    Replica,
    ReplicaState,
    Resident,
    Stage,
)
from woodfrog.model.rung import Rung

GPUS = (
    GpuFacts("GPU-0", 80, 30, ("sha256:00", "sha256:22"), ("sha256:33",), 7),
    GpuFacts("GPU-1", 80, 0, ()),
)
FACTS = NodeFacts(
    "a", {"kernel": "6.18", "cpu": "one"}, 9, 4, 3, draining=True, gpus=GPUS, disk_bytes=11
)
REPLICA = Replica(
    "a-1", "org/m", "sha256:00", ReplicaState.HOT, "/run/s", 4, "a", 7, "GPU-0", 5, True, 7.5
)
RESIDENT = Resident("sha256:11", 9, 5, 2, complete=False)


def test_updates() -> None:
    full = NodeUpdate(True, FACTS, (REPLICA,), ("a-0",), (RESIDENT,), ("sha256:22",))
    for update in (full, NodeUpdate()):
        assert convert.update(convert.update_to_pb(update)) == update


def test_climbed() -> None:
    climbed = Climbed(REPLICA, Rung.STORED, (Stage("restore.criu", 0.5, 0.25),), "it was damaged")
    assert convert.climbed(convert.climbed_to_pb(climbed)) == climbed


def test_a_refusal_carries_the_fresh_facts() -> None:
    fresh = replace(FACTS, memory_promised_bytes=9, draining=False)
    known = replace(FACTS, draining=False, gpus=())
    error = convert.node_full(fresh, "NODE_FULL", "no memory is left")
    assert status.to_status(error).message.startswith("node 'a' takes no other replica")
    assert convert.refused(error, known) == fresh
    draining = convert.node_full(fresh, "NODE_DRAINING", "it is draining")
    assert convert.refused(draining, known) == replace(fresh, draining=True)
    others = convert.node_full(replace(fresh, tenants=("acme",)), "NODE_OF_OTHERS", "no")
    assert convert.refused(others, known) == replace(fresh, tenants=("acme",))
    error.metadata.pop("gpus")  # as an agent refuses that knows of none
    assert convert.refused(error, known) == replace(fresh, gpus=())
    assert convert.refused(Unavailable("CLIMB_FAILED", "no"), known) is None
