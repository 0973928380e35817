"""What is on its way from the store, to which nodes: others there need not fetch it again. Pure."""

from collections.abc import Iterable

from woodfrog.scheduler.estimates import FEW_BYTES, Estimates
from woodfrog.scheduler.forecasts import Placement
from woodfrog.scheduler.view import ClusterView


class Fetches:
    def __init__(self, view: ClusterView, estimates: Estimates) -> None:
        self._view = view
        self._estimates = estimates
        self._of: dict[str, tuple[str, tuple[str, ...]]] = {}  # node and manifests, by attempt
        self._lines: set[str] = set()  # attempts that take a share of the store's line

    def begin(self, attempt: str, node: str, manifests: Iterable[str]) -> None:
        """A climb or a prefetch brings what of the manifests is not on the node yet."""
        wanted = tuple(manifests)
        if not wanted:
            return
        coming = self._view.nodes[node].coming
        if any(manifest not in coming for manifest in wanted):
            self._lines.add(attempt)
            self._estimates.fetching += 1
        self._of[attempt] = node, wanted
        for manifest in wanted:
            self._view.comes(manifest, node, 1)

    def end(self, attempt: str) -> None:
        """It may be over already, or never have fetched."""
        if attempt in self._lines:
            self._lines.discard(attempt)
            self._estimates.fetching -= 1
        node, manifests = self._of.pop(attempt, ("", ()))
        for manifest in manifests:
            self._view.comes(manifest, node, -1)

    def lost(self, node: str) -> None:
        """Call while the node is still in the view."""
        for attempt in [attempt for attempt, (name, _) in self._of.items() if name == node]:
            self.end(attempt)

    def check(self, under_way: set[str]) -> None:
        """AssertionError when a fetch outlived the climb or prefetch that it was for."""
        assert self._of.keys() <= under_way, "a fetch that nobody waits for"
        assert self._lines <= self._of.keys()
        assert self._estimates.fetching == len(self._lines)
        coming: dict[str, dict[str, int]] = {}
        for node, manifests in self._of.values():
            of_node = coming.setdefault(node, {})
            for manifest in manifests:
                of_node[manifest] = of_node.get(manifest, 0) + 1
        for name, record in self._view.nodes.items():
            assert dict(record.coming) == coming.get(name, {}), f"what comes to {name} is other"


def wanted(placement: Placement, weights: str) -> tuple[str, ...]:
    """Manifests of which the climb brings so much from the store that others feel it."""
    if (forecast := placement.forecast) is None:
        return ()
    pages = placement.snapshot.manifest if placement.snapshot is not None else ""
    branches = {pages: forecast.process, weights: forecast.weights}
    return tuple(m for m, b in branches.items() if m and b.missing.store_bytes > FEW_BYTES)
