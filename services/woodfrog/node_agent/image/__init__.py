"""The mapped image: a CRIU image whose private memory is a mapping of the snapshot's `pages` file.

`wire` reads and edits CRIU's files, `areas` decides what moves where, `dump` and `rewrite` do the reading and writing,
`touched` finds out what a restored process used of it. A process restored from a mapped image must not be checkpointed
again: that image would refer to the `pages` file of the first.
"""

from woodfrog.node_agent.image.rewrite import MappedArea, Rewritten, rewrite

__all__ = ["MappedArea", "Rewritten", "rewrite"]
