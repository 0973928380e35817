"""Whether restores went to the pages, told from spans."""

import json
from typing import Any

from loadtest.restores import NO_ROOM, restores

from woodfrog.telemetry import names

MB = 10**6


def span(node: str, *seen: tuple[str, int, float | None], rung: str = "frozen") -> dict[str, Any]:
    told = [
        {"node": n, "page_cache_bytes": pages, "predicted_s": s, "misfit": "" if s else "full"}
        for n, pages, s in seen
    ]
    attributes = {
        names.MODEL: "frog", names.NODE: node, names.RUNG: rung, names.ATTEMPT: "a.1",
        **({names.SEEN: json.dumps(told)} if told else {}),
    }  # fmt: skip
    return {"name": "scheduler.place", "start_ns": 7, "attributes": attributes}


def test_only_restores_count() -> None:
    other = {**span("a"), "name": "climb"}
    assert restores([other, span("a", rung="parked"), span("a", rung="absent")]) == []
    assert len(restores([span("a"), span("b", rung="stored")])) == 2


def test_the_holder_of_the_pages_is_right() -> None:
    (found,) = restores([span("b", ("a", 0, 3.0), ("b", 300 * MB, 0.1))])
    assert (found.node, found.pages_bytes, found.exception) == ("b", 300 * MB, "")
    (close,) = restores([span("b", ("a", 302 * MB, 0.1), ("b", 300 * MB, 0.1))])
    assert not close.exception


def test_a_hotter_node_without_room_does_not_count() -> None:
    (found,) = restores([span("b", ("a", 300 * MB, None), ("b", 0, 3.0))])
    assert found.had_room
    assert not found.exception


def test_a_hotter_node_with_room_is_an_exception_with_its_reason() -> None:
    (found,) = restores([span("b", ("a", 300 * MB, 0.2), ("b", 100 * MB, 0.1))])
    assert found.had_room
    assert "200 MB more in memory" in found.exception
    assert "200 ms were predicted there and 100 ms on b" in found.exception


def test_where_others_were_lowered_nobody_had_room() -> None:
    (found,) = restores([span("b")])
    assert not found.had_room
    assert found.exception == NO_ROOM
