"""Trace context over gRPC metadata and HTTP headers, by W3C traceparent."""

from collections.abc import Iterable, Mapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR = TraceContextTextMapPropagator()


def inject() -> dict[str, str]:
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier


def traceparent(span: trace.Span) -> str:
    """The header that names `span` as the parent; empty when it is of no trace."""
    context = span.get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def extract(carrier: Mapping[str, str]) -> Context:
    return _PROPAGATOR.extract(carrier)


def extract_metadata(metadata: Iterable[tuple[str, str | bytes]] | None) -> Context:
    return extract({key: value for key, value in metadata or () if isinstance(value, str)})


def link(traceparent: str) -> list[trace.Link]:
    """A link to another trace's span, as a list for `start_span(links=…)`; empty when there is none."""
    context = trace.get_current_span(extract({"traceparent": traceparent})).get_span_context()
    return [trace.Link(context)] if context.is_valid else []
