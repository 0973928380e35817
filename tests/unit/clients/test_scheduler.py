"""What goes over the wire comes back the same."""

from dataclasses import replace

from woodfrog.clients import scheduler as convert
from woodfrog.model.node import GpuFacts, ReplicaState
from woodfrog.model.placement import (
    Acquired,
    ClusterView,
    ModelView,
    NodeView,
    Predictions,
    ReadyReplica,
    ReplicaUsage,
    ReplicaView,
    TrackUpdate,
)
from woodfrog.model.rung import Rung

READY = ReadyReplica("a-1", "org/m", "a", "/run/s", 4)


def test_acquired() -> None:
    acquired = Acquired("e-1@a-1", READY, Rung.FROZEN, 12.5, "it was damaged", "00-1-2-01")
    assert convert.acquired(convert.acquired_to_pb(acquired)) == acquired


def test_track() -> None:
    update = TrackUpdate(True, (READY,), ("a-0",), ("a-2",))
    assert convert.track_update(convert.track_update_to_pb(update)) == update
    usage = ReplicaUsage("a-1", 3, 2)
    assert convert.usage(convert.usage_to_pb(usage)) == usage


def test_view() -> None:
    replica = ReplicaView("a-1", "a", ReplicaState.DESCENDING, 2)
    models = (
        ModelView("m", Rung.PARKED, (replica,), 1.5, 0.0),
        ModelView("n", Rung.ABSENT, (), None, None, "no node is large enough"),
        ModelView("p", Rung.ABSENT, (), None, None, "its climb failed", 3.5),
        ModelView("o", Rung.HOT, (replace(replica, state=ReplicaState.HOT),), 2.5, 30.0),
    )
    gpus = (GpuFacts("GPU-0", 80, 30, ("sha256:00",)), GpuFacts("GPU-1", 80, 0, ()))
    view = ClusterView(
        models,
        (NodeView("a", 9, 4), NodeView("b", 9, 4, gpus, draining=True, moving=3)),
        Predictions(7, 0.15),
    )
    assert convert.cluster_view(convert.cluster_view_to_pb(view)) == view
