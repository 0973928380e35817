"""Spans through a real OTLP exporter and a real receiver come back as they were."""

from pathlib import Path

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from tests.service.processes import free_addresses

from woodfrog.cli import trace_file


async def test_a_span_lands_in_the_file(tmp_path: Path) -> None:
    import asyncio

    path = tmp_path / "traces.jsonl"
    (address,) = free_addresses(1)
    server = await trace_file.serve(path, address)
    try:
        provider = TracerProvider(resource=Resource.create({"service.name": "woodfrog-x"}))
        exporter = OTLPSpanExporter(endpoint=f"http://{address}", insecure=True)
        provider.add_span_processor(SimpleSpanProcessor(exporter))

        def work() -> str:
            tracer = provider.get_tracer("t")
            with tracer.start_as_current_span("outer") as outer:
                link = trace.Link(outer.get_span_context())
                with tracer.start_as_current_span("inner", attributes={"n": 7}, links=[link]):
                    pass
            return f"{outer.get_span_context().trace_id:032x}"

        trace_id = await asyncio.to_thread(work)
    finally:
        await server.stop(1.0)
    with path.open("a") as file:
        file.write('{"torn')
    outer, inner = trace_file.read(path, trace_id)
    assert (outer["name"], outer["service"], outer["parent_id"]) == ("outer", "woodfrog-x", "")
    assert inner["parent_id"] == outer["span_id"]
    assert inner["attributes"] == {"n": 7}
    assert inner["links"] == [{"trace_id": trace_id, "span_id": outer["span_id"]}]
    assert trace_file.read(path, "0" * 32) == []
