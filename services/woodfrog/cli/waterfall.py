"""`woodfrog trace`: one request's spans as a tree with bars, or the latest traces as a list."""

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from woodfrog.cli import trace_file
from woodfrog.cli.show import plain, table
from woodfrog.errors import InvalidArgument, NotFound
from woodfrog.telemetry import names

LISTED_MAX = 20
_BAR_WIDTH_MIN = 10
_ID_DIGITS_MIN = 6

Span = dict[str, Any]  # a line of traces.jsonl: docs/formats.md


def tree(spans: Sequence[Span]) -> Iterator[Span]:
    """Depth first, each with its `depth`; spans whose parent is not here are at the top."""
    ids = {span["span_id"] for span in spans}
    below: dict[str, list[Span]] = {}
    for span in spans:
        below.setdefault(span["parent_id"] if span["parent_id"] in ids else "", []).append(span)
    stack = [(span, 0) for span in reversed(below.get("", []))]
    while stack:
        span, depth = stack.pop()
        yield {**span, "depth": depth}
        stack += [(each, depth + 1) for each in reversed(below.get(span["span_id"], []))]


def trace(path: Path, prefix: str) -> None:
    """Prints the trace whose id begins so. Raises InvalidArgument, NotFound."""
    print(draw(find(path, prefix), shutil.get_terminal_size().columns))


def find(path: Path, prefix: str) -> list[Span]:
    """Its spans, oldest first. Raises NotFound TRACE_NOT_FOUND, InvalidArgument TRACE_AMBIGUOUS."""
    if len(prefix) < _ID_DIGITS_MIN:
        raise InvalidArgument(
            "TRACE_AMBIGUOUS", f"{prefix!r} is too short; give {_ID_DIGITS_MIN} digits or more"
        )
    spans = [span for span in trace_file.read(path) if span["trace_id"].startswith(prefix.lower())]
    found = {span["trace_id"] for span in spans}
    if not found:
        raise NotFound(
            "TRACE_NOT_FOUND",
            f"no trace {prefix!r} in {path}; it may not have been sampled, or goes to a collector"
            " (OTEL_EXPORTER_OTLP_ENDPOINT); see: woodfrog trace",
        )
    if len(found) > 1:
        raise InvalidArgument(
            "TRACE_AMBIGUOUS", f"{len(found)} traces begin with {prefix!r}; give more digits"
        )
    return spans


def draw(spans: Sequence[Span], columns: int) -> str:
    """The waterfall, as wide as `columns`; bars where there is room."""
    began = min(span["start_ns"] for span in spans)
    whole_ms = max((s["start_ns"] - began) / 1e6 + s["duration_ms"] for s in spans) or 1.0
    rows, notes = [], []
    for span in tree(spans):
        after_ms = (span["start_ns"] - began) / 1e6
        rows.append(
            (
                "  " * span["depth"] + span["name"],
                span["service"].removeprefix("woodfrog-"),
                f"{after_ms:.1f}",
                f"{span['duration_ms']:.1f}",
            )
        )
        if span["error"]:
            notes.append(f"{span['name']} failed: {span['error']}")
        notes += [
            f"{span['name']} shared the climb of trace {li['trace_id']}" for li in span["links"]
        ]
    lines = table(("SPAN", "IN", "AT MS", "TOOK MS"), rows).splitlines()
    width = max(map(len, lines))
    room = columns - width - 2
    if room >= _BAR_WIDTH_MIN:
        for number, span in enumerate(tree(spans), 1):
            start = (span["start_ns"] - began) / 1e6 / whole_ms * room
            length = max(1, round(span["duration_ms"] / whole_ms * room))
            bar = " " * min(int(start), room - 1) + "█" * length
            lines[number] = f"{lines[number].ljust(width)}  {bar[:room]}"
    return "\n".join(
        [f"trace {spans[0]['trace_id']}, {whole_ms:,.1f} ms", "", *lines, *map(plain, notes)]
    )


def latest(path: Path) -> None:
    """Prints the latest traces of requests, climbs and errors, newest first."""
    rows = listed(trace_file.read(path))
    if not rows:
        print(f"no traces of requests in {path}")
        return
    print(table(("TRACE", "BEGAN", "WHAT", "MODEL", "FROM", "MS", "SPANS"), rows))


def listed(spans: Sequence[Span]) -> list[tuple[object, ...]]:
    by_trace: dict[str, list[Span]] = {}
    for span in spans:
        by_trace.setdefault(span["trace_id"], []).append(span)
    worth = [each for each in by_trace.values() if any(map(_worth_listing, each))]
    newest = sorted(worth, key=lambda each: -each[0]["start_ns"])[:LISTED_MAX]
    return [_row(each) for each in newest]


def _worth_listing(span: Span) -> bool:
    """Of a request, of a climb, or of what failed; the rest is what services and commands ask each other."""
    return bool(
        names.GENAI_OPERATION in span["attributes"] or span["name"] == names.CLIMB or span["error"]
    )


def _row(spans: Sequence[Span]) -> tuple[object, ...]:
    top = next(tree(spans))
    told: dict[str, Any] = {}
    for span in spans:
        for name in (names.GENAI_MODEL, names.MODEL, names.RUNG):
            told.setdefault(name, span["attributes"].get(name))
            told[name] = told[name] or span["attributes"].get(name)
    return (
        top["trace_id"],
        time.strftime("%H:%M:%S", time.localtime(top["start_ns"] / 1e9)),
        top["name"],
        told.get(names.GENAI_MODEL) or told.get(names.MODEL) or "-",
        told.get(names.RUNG) or "-",
        f"{top['duration_ms']:.1f}",
        len(spans),
    )
