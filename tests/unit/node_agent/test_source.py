from pathlib import Path

import pytest

from woodfrog.node_agent.climb import Source
from woodfrog.node_agent.gpu_state import Bring
from woodfrog.node_agent.live import Canary


@pytest.mark.parametrize(
    ("made", "chosen", "moved"),
    [
        ("GPU-1", "GPU-1", {}),
        ("GPU-1", "GPU-2", {"GPU-1": "GPU-2"}),
        ("GPU-1", None, {}),
        ("", "GPU-2", {}),
    ],
)
def test_a_snapshot_moves_only_to_another_gpu(
    made: str, chosen: str | None, moved: dict[str, str]
) -> None:
    bring = Bring(chosen, "weights", host=False) if chosen else None
    source = Source(Path("snapshot"), Path("weights"), Canary("", ""), made, (1000,), bring)
    assert source.moved == moved
