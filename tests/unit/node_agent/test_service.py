"""What comes over the wire, and what it asks the node for."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.unit.scheduler.cell import facts, pointer, replica, spec

from woodfrog.api.node_agent.v1 import replicas_pb2
from woodfrog.clients import node_agent
from woodfrog.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from woodfrog.model.node import Climbed
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.node_agent.board import Board
from woodfrog.node_agent.drain import Drain
from woodfrog.node_agent.service import ReplicasServicer
from woodfrog.node_agent.state import NodeState, Order, StartRequested

FROG = spec("frog")


@dataclass
class RecordingLoop:
    orders: list[tuple[str, Order]] = field(default_factory=list)

    async def climb(self, request_id: str, order: Order) -> Climbed:
        self.orders.append((request_id, order))
        return Climbed(replica("f1", FROG, "a"), Rung.PARKED, (), "")


@dataclass
class RecordingPrefetcher:
    asked: list[tuple[ModelSpec, SnapshotPointer | None]] = field(default_factory=list)

    async def prefetch(self, spec: ModelSpec, pointer: SnapshotPointer | None) -> int:
        self.asked.append((spec, pointer))
        return 7


def servicer(
    loop: RecordingLoop | None = None,
    prefetcher: RecordingPrefetcher | None = None,
    drain: Drain | None = None,
) -> ReplicasServicer:
    return ReplicasServicer(loop, prefetcher, drain)  # type: ignore[arg-type]


async def test_a_climb_is_ordered_as_it_was_asked_for() -> None:
    loop = RecordingLoop()
    service = servicer(loop)
    asked = replicas_pb2.ClimbRequest(
        request_id="c1", spec=FROG.encode(), replica_id="f1", yields=["t2", "t1"]
    )
    answer = await service.Climb(asked, None)
    assert answer.replica.replica_id == "f1"
    assert loop.orders == [("c1", Order(FROG, None, "f1", ("t2", "t1")))]


async def test_orders_of_a_leader_whose_term_is_over_are_refused() -> None:
    loop, prefetcher = RecordingLoop(), RecordingPrefetcher()
    service = servicer(loop, prefetcher)
    newer = replicas_pb2.ClimbRequest(request_id="c1", spec=FROG.encode(), term=7)
    await service.Climb(newer, None)
    for call in (
        service.Climb(replicas_pb2.ClimbRequest(request_id="c2", spec=FROG.encode(), term=6), None),
        service.Descend(replicas_pb2.DescendRequest(replica_id="f1", rung="frozen", term=6), None),
        service.Prefetch(replicas_pb2.PrefetchRequest(spec=FROG.encode(), term=6), None),
    ):
        with pytest.raises(FailedPrecondition) as refused:
            await call
        assert refused.value.reason == "TERM_OVER"
    assert len(loop.orders) == 1
    assert not prefetcher.asked


@pytest.mark.parametrize(
    "asked",
    [
        replicas_pb2.ClimbRequest(request_id="c1", spec=b"{"),
        replicas_pb2.ClimbRequest(spec=FROG.encode()),
        replicas_pb2.ClimbRequest(request_id="c1", spec=FROG.encode(), snapshot=b"{"),
    ],
)
async def test_a_climb_that_cannot_be_read_is_refused(asked: replicas_pb2.ClimbRequest) -> None:
    loop = RecordingLoop()
    with pytest.raises(InvalidArgument):
        await servicer(loop).Climb(asked, None)
    assert loop.orders == []


@pytest.mark.parametrize("snapshot", [pointer(FROG), None])
async def test_a_prefetch_is_of_the_weights_and_of_the_snapshot_if_there_is_one(
    snapshot: SnapshotPointer | None,
) -> None:
    prefetcher = RecordingPrefetcher()
    asked = replicas_pb2.PrefetchRequest(
        spec=FROG.encode(), snapshot=snapshot.encode() if snapshot else b""
    )
    answer = await servicer(prefetcher=prefetcher).Prefetch(asked, None)
    assert answer.fetched_bytes == 7
    assert prefetcher.asked == [(FROG, snapshot)]


async def test_a_prefetch_that_cannot_be_read_is_refused() -> None:
    prefetcher = RecordingPrefetcher()
    for asked in (
        replicas_pb2.PrefetchRequest(),
        replicas_pb2.PrefetchRequest(spec=FROG.encode(), snapshot=b"{"),
    ):
        with pytest.raises(InvalidArgument) as refused:
            await servicer(prefetcher=prefetcher).Prefetch(asked, None)
        assert refused.value.reason == "BAD_PREFETCH"
    assert prefetcher.asked == []


async def test_a_drained_node_drains_on_after_a_restart_until_it_is_undrained(
    tmp_path: Path,
) -> None:
    def started() -> tuple[NodeState, Board, ReplicasServicer]:
        state = NodeState(1 << 30, 4)
        board = Board("a", state, {})
        return state, board, servicer(drain=Drain(board, tmp_path))

    state, board, service = started()
    watching = board.watch()
    first = (await anext(watching)).facts
    assert first is not None
    assert not first.draining
    await service.Drain(replicas_pb2.DrainRequest(draining=True), None)
    told = (await anext(watching)).facts
    assert told is not None
    assert told.draining
    state, board, service = started()
    assert state.draining
    await service.Drain(replicas_pb2.DrainRequest(draining=False), None)
    assert not state.draining
    assert not started()[0].draining


async def test_what_a_drain_refuses_is_refused_with_the_facts(tmp_path: Path) -> None:
    board = Board("a", NodeState(1 << 30, 4), {})
    Drain(board, tmp_path).set(True)
    with pytest.raises(ResourceExhausted) as refused:
        board.decide(StartRequested("f1", "frog", 1))
    known = facts("a")
    found = node_agent.refused(refused.value, known)
    assert found is not None
    assert found.draining
    assert "takes no other replica: it drains" in refused.value.message
    assert not known.draining


def test_a_drain_that_could_not_be_kept_does_not_begin(tmp_path: Path) -> None:
    state = NodeState(1 << 30, 4)
    drain = Drain(Board("a", state, {}), tmp_path / "nowhere")
    with pytest.raises(Unavailable, match="a restart would forget it"):
        drain.set(True)
    assert not state.draining
