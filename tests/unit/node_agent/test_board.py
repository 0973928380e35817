from tests.unit.node_agent.test_gpu_state import GIB, gpu, need, on_gpu

from woodfrog.model.spec import ModelSpec
from woodfrog.node_agent import state
from woodfrog.node_agent.board import Board
from woodfrog.node_agent.state import NodeState


def test_weights_are_shared_when_somebody_else_uses_them() -> None:
    node = NodeState(64 * GIB, 8, [gpu(30)])
    board = Board("node", node, {})
    moved = on_gpu(node, "a", need(home="gpu-9"))
    assert isinstance(moved, state.Start)
    assert moved.bring
    assert not board.shared(moved.bring, "a")
    on_gpu(node, "b", need(home="gpu-9"))  # has its own too
    assert not board.shared(moved.bring, "a")
    on_gpu(node, "c", need("other"))
    assert not board.shared(moved.bring, "a")
    on_gpu(node, "d", need())
    assert board.shared(moved.bring, "a")
    assert not board.shared(moved.bring, "d")


def test_it_tells_who_has_weights_of_its_own() -> None:
    node = NodeState(64 * GIB, 8, [gpu(30)])
    board = Board("node", node, {})
    for replica_id, home in (("a", "gpu-9"), ("b", "gpu-0"), ("c", "")):
        on_gpu(node, replica_id, need(home=home))
        board.specs[replica_id] = ModelSpec("frog", "w", 4 * GIB)
    told = {name: board.replica(name) for name in "abc"}
    assert [told[name].own_weights for name in "abc"] == [True, False, False]
    assert [told[name].gpu_bytes for name in "abc"] == [6 * GIB, 2 * GIB, 2 * GIB]
