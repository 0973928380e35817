"""One `init` for traces and logs. Telemetry uses the standard OTEL_* variables and adds none.

Without OTEL_EXPORTER_OTLP_ENDPOINT spans are made (so that trace ids reach logs and headers) but not exported.
OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG say which are; what climbs or fails is always (`spans.py`).
"""

import functools
import json
import logging
import os
import sys
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource

from woodfrog.telemetry import export
from woodfrog.telemetry.spans import Tracer, keep

__all__ = ["JsonFormatter", "flush", "init", "keep", "outside", "tracer"]
log = logging.getLogger(__name__)
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
    resource = Resource.create(
        {
            "service.namespace": "woodfrog",
            "service.name": f"woodfrog-{service}",
            "service.instance.id": str(os.getpid()),
        }
    )
    exporter = OTLPSpanExporter() if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") else None
    try:
        ratio = export.ratio()
    except ValueError as error:
        log.error("cannot run", extra={"reason": "BAD_SETTING", "error": str(error)})
        sys.exit(1)
    provider = export.Provider(resource, ratio, exporter)
    trace.set_tracer_provider(provider)


def flush() -> None:
    """Sends what is queued; call once, after the loop ended."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, export.Provider):
        provider.shutdown()


def outside(context: Context) -> Context:
    """See `Tracer.outside`."""
    ours = tracer()
    return ours.outside(context) if isinstance(ours, Tracer) else context


@functools.cache
def tracer() -> trace.Tracer:
    return trace.get_tracer("woodfrog")
