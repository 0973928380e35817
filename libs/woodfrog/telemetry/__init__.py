"""One `init` for traces and logs. Telemetry uses the standard OTEL_* variables and adds none.

Without OTEL_EXPORTER_OTLP_ENDPOINT spans are made (so that trace ids reach logs and headers) but not exported.
"""

import functools
import json
import logging
import os
import sys
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

_QUEUE_SPANS_MAX = 16_384  # the default of 2,048 loses a third of a burst
_EXPORT_DELAY_MS = 500
_PLAIN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: level, logger, message, trace id, and the record's extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({k: v for k, v in record.__dict__.items() if k not in _PLAIN})
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            line["trace_id"] = f"{context.trace_id:032x}"
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def init(service: str) -> None:
    """Call once, before the loop starts."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    provider = TracerProvider(
        resource=Resource.create(
            {"service.name": f"woodfrog-{service}", "service.instance.id": str(os.getpid())}
        )
    )
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        provider.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(),
                max_queue_size=_QUEUE_SPANS_MAX,
                schedule_delay_millis=_EXPORT_DELAY_MS,
            )
        )
    trace.set_tracer_provider(provider)


def flush() -> None:
    """Sends what is queued; call once, after the loop ended."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()


@functools.cache
def tracer() -> trace.Tracer:
    return trace.get_tracer("woodfrog")
