"""Which nodes are worth a closer look for a climb: a few of a thousand. Pure.

Of each node a summary is kept and made anew when the node changed, so that one decision looks at a few numbers of all nodes
at once, and at everything of the few that may be best: those that hold something of the model, and of each kind of node
those with least to do. A small cell is looked at as a whole.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler.room import Clearing, load
from woodfrog.scheduler.view import ClusterView, NodeRecord

FEW_NODES = 32  # all are looked at
HOLDERS_MAX = 24
_OTHERS_MAX = 3  # of each kind of node
_CROWDED_MAX = 1  # the longest idle of equals
FULL = "full"
#: Why a node takes no new replica, as far as its summary tells; a later one is said before an earlier.
_WHYS = (
    "",
    FULL,
    "draining",
    "too small",
    "without a GPU",
    "not answering",
    "for other models",
    "not to be tried again",
)
_FITS, _FULL, _DRAINS, _SMALL, _NO_GPU, _SILENT, _OTHERS, _EXCLUDED = range(len(_WHYS))
_Rows = npt.NDArray[np.intp]  # numbers of nodes, in the order of their names


_SUMMARY = np.dtype(
    [
        (name, np.int64)
        for name in (
            "kind",  # of node
            "tenants",  # number of those whose models it takes; 0: everybody's
            "away",  # why nothing may go there, whatever it needs; _FITS when something may
            "memory_bytes",
            "free_bytes",
            "count_max",
            "free_count",
            "gpu_bytes_max",  # of its largest GPU; 0: it has none
            "gpu_room_bytes",  # on one GPU, once what rests there has yielded
            "gpu_lowered_bytes",  # once what may be lowered has gone too
            "quiet_bytes",  # of replicas that may be lowered
            "quiet_count",
            "climbs",
            "weights_bytes",  # of `room.load`, as is the next
            "count",
        )
    ]
    + [("longest_idle", np.float64)]  # when the first that may be lowered was used, else inf
)


class Table:
    """The summaries of all nodes, a row each in the order of their names."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.rows: dict[str, int] = {}
        self.summaries = np.zeros(0, _SUMMARY)
        self._kinds: dict[str, int] = {}
        self._tenants: dict[tuple[str, ...], int] = {(): 0}

    def __getitem__(self, column: str) -> npt.NDArray[np.int64]:
        return self.summaries[column]

    def update(self, view: ClusterView) -> None:
        changed = view.changed_nodes
        if any((name in self.rows) != (name in view.nodes) for name in changed):
            old, rows = self.summaries, self.rows
            self.names = sorted(view.nodes)
            self.rows = {name: row for row, name in enumerate(self.names)}
            self.summaries = np.zeros(len(self.names), _SUMMARY)
            kept = [name for name in self.names if name in rows]
            self.summaries[[self.rows[name] for name in kept]] = old[[rows[name] for name in kept]]
        for name in changed & self.rows.keys():
            self.summaries[self.rows[name]] = self.summary_of(name, view.nodes[name])
        changed.clear()

    def summary_of(self, name: str, node: NodeRecord) -> tuple[float, ...]:
        """The columns of a row."""
        facts = node.facts
        quiet = [record for record in node.replicas.values() if record.quiet]
        room = lowered = 0
        for gpu in facts.gpus:
            clearing = Clearing(node, gpu, "", None)
            room = max(room, clearing.room_bytes)
            for record in quiet:
                clearing.leave(record.replica)
            lowered = max(lowered, clearing.room_bytes)
        weights_bytes, count, _ = load(name, node)
        return (
            self._kinds.setdefault(node.print_key, len(self._kinds)),
            self._tenants.setdefault(facts.tenants, len(self._tenants)),
            _SILENT if node.silent else _DRAINS if facts.draining else _FITS,
            facts.memory_bytes, node.free_bytes, facts.replica_count_max, node.free_count,
            max((gpu.memory_bytes for gpu in facts.gpus), default=0), room, lowered,
            sum(record.replica.memory_bytes for record in quiet), len(quiet),
            node.climbs, weights_bytes, count,
            min((record.used for record in quiet), default=float("inf")),
        )  # fmt: skip

    def whys(self, spec: ModelSpec, lies: Iterable[int], excluded: frozenset[str]) -> _Rows:
        """Of each node, as a number in `_WHYS`. On the nodes `lies` the weights may be on a GPU."""
        full = (self["free_bytes"] < spec.memory_bytes) | (self["free_count"] < 1)
        small = (self["memory_bytes"] < spec.memory_bytes) | (self["count_max"] == 0)
        if spec.gpu_bytes:
            full |= self["gpu_room_bytes"] < self._need(spec, lies)
            small |= self["gpu_bytes_max"] < spec.gpu_bytes + spec.weights_bytes
        found = np.where(small, _SMALL, full * _FULL)
        if spec.gpu_bytes:
            found[self["gpu_bytes_max"] == 0] = _NO_GPU
        if len(self._tenants) > 1 or spec.dedicated:
            admitting = [n for tenants, n in self._tenants.items() if spec.admitted(tenants)]
            found[~np.isin(self["tenants"], admitting)] = _OTHERS
        found = np.maximum(found, self["away"])
        found[[self.rows[name] for name in excluded if name in self.rows]] = _EXCLUDED
        return found

    def could_clear(self, spec: ModelSpec, lies: Iterable[int]) -> npt.NDArray[np.bool_]:
        """Where there is room once all that may be lowered are."""
        found = (
            (self["quiet_count"] > 0)
            & (self["free_bytes"] + self["quiet_bytes"] >= spec.memory_bytes)
            & (self["free_count"] + self["quiet_count"] >= 1)
        )
        return (
            found & (self["gpu_lowered_bytes"] >= self._need(spec, lies))
            if spec.gpu_bytes
            else found
        )

    def _need(self, spec: ModelSpec, lies: Iterable[int]) -> npt.NDArray[np.int64]:
        need = np.full(len(self.names), spec.gpu_bytes + spec.weights_bytes, np.int64)
        need[[*lies]] = spec.gpu_bytes
        return need

    def by_load(self, rows: _Rows) -> _Rows:
        """Those with least to do first."""
        keys = (self["count"][rows], self["weights_bytes"][rows], self["climbs"][rows])
        return rows[np.lexsort(keys)]

    def by_idle(self, rows: _Rows) -> _Rows:
        """Those first where somebody idles longest."""
        return rows[np.argsort(self["longest_idle"][rows], kind="stable")]


@dataclass(frozen=True, slots=True)
class Found:
    nodes: tuple[str, ...]  # to be looked at
    rest: Iterable[str]  # if nothing is found there
    misfits: Counter[str]  # why others are not, and how many


def table(view: ClusterView) -> Table:
    """As the nodes are now."""
    if view.table is None:
        view.table = Table()
        view.changed_nodes.update(view.nodes)
    found: Table = view.table
    found.update(view)
    return found


def with_room(
    view: ClusterView,
    spec: ModelSpec,
    pointers: Mapping[str, SnapshotPointer],
    excluded: frozenset[str],
) -> Found:
    """Those that may have room for a new replica."""
    nodes = table(view)
    holders = _holders(view, nodes, spec, pointers)
    whys = nodes.whys(spec, holders, excluded)
    fits = whys == _FITS
    holding = _of(fits, holders)
    fits[holders] = False
    others = np.flatnonzero(fits)
    kinds = nodes["kind"][others]
    ranked = [nodes.by_load(holding)]
    near = [*ranked[0][:HOLDERS_MAX]]
    for kind in np.unique(kinds):
        ranked.append(nodes.by_load(others[kinds == kind]))
        near += ranked[-1][:_OTHERS_MAX].tolist()
    return _found(nodes, near, ranked, _counted(whys))


def crowded(
    view: ClusterView,
    spec: ModelSpec,
    pointers: Mapping[str, SnapshotPointer],
    excluded: frozenset[str],
) -> Found:
    """Those that have no room, and may have it once replicas are lowered."""
    nodes = table(view)
    holders = _holders(view, nodes, spec, pointers)
    whys = nodes.whys(spec, holders, excluded)
    clear = nodes.could_clear(spec, holders) & (whys <= _FULL)
    misfits = _counted(np.where(clear, _FITS, np.maximum(whys, _FULL)))  # others, when looked at
    holding = _of(clear, holders)
    clear[holders] = False
    ranked = [nodes.by_idle(holding), nodes.by_idle(np.flatnonzero(clear))]
    near = [*ranked[0][:HOLDERS_MAX], *ranked[1][:_CROWDED_MAX]]
    return _found(nodes, near, ranked, misfits)


def check(view: ClusterView) -> None:
    """AssertionError when a node changed and nobody said so."""
    nodes = table(view)
    assert nodes.names == sorted(view.nodes)
    for name, summary in zip(nodes.names, nodes.summaries.tolist(), strict=True):
        assert summary == nodes.summary_of(name, view.nodes[name]), f"the summary of {name} is old"


def _holders(  # and those to which it comes
    view: ClusterView, nodes: Table, spec: ModelSpec, pointers: Mapping[str, SnapshotPointer]
) -> list[int]:
    manifests = (spec.weights, *(pointer.manifest for pointer in pointers.values()))
    found: set[str] = set()
    for manifest in manifests:
        found |= view.holders.get(manifest, set()) | view.coming.get(manifest, set())
    return sorted(nodes.rows[name] for name in found)


def _of(chosen: npt.NDArray[np.bool_], rows: list[int]) -> _Rows:
    return np.array([row for row in rows if chosen[row]], np.intp)


def _counted(whys: _Rows) -> Counter[str]:
    counts = np.bincount(whys, minlength=len(_WHYS)).tolist()
    return Counter({why: count for why, count in zip(_WHYS, counts, strict=True) if why and count})


def _found(nodes: Table, near: list[int], ranked: list[_Rows], misfits: Counter[str]) -> Found:
    name = nodes.names.__getitem__
    return Found(tuple(map(name, near)), _rest(nodes.names, near, ranked), misfits)


def _rest(names: list[str], near: list[int], ranked: list[_Rows]) -> Iterator[str]:
    seen = {*near}
    for rows in ranked:
        yield from (names[row] for row in rows.tolist() if row not in seen)
