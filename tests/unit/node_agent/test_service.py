"""What a climb that comes over the wire asks the node for."""

from dataclasses import dataclass, field

import pytest
from tests.unit.scheduler.cell import replica, spec

from woodfrog.api.node_agent.v1 import replicas_pb2
from woodfrog.errors import InvalidArgument
from woodfrog.model.node import Climbed
from woodfrog.model.rung import Rung
from woodfrog.node_agent.service import ReplicasServicer
from woodfrog.node_agent.state import Order

FROG = spec("frog")


@dataclass
class RecordingLoop:
    orders: list[tuple[str, Order]] = field(default_factory=list)

    async def climb(self, request_id: str, order: Order) -> Climbed:
        self.orders.append((request_id, order))
        return Climbed(replica("f1", FROG, "a"), Rung.PARKED, (), "")


async def test_a_climb_is_ordered_as_it_was_asked_for() -> None:
    loop = RecordingLoop()
    service = ReplicasServicer(loop)  # type: ignore[arg-type]
    asked = replicas_pb2.ClimbRequest(
        request_id="c1", spec=FROG.encode(), replica_id="f1", yields=["t2", "t1"]
    )
    answer = await service.Climb(asked, None)
    assert answer.replica.replica_id == "f1"
    assert loop.orders == [("c1", Order(FROG, None, "f1", ("t2", "t1")))]


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
        await ReplicasServicer(loop).Climb(asked, None)  # type: ignore[arg-type]
    assert loop.orders == []
