"""What a scrape says of GPUs."""

from woodfrog.node_agent.gpu_state import GpuState
from woodfrog.node_agent.metrics import Metrics
from woodfrog.node_agent.state import NodeState


def test_weights_by_gpu_and_tier() -> None:
    gpu = GpuState("gpu-0", 100, 50, 1, weights={"a": 10, "b": 20}, pinned={"a": 10})
    metrics = Metrics(NodeState(0, 1, [gpu, GpuState("gpu-1", 100, 0, 1)]))
    metrics.look()
    found = {
        (name, tier): metrics.registry.get_sample_value(
            "woodfrog_node_agent_weights_bytes", {"gpu": name, "tier": tier}
        )
        for name in ("gpu-0", "gpu-1")
        for tier in ("gpu", "pinned")
    }
    assert [*found.values()] == [30, 10, 0, 0]
    gpu.pinned.clear()
    metrics.look()
    labels = {"gpu": "gpu-0", "tier": "pinned"}
    assert metrics.registry.get_sample_value("woodfrog_node_agent_weights_bytes", labels) == 0
