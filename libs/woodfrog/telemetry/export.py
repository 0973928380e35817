"""The way of spans out of a process: a bounded queue, OTLP, and how many were lost on it."""

import os
from collections.abc import Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from woodfrog.telemetry.spans import Span, Tracer

QUEUE_SPANS_MAX = 16_384  # the default of 2,048 loses a third of a burst
_BATCH_SPANS = 512
_EXPORT_DELAY_MS = 500


class Provider(trace.TracerProvider):
    """Use it from one thread. Without an exporter spans have ids, and go nowhere."""

    def __init__(
        self,
        resource: Resource,
        ratio: float = 1.0,
        exporter: SpanExporter | None = None,
        queue_spans_max: int = QUEUE_SPANS_MAX,
    ) -> None:
        self._resource = resource
        self._tracer = Tracer(ratio, self._put)
        self._queue_spans_max = queue_spans_max
        self._handed = 0  # to the processor, from the loop's thread
        self.dropped = 0  #: spans for which the queue had no room
        self.sent = _Counted(exporter) if exporter is not None else None
        self._processor = None
        if self.sent is not None:
            self._processor = BatchSpanProcessor(
                self.sent,
                max_queue_size=queue_spans_max + 1,  # ours is full first, and counts
                max_export_batch_size=min(_BATCH_SPANS, queue_spans_max),
                schedule_delay_millis=_EXPORT_DELAY_MS,
            )

    def get_tracer(self, *_: Any, **__: Any) -> Tracer:
        return self._tracer

    def shutdown(self) -> None:
        """Sends what is queued."""
        if self._processor is not None:
            self._processor.shutdown()  # type: ignore[no-untyped-call]

    def _put(self, span: Span) -> None:
        if self._processor is None or self.sent is None:
            return
        if self._handed - self.sent.done >= self._queue_spans_max:
            self.dropped += 1
            return
        self._handed += 1
        self._processor.on_end(span.readable(self._resource))


class _Counted(SpanExporter):
    """Its counters are written by the exporting thread only."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.exported = 0
        self.failed = 0

    @property
    def done(self) -> int:
        return self.exported + self.failed

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            if result is SpanExportResult.SUCCESS:
                self.exported += len(spans)
            else:
                self.failed += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def ratio() -> float:
    """By OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG. Raises ValueError, one sentence, on what they cannot say."""
    kind = os.environ.get("OTEL_TRACES_SAMPLER", "parentbased_always_on").removeprefix(
        "parentbased_"
    )
    match kind:
        case "always_on":
            return 1.0
        case "always_off":
            return 0.0
        case "traceidratio":
            said = os.environ.get("OTEL_TRACES_SAMPLER_ARG", "1")
            try:
                if 0 <= float(said) <= 1:
                    return float(said)
            except ValueError:
                pass
            raise ValueError(
                f"OTEL_TRACES_SAMPLER_ARG is {said!r}; say a ratio from 0 to 1, e.g. 0.01"
            )
    raise ValueError(
        f"OTEL_TRACES_SAMPLER is {os.environ['OTEL_TRACES_SAMPLER']!r}; say parentbased_traceidratio,"
        " parentbased_always_on or parentbased_always_off"
    )
