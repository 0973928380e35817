"""Spans that cost little until somebody keeps them.

The spans of one call in one process are a group. Where the trace is sampled each is exported when it ends. Where it is
not, they are held: `keep`, or an error, samples the group from then on and exports what it held; else they are
forgotten with the call. So a request that climbs or fails is in the traces whatever the ratio, and what it calls after
that moment is sampled by its flag. docs/adr/0023-sampling-and-names.md has why.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

_HELD_MAX = 64  # of one group; a request that is served warm has five
_FORCED_A_SECOND = 20.0  # traces that callers from outside may have sampled beyond the ratio
_SCOPE = InstrumentationScope("woodfrog")
_SAMPLED, _UNSAMPLED = TraceFlags(TraceFlags.SAMPLED), TraceFlags(TraceFlags.DEFAULT)
_UNSET = Status()


class Group:
    """The spans of one trace in one process, as long as something is under way."""

    __slots__ = ("held", "put", "sampled")

    def __init__(self, sampled: bool, put: Callable[["Span"], None]) -> None:
        self.sampled = sampled
        self.put = put
        self.held: list[Span] = []  #: ended, of a group that is not sampled

    def ended(self, span: "Span") -> None:
        if self.sampled:
            self.put(span)
        elif len(self.held) < _HELD_MAX:
            self.held.append(span)

    def keep(self) -> None:
        if not self.sampled:
            self.sampled = True
            for span in self.held:
                self.put(span)
            self.held = []


class Span(trace.Span):
    """OpenTelemetry's interface. A status of ERROR keeps its group."""

    __slots__ = (
        "attributes", "end_time", "events", "group", "kind", "links", "name", "parent", "span_id",
        "start_time", "status", "trace_id",
    )  # fmt: skip

    def __init__(
        self, name: str, kind: SpanKind, trace_id: int, parent: SpanContext | None, group: Group
    ) -> None:
        self.name = name
        self.kind = kind
        self.trace_id = trace_id
        self.span_id = random.getrandbits(64) or 1
        self.parent = parent
        self.group = group
        self.attributes: dict[str, Any] = {}
        self.events: list[Event] = []
        self.links: Sequence[Link] = ()
        self.status = _UNSET
        self.start_time = 0  # ns since 1970, like the next one
        self.end_time = 0

    def keep(self) -> None:
        """It is exported, with what belongs to it in this process, and what it calls from now on is sampled."""
        self.group.keep()

    def end(self, end_time: int | None = None) -> None:
        if not self.end_time:
            self.end_time = end_time or time.time_ns()
            self.group.ended(self)

    def get_span_context(self) -> SpanContext:
        flags = _SAMPLED if self.group.sampled else _UNSAMPLED
        return SpanContext(self.trace_id, self.span_id, False, flags)

    def set_attribute(self, key: str, value: Any) -> None:
        self.attributes[key] = value

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        self.attributes.update(attributes)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        self.events.append(Event(name, attributes, timestamp))

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        self.links = (*self.links, Link(context, attributes))

    def update_name(self, name: str) -> None:
        self.name = name

    def is_recording(self) -> bool:
        """Also where it is not sampled yet: it may be kept."""
        return not self.end_time

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        self.status = status if isinstance(status, Status) else Status(status, description)
        if self.status.status_code is StatusCode.ERROR:
            self.keep()

    def record_exception(
        self,
        exception: BaseException,
        attributes: Any = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        said = {"exception.type": type(exception).__name__, "exception.message": str(exception)}
        self.add_event("exception", said | dict(attributes or {}), timestamp)

    def readable(self, resource: Resource) -> ReadableSpan:
        """As exporters take it."""
        return ReadableSpan(
            name=self.name,
            context=SpanContext(self.trace_id, self.span_id, False, _SAMPLED),
            parent=self.parent,
            resource=resource,
            attributes=self.attributes,
            events=self.events,
            links=self.links,
            kind=self.kind,
            status=self.status,
            start_time=self.start_time,
            end_time=self.end_time,
            instrumentation_scope=_SCOPE,
        )


class Tracer(trace.Tracer):
    def __init__(self, ratio: float, put: Callable[[Span], None]) -> None:
        """`ratio` of the traces that begin here are sampled: those with the lowest ids, so that all processes agree."""
        self._bound = round(ratio * (1 << 64))
        self._put = put
        self._forced = _FORCED_A_SECOND  # that are left, at `_forced_at`
        self._forced_at = time.monotonic()

    def start_span(  # noqa: PLR0913  OpenTelemetry's
        self,
        name: str,
        context: contexts.Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Any = None,
        links: Any = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> Span:
        above = trace.get_current_span(context)
        if isinstance(above, Span):
            parent = above.get_span_context()
            span = Span(name, kind, above.trace_id, parent, above.group)
        else:
            span = self._first(name, kind, above.get_span_context())
        if attributes:
            span.attributes.update(attributes)
        if links:
            span.links = tuple(links)
        span.start_time = start_time or time.time_ns()
        return span

    def outside(self, context: contexts.Context) -> contexts.Context:
        """What a caller from outside sent: it may have a few traces sampled, but not fill the collector with all of its own.

        Where all are sampled anyway, its flag is kept.
        """
        if self._bound >= 1 << 64:
            return context
        sent = trace.get_current_span(context).get_span_context()
        if not sent.is_valid or not sent.trace_flags.sampled:
            return context
        now = time.monotonic()
        gained = (now - self._forced_at) * _FORCED_A_SECOND
        self._forced, self._forced_at = min(self._forced + gained, _FORCED_A_SECOND), now
        if self._forced >= 1:
            self._forced -= 1
            return context
        plain = SpanContext(sent.trace_id, sent.span_id, True, _UNSAMPLED)
        return trace.set_span_in_context(trace.NonRecordingSpan(plain), context)

    def _first(self, name: str, kind: SpanKind, parent: SpanContext) -> Span:
        """Of its group: of a trace that begins here, or came from another process."""
        if parent.is_valid:
            group = Group(bool(parent.trace_flags & TraceFlags.SAMPLED), self._put)
            return Span(name, kind, parent.trace_id, parent, group)
        trace_id = random.getrandbits(128) or 1
        sampled = trace_id & ((1 << 64) - 1) < self._bound
        return Span(name, kind, trace_id, None, Group(sampled, self._put))

    @contextmanager
    def start_as_current_span(  # type: ignore[override]  # noqa: PLR0913  OpenTelemetry's
        self,
        name: str,
        context: contexts.Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Any = None,
        links: Any = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> Iterator[Span]:
        span = self.start_span(name, context, kind, attributes, links, start_time)
        with trace.use_span(span, end_on_exit, record_exception, set_status_on_exception):
            yield span


def keep(span: trace.Span) -> None:
    """See `Span.keep`; nothing where spans are another library's."""
    if isinstance(span, Span):
        span.keep()
