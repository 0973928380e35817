"""What `woodfrog top` draws."""

from woodfrog.cli import top
from woodfrog.model.node import ReplicaState
from woodfrog.model.placement import ClusterView, ModelView, NodeView, ReplicaView
from woodfrog.model.rung import Rung


def test_models_that_answer_come_first_then_by_rung() -> None:
    replica = ReplicaView("r", "n", ReplicaState.SERVING, 3)
    models = (
        ModelView("cold", Rung.ABSENT, (), None, None),
        ModelView("warm", Rung.SERVING, (), 5.0, 0.0),
        ModelView("busy", Rung.SERVING, (replica,), 0.0, 0.0),
        ModelView("ice", Rung.FROZEN, (), 70.0, 61.0),
    )
    node, empty, header, *rows = top.draw(
        ClusterView(models, (NodeView("n", 100, 40),))
    ).splitlines()
    assert node == "node n: 40 B of 100 B promised"
    assert empty == ""
    assert header.split()[:2] == ["MODEL", "LADDER"]
    assert [row.split()[0] for row in rows] == ["busy", "warm", "ice", "cold"]
    assert rows[0].split()[1:5] == ["●●●●●●", "serving", "1", "3"]
    assert rows[2].split()[1:3] == ["●●●···", "frozen"]
    assert rows[2].endswith("61 ms")
    assert rows[3].split()[1] == "●·····"
