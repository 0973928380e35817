"""Brings a model's trees into this node's cache before anybody climbs here."""

import itertools
from collections.abc import Sequence

from woodfrog.clients.weight_fs import WeightFsClient
from woodfrog.errors import FailedPrecondition, Unavailable
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.node_agent.climb import Climber
from woodfrog.node_agent.state import of_others


class Prefetcher:
    """Of one tree a chunk is fetched once, however many ask for it."""

    def __init__(
        self, node: str, climber: Climber, weight_fs: WeightFsClient, tenants: Sequence[str] = ()
    ) -> None:
        """`tenants` whose models alone come here; of everybody's where none is named."""
        self._node = node
        self._tenants = tenants
        self._climber = climber
        self._weight_fs = weight_fs
        self._numbers = itertools.count(1)

    async def prefetch(self, spec: ModelSpec, pointer: SnapshotPointer | None) -> int:
        """Bytes that came from the store, once all is there. Both trees are pinned until both are whole.

        Raises what weight_fs raises, FailedPrecondition NODE_OF_OTHERS. Cancelled, it leaves what came.
        """
        if not spec.admitted(self._tenants):
            raise FailedPrecondition(
                "NODE_OF_OTHERS",
                f"node {self._node} does not fetch it: {of_others(self._tenants)}; ask another",
            )
        owner = f"{self._node}-prefetch-{next(self._numbers)}"
        manifests = [spec.weights, *((pointer.manifest,) if pointer is not None else ())]
        fetched_bytes = 0
        try:
            for manifest in manifests:
                tree = await self._climber.tree(manifest, owner)
                if tree.cache_path is None:
                    fetched_bytes += (
                        await self._weight_fs.fetch(manifest, ahead=True)
                    ).fetched_bytes
            for manifest in manifests:
                if not await self._weight_fs.pin(manifest, owner):
                    raise Unavailable(
                        "PREFETCH_UNDONE",
                        f"tree {manifest} was whole and is not any more; prefetch it again",
                    )
        finally:
            await self._climber.let_go(owner)
        return fetched_bytes
