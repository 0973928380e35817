"""Which trees to evict, and which chunks to fetch before they are asked for. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

READAHEAD_CHUNKS_MAX = 8  # 32 MiB: beyond it the store's latency is hidden already


@dataclass(frozen=True, slots=True)
class TreeUse:
    digest: str
    allocated_bytes: int  # on disk
    last_use: float  # wall clock, seconds
    busy: bool  # pinned, open or being fetched: never evicted


def evict(trees: Iterable[TreeUse], need_bytes: int) -> list[str] | None:
    """Digests of the trees to drop, least recently used first, until `need_bytes` are free.

    None when all that may go would not be enough; then nothing should go.
    """
    idle = [tree for tree in trees if not tree.busy and tree.allocated_bytes > 0]
    chosen: list[str] = []
    for tree in sorted(idle, key=lambda tree: (tree.last_use, tree.digest)):
        if need_bytes <= 0:
            break
        chosen.append(tree.digest)
        need_bytes -= tree.allocated_bytes
    return chosen if need_bytes <= 0 else None


def readahead(run: int, last: int, chunk_count: int) -> range:
    """Chunks of one file to fetch ahead of a reader that has just come to chunk `last`.

    `run` is how many chunks it has read one after the other before that one; a random reader (0) gets nothing.
    """
    depth = min(1 << run, READAHEAD_CHUNKS_MAX) if run > 0 else 0
    return range(last + 1, min(last + 1 + depth, chunk_count))
