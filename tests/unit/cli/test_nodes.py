"""What `nodes` says of nodes that drain."""

from woodfrog.cli.nodes import left_there, nodes_table
from woodfrog.model.node import ReplicaState
from woodfrog.model.placement import ClusterView, ModelView, NodeView, ReplicaView
from woodfrog.model.rung import Rung

GB = 10**9


def view(*nodes: NodeView, **replicas: tuple[str, ReplicaState, int]) -> ClusterView:
    models = tuple(
        ModelView("frog", Rung.SERVING, (ReplicaView(name, node, state, active),), None, None)
        for name, (node, state, active) in replicas.items()
    )
    return ClusterView(models, nodes)


def node(name: str, draining: bool = False, moving: int = 0) -> NodeView:
    return NodeView(name, 16 * GB, 4 * GB, (), draining, moving)


def test_the_list_tells_which_is_still_draining() -> None:
    nodes = node("a"), node("b", True), node("c", True), node("d", True, moving=1)
    told = nodes_table(view(*nodes, f1=("b", ReplicaState.PARKED, 0)))
    states = [line[6:20].strip() for line in told.splitlines()[1:]]
    assert states == ["takes replicas", "draining", "drained", "draining"]


def test_it_tells_what_is_still_there() -> None:
    draining = node("a", True, moving=2)
    told = left_there(
        view(
            draining,
            node("b"),
            f1=("a", ReplicaState.SERVING, 3),
            f2=("a", ReplicaState.PARKED, 0),
            f3=("b", ReplicaState.SERVING, 1),
        ),
        draining,
    )
    assert told == (
        "the bytes of 2 models are on their way to other nodes; "
        "f1 of frog is serving (3 active); f2 of frog is parked"
    )


def test_it_tells_that_there_is_no_other_node() -> None:
    draining = node("a", True)
    told = left_there(view(draining, node("b", True), f1=("a", ReplicaState.SERVING, 1)), draining)
    assert told == "f1 of frog is serving (1 active); no other node takes replicas"
    assert left_there(view(draining), draining) == ""
