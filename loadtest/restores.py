"""Whether restores went where the pages of their snapshot were, by the spans of a cluster. Pure."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from woodfrog.telemetry import names

_FEW_BYTES = 4 << 20  # less of a difference is none
NO_ROOM = "others were lowered for it: no node with its pages had room, or none at all"


@dataclass(frozen=True, slots=True)
class Restore:
    """Where one went, when it was placed."""

    model: str
    node: str
    attempt: str
    start_ns: int  # since the epoch
    rung: str
    pages_bytes: int  # of its snapshot, in the node's page cache; 0 where that is not told
    exception: str  # why not to the node with the hottest pages among those with room; empty: there

    @property
    def had_room(self) -> bool:
        return self.exception != NO_ROOM


def restores(spans: Iterable[Mapping[str, Any]]) -> list[Restore]:
    """Of all placements that restore."""
    found = []
    for span in spans:
        told = span["attributes"]
        if span["name"] == "scheduler.place" and told[names.RUNG] in ("frozen", "stored"):
            seen = json.loads(told.get(names.SEEN, "[]"))
            node = told[names.NODE]
            pages_bytes = next((s["page_cache_bytes"] for s in seen if s["node"] == node), 0)
            found.append(
                Restore(
                    told[names.MODEL],
                    node,
                    told[names.ATTEMPT],
                    span["start_ns"],
                    told[names.RUNG],
                    pages_bytes,
                    _exception(node, seen),
                )
            )
    return found


def _exception(node: str, seen: list[dict[str, Any]]) -> str:
    if not seen:
        return NO_ROOM
    able = {each["node"]: each for each in seen if each["predicted_s"] is not None}
    chosen, hottest = able[node], max(able.values(), key=lambda each: each["page_cache_bytes"])
    more_bytes = hottest["page_cache_bytes"] - chosen["page_cache_bytes"]
    if more_bytes <= _FEW_BYTES:
        return ""
    return (
        f"{hottest['node']} had {more_bytes / 1e6:.0f} MB more in memory, but {hottest['predicted_s'] * 1000:.0f} ms"
        f" were predicted there and {chosen['predicted_s'] * 1000:.0f} ms on {node}"
    )
