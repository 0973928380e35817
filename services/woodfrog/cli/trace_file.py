"""A small OTLP receiver: spans of the local cluster land as JSON lines in one file, and are read back by trace."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

log = logging.getLogger(__name__)
FILE_BYTES_MAX = 64 << 20  # then it becomes the .1 file, and the older .1 goes


class TraceFile(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, path: Path) -> None:
        self._path = path

    async def Export(
        self,
        request: trace_service_pb2.ExportTraceServiceRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        if self._path.exists() and self._path.stat().st_size > FILE_BYTES_MAX:
            self._path.replace(self._path.with_suffix(".jsonl.1"))
        with self._path.open("a") as file:
            for spans in request.resource_spans:
                service = _attributes(spans.resource.attributes).get("service.name", "")
                for scope in spans.scope_spans:
                    file.writelines(json.dumps(_span(s, service)) + "\n" for s in scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()


async def serve(path: Path, address: str) -> grpc.aio.Server:
    server = grpc.aio.server()
    add = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add(TraceFile(path), server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(address)
    await server.start()
    return server


def read(path: Path, trace_id: str | None = None) -> list[dict[str, Any]]:
    """Spans of one trace, or all, oldest first. A torn last line is left out."""
    spans = [s for s in _lines(path) if trace_id is None or s["trace_id"] == trace_id]
    return sorted(spans, key=lambda span: span["start_ns"])


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                continue


def _span(span: trace_pb2.Span, service: str) -> dict[str, Any]:
    return {
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent_id": span.parent_span_id.hex(),
        "name": span.name,
        "service": service,
        "start_ns": span.start_time_unix_nano,
        "duration_ms": round((span.end_time_unix_nano - span.start_time_unix_nano) / 1e6, 3),
        "attributes": _attributes(span.attributes),
        "links": [
            {"trace_id": li.trace_id.hex(), "span_id": li.span_id.hex()} for li in span.links
        ],
        "error": span.status.message
        if span.status.code == trace_pb2.Status.STATUS_CODE_ERROR
        else "",
    }


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: common_pb2.AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return (
        getattr(value, kind)
        if kind in ("string_value", "bool_value", "int_value", "double_value")
        else str(value)
    )
