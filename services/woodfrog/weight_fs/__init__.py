"""This node's cache of weights and snapshots, and the FUSE mount that shows them."""
