"""Which nodes are worth a closer look for a climb: a few of a thousand. Pure.

Of each node a summary is kept and made anew when the node changed, so that one decision looks at a few numbers of each node
and at everything of the few that may be best: those that hold something of the model, and of each kind of node those with
least to do. A small cell is looked at as a whole.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any

from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler.room import load, room_bytes
from woodfrog.scheduler.view import ClusterView, NodeRecord

FEW_NODES = 32  # all are looked at
HOLDERS_MAX = 24
_OTHERS_MAX = 3  # of each kind of node
_CROWDED_MAX = 1  # the longest idle of equals
FULL = "full"


@dataclass(frozen=True, slots=True)
class Summary:
    kind: str
    away: str  # why nothing may go there, whatever it needs; empty when something may
    memory_bytes: int
    free_bytes: int
    count_max: int
    free_count: int
    gpu_bytes_max: int  # of its largest GPU; 0: it has none
    gpu_room_bytes: int  # on one GPU, once what rests there has yielded
    gpu_lowered_bytes: int  # once what may be lowered has gone too
    quiet_bytes: int  # of replicas that may be lowered
    quiet_count: int
    longest_idle: float  # when the first of these was used; inf when there is none
    load: tuple[int, tuple[int, int, str]]  # climbs, and `room.load`: who comes first of equals


def summary_of(name: str, node: NodeRecord) -> Summary:
    facts = node.facts
    quiet = [record for record in node.replicas.values() if record.quiet]
    return Summary(
        node.print_key,
        "not answering" if node.silent else "draining" if facts.draining else "",
        facts.memory_bytes,
        node.free_bytes,
        facts.replica_count_max,
        node.free_count,
        max((gpu.memory_bytes for gpu in facts.gpus), default=0),
        max((room_bytes(node, gpu, "", None) for gpu in facts.gpus), default=0),
        max(
            (room_bytes(node, gpu, "", None, [r.replica for r in quiet]) for gpu in facts.gpus),
            default=0,
        ),
        sum(record.replica.memory_bytes for record in quiet),
        len(quiet),
        min((record.used for record in quiet), default=float("inf")),
        (node.climbs, load(name, node)),
    )


def summaries(view: ClusterView) -> Mapping[str, Summary]:
    for name in view.changed_nodes:
        if (node := view.nodes.get(name)) is not None:
            view.summaries[name] = summary_of(name, node)
        else:
            view.summaries.pop(name, None)
    view.changed_nodes.clear()
    return view.summaries


def misfit(found: Summary, spec: ModelSpec, lies: bool = False) -> str:
    """Why the node takes no new replica, as far as its summary tells; empty when it may. `lies`: weights may be on a GPU."""
    if found.away:
        return found.away
    if spec.gpu_bytes and not found.gpu_bytes_max:
        return "without a GPU"
    if (
        spec.memory_bytes > found.memory_bytes
        or not found.count_max
        or (spec.gpu_bytes and spec.gpu_bytes + spec.weights_bytes > found.gpu_bytes_max)
    ):
        return "too small"
    if (
        spec.memory_bytes > found.free_bytes
        or found.free_count < 1
        or (spec.gpu_bytes and _need(spec, lies) > found.gpu_room_bytes)
    ):
        return FULL
    return ""


@dataclass(frozen=True, slots=True)
class Found:
    nodes: tuple[str, ...]  # to be looked at
    rest: Iterable[str]  # if nothing is found there
    misfits: Counter[str]  # why others are not, and how many


def with_room(
    view: ClusterView,
    spec: ModelSpec,
    pointers: Mapping[str, SnapshotPointer],
    excluded: frozenset[str],
) -> Found:
    """Those that may have room for a new replica."""
    holders = _holders(view, spec, pointers)
    whys = _whys(view, spec, holders, excluded)
    misfits = Counter(why for why in whys.values() if why)
    kinds: dict[str, list[tuple[tuple[int, tuple[int, int, str]], str]]] = {}
    holding = []
    for name, why in whys.items():
        found = view.summaries[name]
        if why:
            continue
        if name in holders:
            holding.append((found.load, name))
        else:
            kinds.setdefault(found.kind, []).append((found.load, name))
    near = [*_least(holding, HOLDERS_MAX)]
    for others in kinds.values():
        near += _least(others, _OTHERS_MAX)
    return Found(tuple(near), _rest([holding, *kinds.values()], near), misfits)


def crowded(
    view: ClusterView,
    spec: ModelSpec,
    pointers: Mapping[str, SnapshotPointer],
    excluded: frozenset[str],
) -> Found:
    """Those that have no room, and may have it once replicas are lowered."""
    holders = _holders(view, spec, pointers)
    whys = _whys(view, spec, holders, excluded)
    misfits = Counter(why or FULL for why in whys.values())
    holding: list[tuple[float, str]] = []
    others: list[tuple[float, str]] = []
    for name, why in whys.items():
        found = view.summaries[name]
        if (
            why in ("", FULL)
            and found.quiet_count
            and (not spec.gpu_bytes or _need(spec, name in holders) <= found.gpu_lowered_bytes)
            and spec.memory_bytes <= found.free_bytes + found.quiet_bytes
            and found.free_count + found.quiet_count >= 1
        ):
            (holding if name in holders else others).append((found.longest_idle, name))
    near = [*_least(holding, HOLDERS_MAX), *_least(others, _CROWDED_MAX)]
    misfits[FULL] -= len(holding) + len(others)  # they are counted when they were looked at
    return Found(tuple(near), _rest([holding, others], near), +misfits)


def _whys(
    view: ClusterView, spec: ModelSpec, holders: set[str], excluded: frozenset[str]
) -> Mapping[str, str]:
    """`misfit` of each node. Asked twice in a row where there is no room, and looked up once."""
    old = bool(view.changed_nodes)
    found = summaries(view)
    key = (spec, excluded, holders)
    if not old and view.last_look is not None and view.last_look[0] == key:
        return view.last_look[1]
    whys = {name: misfit(each, spec, name in holders) for name, each in found.items()}
    for name in excluded & whys.keys():
        whys[name] = "not to be tried again"
    view.last_look = (key, whys)
    return whys


def check(view: ClusterView) -> None:
    """AssertionError when a node changed and nobody said so."""
    for name, found in summaries(view).items():
        assert found == summary_of(name, view.nodes[name]), f"the summary of {name} is old"


def _holders(
    view: ClusterView, spec: ModelSpec, pointers: Mapping[str, SnapshotPointer]
) -> set[str]:
    found = set(view.holders.get(spec.weights, ()))
    for pointer in pointers.values():
        found |= view.holders.get(pointer.manifest, set())
    return found


def _need(spec: ModelSpec, lies: bool) -> int:
    return spec.gpu_bytes + (0 if lies else spec.weights_bytes)


def _rest(ranked: Iterable[list[tuple[Any, str]]], near: list[str]) -> Iterator[str]:
    """Sorted when it is wanted, which is rare."""
    seen = {*near}
    for each in ranked:
        yield from (name for _, name in sorted(each) if name not in seen)


def _least(ranked: Iterable[tuple[Any, str]], count: int) -> list[str]:
    return [name for _, name in nsmallest(count, ranked)]
