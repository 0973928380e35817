"""Which frozen models' bytes should lie on which node's disk, where they lie on none: part of the plan. Pure.

They go where disk is free: nothing is dropped for what nobody asked for.
"""

from bisect import insort
from collections.abc import Iterator
from itertools import islice

from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler.estimates import Branch, Estimates, Missing, Way
from woodfrog.scheduler.plan import Item, Option, Resource
from woodfrog.scheduler.policy import could_take
from woodfrog.scheduler.view import ClusterView, NodeRecord

HEADROOM = 0.1  # of a cache stays free
HOMES_MAX = 3  # nodes that a model has options on
RANK_S = 0.01  # that each of them counts less than the one before: of equals the first is taken


def free_bytes(node: NodeRecord, memory: float = 1.0) -> float:
    """Of the node's cache, were it `memory` times as large; 0 where its limit is not known."""
    held = sum(resident.disk_bytes for resident in node.residents.values())
    return max(0.0, node.facts.disk_bytes * memory * (1 - HEADROOM) - held)


class Shelves:
    """Of one plan."""

    def __init__(self, view: ClusterView, memory: float = 1.0) -> None:
        self._view = view
        self._free = {
            name: free_bytes(node, memory)
            for name, node in view.nodes.items()
            if not node.silent and not node.facts.draining
        }
        #: By kind, those with most bytes that nobody was offered yet first; the number is below 0.
        self._nodes: dict[str, list[tuple[float, str]]] = {}
        for name, free in self._free.items():
            self._nodes.setdefault(view.nodes[name].print_key, []).append((-free, name))
        self._most = {kind: -min(found)[0] for kind, found in self._nodes.items()}
        for found in self._nodes.values():
            found.sort()

    def item(self, spec: ModelSpec, estimates: Estimates, wait_s: float) -> Item | None:
        """Of a model with a snapshot that is nowhere whole, on the nodes with most disk free. None of others, and
        where no node that takes the model has room.
        """
        view = self._view
        pointers = view.pointers(spec)
        if not pointers or any(view.replicas_of(spec.name)):
            return None
        for name in view.holders.get(spec.weights, ()):
            node = view.nodes[name]
            held = pointers.get(node.print_key)
            whole = held is not None and node.holds(held.manifest) and node.holds(spec.weights)
            if whole and spec.admitted(node.facts.tenants):
                return None
        found = sorted(
            (less, name, kind)
            for kind, pointer in pointers.items()
            for less, name in islice(self._fitting(kind, spec, pointer), HOMES_MAX)
        )[:HOMES_MAX]
        if not found:
            return None
        self._take(*found[0], pointers[found[0][2]].size_bytes + spec.weights_bytes)
        options = tuple(
            self._option(name, kind, spec, pointers[kind], estimates, rank * RANK_S)
            for rank, (_, name, kind) in enumerate(found)
        )
        kind = found[0][2]
        gpu = spec.gpu_bytes > 0
        process_s, weights_s = estimates.priors.restore_prior_s(gpu, spec.weights_bytes)
        away = estimates.forecast(
            Way(kind, spec.name, Rung.STORED, gpu),
            Branch(process_s, Missing(store_bytes=pointers[kind].size_bytes)),
            Branch(weights_s, Missing(store_bytes=spec.weights_bytes)),
        )
        return Item(spec.name, 1 / wait_s, away.seconds, options, spec.priority)

    def _fitting(
        self, kind: str, spec: ModelSpec, pointer: SnapshotPointer
    ) -> Iterator[tuple[float, str]]:
        """Nodes of the kind that have room and take the model."""
        nodes, size_bytes = self._view.nodes, pointer.size_bytes + spec.weights_bytes
        if self._most.get(kind, 0.0) < size_bytes:
            return
        for less, name in self._nodes[kind]:
            # It may be lost while a plan is put together.
            fits = self._free[name] >= size_bytes and name in nodes
            if fits and could_take(nodes[name].facts, spec):
                yield less, name

    def _take(self, less: float, name: str, kind: str, size_bytes: int) -> None:
        """So that the next models are offered other nodes first."""
        nodes = self._nodes[kind]
        nodes.remove((less, name))
        insort(nodes, (less + size_bytes, name))

    def _option(
        self,
        name: str,
        kind: str,
        spec: ModelSpec,
        pointer: SnapshotPointer,
        estimates: Estimates,
        late_s: float,
    ) -> Option:
        gpu = spec.gpu_bytes > 0
        process_s, weights_s = estimates.priors.restore_prior_s(gpu, spec.weights_bytes)
        near = estimates.forecast(
            Way(kind, spec.name, Rung.FROZEN, gpu), Branch(process_s), Branch(weights_s)
        )
        uses = {Resource.DISK: float(pointer.size_bytes + spec.weights_bytes)}
        return Option(name, Rung.FROZEN, near.seconds, uses, late_s)
