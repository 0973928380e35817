"""What `woodfrog trace` prints of spans, and what it says when it has none."""

import json
from pathlib import Path
from typing import Any

import pytest

from woodfrog.cli import waterfall
from woodfrog.errors import InvalidArgument, NotFound

A, B = "a" * 32, "ab" * 16


def span(name: str, span_id: str, parent_id: str, at_ms: float, took_ms: float, **more: Any) -> Any:
    return {
        "trace_id": A, "span_id": span_id, "parent_id": parent_id, "name": name, "service": "woodfrog-router",
        "start_ns": int(at_ms * 1e6), "duration_ms": took_ms, "attributes": {}, "links": [], "error": "", **more,
    }  # fmt: skip


SPANS = [
    span("POST", "1", "elsewhere", 100, 40, attributes={"gen_ai.request.model": "frog"}),
    span("acquire", "2", "1", 100, 20, links=[{"trace_id": B, "span_id": "9"}]),
    span("forward", "3", "1", 120, 20, error="it broke"),
    span("climb", "4", "2", 105, 10, attributes={"woodfrog.rung": "frozen"}),
]


def test_children_stand_below_their_parents_with_bars_where_they_were() -> None:
    title, _, header, *lines = waterfall.draw(SPANS, 60).splitlines()
    assert title == f"trace {A}, 40.0 ms"
    assert header.split() == ["SPAN", "IN", "AT", "MS", "TOOK", "MS"]
    assert [line.split()[0] for line in lines[:4]] == ["POST", "acquire", "climb", "forward"]
    assert lines[2].startswith("    climb  router")
    assert lines[2].split()[2:4] == ["5.0", "10.0"]
    bars = [line[line.index("█") :] for line in lines[:4]]
    assert len(bars[0]) > len(bars[1]) > len(bars[2])
    assert lines[3].index("█") > lines[2].index("█") > lines[0].index("█")
    assert all(len(line) <= 60 for line in lines[:4])
    assert lines[4:] == [f"acquire shared the climb of trace {B}", "forward failed: it broke"]
    assert "█" not in waterfall.draw(SPANS, 30)  # a narrow terminal


def test_a_trace_is_found_by_its_first_digits(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in SPANS))
    found = [each["name"] for each in waterfall.find(path, "AAAAAA")]
    assert found == ["POST", "acquire", "climb", "forward"]  # by their beginning
    with pytest.raises(NotFound, match="no trace 'bbbbbb'"):
        waterfall.find(path, "bbbbbb")
    with pytest.raises(InvalidArgument, match="too short"):
        waterfall.find(path, "a")
    other = span("Climb", "7", "", 500, 1, trace_id="a" * 31 + "b", error="refused")
    with path.open("a") as file:
        file.write(json.dumps(other) + "\n")
    with pytest.raises(InvalidArgument, match="2 traces begin"):
        waterfall.find(path, "aaaaaaaa")
    polled = span("Placements/Describe", "8", "", 600, 1, trace_id=B)
    first, second = waterfall.listed([*SPANS, other, polled])
    assert first[0] == other["trace_id"]
    assert second[2:] == ("POST", "frog", "frozen", "40.0", 4)


def test_what_failed_is_told_without_escapes() -> None:
    told = waterfall.draw([span("POST \x1b[2J", "a", "", 0, 1.0, error="no \x1b]0;x\x07")], 80)
    assert "\x1b" not in told
    assert "failed: no ?]0;x?" in told
