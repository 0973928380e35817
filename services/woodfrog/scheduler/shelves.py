"""Which frozen models' bytes should lie on which node's disk, where they lie on none: part of the plan. Pure.

They go where disk is free: nothing is dropped for what nobody asked for.
"""

from woodfrog.model.rung import Rung
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler.estimates import Branch, Estimates, Missing, Way
from woodfrog.scheduler.plan import Item, Option, Resource
from woodfrog.scheduler.policy import could_take
from woodfrog.scheduler.view import ClusterView, NodeRecord

HEADROOM = 0.1  # of a cache stays free


def free_bytes(node: NodeRecord) -> float:
    """Of the node's cache; 0 where its limit is not known."""
    held = sum(resident.disk_bytes for resident in node.residents.values())
    return max(0.0, node.facts.disk_bytes * (1 - HEADROOM) - held)


class Shelves:
    """Of one plan."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view
        self._free = {
            name: free_bytes(node)
            for name, node in view.nodes.items()
            if not node.silent and not node.facts.draining
        }

    def item(self, spec: ModelSpec, estimates: Estimates, wait_s: float) -> Item | None:
        """Of a model with a snapshot that is nowhere whole, on the node with most disk free. None of others, and
        where no node that takes the model has room.
        """
        view = self._view
        pointers = view.pointers(spec)
        if not pointers or any(view.replicas_of(spec.name)):
            return None
        for name in view.holders.get(spec.weights, ()):
            node = view.nodes[name]
            held = pointers.get(node.print_key)
            if held is not None and node.holds(spec.weights) and node.holds(held.manifest):
                return None
        fitting = [
            (free, name)
            for name, free in self._free.items()
            if name in view.nodes  # it may be lost while a plan is put together
            and (pointer := pointers.get(view.nodes[name].print_key)) is not None
            and free >= pointer.size_bytes + spec.weights_bytes
            and could_take(view.nodes[name].facts, spec)
        ]
        if not fitting:
            return None
        _, name = max(fitting)
        node = view.nodes[name]
        pointer = pointers[node.print_key]
        size_bytes = pointer.size_bytes + spec.weights_bytes
        self._free[name] -= size_bytes
        gpu = spec.gpu_bytes > 0
        process_s, weights_s = estimates.priors.restore_prior_s(gpu, spec.weights_bytes)
        near = estimates.forecast(
            Way(node.print_key, spec.name, Rung.FROZEN, gpu), Branch(process_s), Branch(weights_s)
        )
        away = estimates.forecast(
            Way(node.print_key, spec.name, Rung.STORED, gpu),
            Branch(process_s, Missing(store_bytes=pointer.size_bytes)),
            Branch(weights_s, Missing(store_bytes=spec.weights_bytes)),
        )
        option = Option(name, Rung.FROZEN, near.seconds, {Resource.DISK: float(size_bytes)})
        return Item(spec.name, 1 / wait_s, away.seconds, (option,), spec.priority)
