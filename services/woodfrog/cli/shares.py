"""What each of several nodes on one machine takes of it, so that nothing is promised twice.

What a user sets for the node agent holds for each node, but for GPUs, which are dealt.
"""

import os
from collections.abc import Mapping
from pathlib import Path

_AGENT = "WOODFROG_NODE_AGENT_"


def memory(node_count: int, machine_bytes: int | None = None) -> dict[str, object]:
    """Of the agent's setting. One node alone takes the agent's own default, of which this is the part."""
    if node_count == 1:
        return {}
    machine_bytes = _machine_bytes() if machine_bytes is None else machine_bytes
    return {"memory_bytes": machine_bytes * 4 // 5 // node_count}


def gpus(
    given: Mapping[str, str],
    number: int,
    node_count: int,
    there: int | None = None,
    machine_bytes: int | None = None,
) -> dict[str, str]:
    """Variables of node `number`: every `node_count`th of the GPUs that are given, and its part of pinned memory.

    `there` is how many GPUs the machine has. What cannot be read is left for the agent to refuse.
    """
    said = given.get(f"{_AGENT}GPUS", "none")
    if node_count == 1 or said == "none":
        return {}
    if said == "all":
        count = len(list(Path("/dev").glob("nvidia[0-9]*"))) if there is None else there
        all_gpus = [str(gpu) for gpu in range(count)]
    else:
        all_gpus = said.split(",")
    if not all_gpus or not all(gpu.isdigit() for gpu in all_gpus):
        return {}
    own = all_gpus[number - 1 :: node_count]
    machine_bytes = _machine_bytes() if machine_bytes is None else machine_bytes
    arena = given.get(f"{_AGENT}ARENA_BYTES", str(machine_bytes // 4 // len(all_gpus)))
    return {f"{_AGENT}GPUS": ",".join(own) or "none", f"{_AGENT}ARENA_BYTES": arena}


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
