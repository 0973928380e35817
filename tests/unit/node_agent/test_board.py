from tests.unit.node_agent.test_gpu_state import GIB, gpu, need, on_gpu

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
