"""The one process of a GPU that owns weight memory there, so that weights outlive replicas and all share one copy.

`device` is the port to the GPU, `arena` the pinned host memory, `vault` what the process does, `__main__` the process,
`client` what the agent has of it.
"""
