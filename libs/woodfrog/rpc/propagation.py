"""Trace context over gRPC metadata and HTTP headers, by W3C traceparent.

Written out here, as it is in each hop: OpenTelemetry's propagator takes some ten times as long.
"""

import re
from collections.abc import Iterable, Mapping

from opentelemetry import trace
from opentelemetry.context import Context

_HEADER = "traceparent"
_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_VERSION, _INVALID = "00", "ff"


def metadata(span: trace.Span) -> tuple[tuple[str, str], ...]:
    """Of a call whose parent is `span`."""
    header = traceparent(span)
    return ((_HEADER, header),) if header else ()


def traceparent(span: trace.Span) -> str:
    """The header that names `span` as the parent; empty when it is of no trace."""
    context = span.get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def extract(carrier: Mapping[str, str]) -> Context:
    """With the span that the carrier names as the current one; empty when it names none, or not by the rules."""
    return _context(carrier.get(_HEADER, ""))


def extract_metadata(metadata: Iterable[tuple[str, str | bytes]] | None) -> Context:
    for key, value in metadata or ():
        if key == _HEADER and isinstance(value, str):
            return _context(value)
    return Context()


def _context(header: str) -> Context:
    form = _FORM.fullmatch(header.strip())
    if form is None:
        return Context()
    version, trace_id, span_id, flags, more = form.groups()
    if version == _INVALID or (version == _VERSION and more):
        return Context()
    context = trace.SpanContext(
        int(trace_id, 16), int(span_id, 16), True, trace.TraceFlags(int(flags, 16))
    )
    if not context.is_valid:
        return Context()
    return trace.set_span_in_context(trace.NonRecordingSpan(context), Context())


def link(traceparent: str) -> list[trace.Link]:
    """A link to another trace's span, as a list for `start_span(links=…)`; empty when there is none."""
    context = trace.get_current_span(extract({"traceparent": traceparent})).get_span_context()
    return [trace.Link(context)] if context.is_valid else []
