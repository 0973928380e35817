"""CUDA's part of a checkpoint: what a process has on a GPU goes into its own memory, and comes back.

`driver` is the port to the CUDA driver, `driver_process` a process that has `cuInit` behind it and calls the driver, `client` what
the agent has of it. A driver that hangs takes that process along, not the agent.
"""

from woodfrog.node_agent.cuda.client import CudaCheckpoints
from woodfrog.node_agent.cuda.driver import State

__all__ = ["CudaCheckpoints", "State"]
