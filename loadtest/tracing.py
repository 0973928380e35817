"""What tracing adds to one hop: a unary call through our channel and server, against the same one without spans.

    python -m loadtest.tracing [--calls 200] [--runs 30]

Client and server are one process on loopback, so each figure is the CPU time of both sides: two spans, and the context's
way through the metadata. Rounds of all kinds take turns. The aim is 50 µs for a hop that is not sampled; the rival is
the same hop with spans of OpenTelemetry's SDK, which decides by the same ratio. The last row is what the channel and the
server are beyond bare grpc.aio without any span: what is around a handler, and errors that keep their class.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health_pb2
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace import TracerProvider as SdkProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

from loadtest.report import Bench
from woodfrog import rpc
from woodfrog.cli import options
from woodfrog.telemetry.export import QUEUE_SPANS_MAX, Provider

_METHOD = "/woodfrog.loadtest.Hops/Hop"


class Nowhere(SpanExporter):
    """Takes all: the wire to a collector is no part of a hop."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


class Switched(trace.TracerProvider, trace.Tracer):
    """A process has one provider for good; this one hands on to the tracer whose turn it is."""

    turn: trace.Tracer

    def get_tracer(self, *_: Any, **__: Any) -> trace.Tracer:
        return self

    def start_span(self, *args: Any, **options: Any) -> trace.Span:
        return self.turn.start_span(*args, **options)

    def start_as_current_span(self, *args: Any, **options: Any) -> Any:
        return self.turn.start_as_current_span(*args, **options)


async def _hop(request: Any, context: Any) -> Any:
    return request


def _handlers() -> Any:
    hop = grpc.unary_unary_rpc_method_handler(
        _hop,
        request_deserializer=health_pb2.HealthCheckRequest.FromString,
        response_serializer=health_pb2.HealthCheckRequest.SerializeToString,
    )
    return grpc.method_handlers_generic_handler("woodfrog.loadtest.Hops", {"Hop": hop})


def _method(channel: grpc.aio.Channel) -> Any:
    return channel.unary_unary(
        _METHOD,
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckRequest.FromString,
    )


async def _round(call: Callable[[], Awaitable[Any]], calls: int) -> float:
    """CPU seconds of a call, of all threads: what else runs on the machine changes them less than the clock's."""
    began = time.process_time()
    for _ in range(calls):
        await call()
    return (time.process_time() - began) / calls


async def measure(
    switched: Switched, tracers: Sequence[trace.Tracer], calls: int, runs: int
) -> list[list[float]]:
    """What a hop takes with each tracer beyond one without spans, CPU µs by round; last, what that takes beyond a bare one."""
    request = health_pb2.HealthCheckRequest()
    added: list[list[float]] = [[] for _ in range(len(tracers) + 1)]
    bare_server = grpc.aio.server()
    bare_server.add_generic_rpc_handlers((_handlers(),))
    bare_port = bare_server.add_insecure_port("127.0.0.1:0")
    await bare_server.start()
    async with rpc.Server("127.0.0.1:0") as ours_server:
        ours_server.grpc.add_generic_rpc_handlers((_handlers(),))
        await ours_server.start()
        async with (
            rpc.open_channel(f"127.0.0.1:{bare_port}") as bare_channel,
            rpc.open_channel(f"127.0.0.1:{ours_server.port}") as channel,
        ):
            bare_method, method = _method(bare_channel), _method(channel)

            async def bare() -> None:
                await bare_method(request, timeout=5.0)

            async def ours() -> None:
                await rpc.call(method, request, timeout_s=5.0)

            for number in range(runs + 1):
                switched.turn = trace.NoOpTracer()
                without = await _round(ours, calls)
                taken = [without - await _round(bare, calls)]
                for tracer in tracers:
                    switched.turn = tracer
                    taken.insert(-1, await _round(ours, calls) - without)
                if number:  # the first one warms up
                    for samples, seconds in zip(added, taken, strict=True):
                        samples.append(seconds * 1e6)
    await bare_server.stop(0.1)
    return added


def _sdk(ratio: float) -> trace.Tracer:
    provider = SdkProvider(sampler=ParentBasedTraceIdRatio(ratio))
    queue = BatchSpanProcessor(Nowhere(), max_queue_size=QUEUE_SPANS_MAX)
    provider.add_span_processor(queue)
    return provider.get_tracer("woodfrog")


def main() -> None:
    parser = options.Parser(prog="loadtest.tracing", description=__doc__)
    parser.add_argument("--calls", type=options.whole(1, 100_000), default=200)
    parser.add_argument("--runs", type=options.whole(1, 10_000), default=30)
    args = parser.parse_args()
    bench = Bench("tracing")
    switched = Switched()
    trace.set_tracer_provider(switched)
    ours = [Provider(Resource.create({}), ratio, Nowhere()) for ratio in (0.0, 1.0)]
    tracers = [*(each.get_tracer() for each in ours), _sdk(0.0), _sdk(1.0)]
    unsampled, sampled, *rivals, frame = asyncio.run(
        measure(switched, tracers, args.calls, args.runs)
    )
    for each in ours:
        each.shutdown()
    for case, added, rival in zip(
        ("hop, not sampled", "hop, sampled"), (unsampled, sampled), rivals, strict=True
    ):
        median = statistics.median(rival)
        bench.add(case, "added_cpu_us", added, rivals={"OpenTelemetry's SDK": median})
    bench.add("hop without spans, over bare grpc.aio", "added_cpu_us", frame)
    bench.finish()


if __name__ == "__main__":
    uvloop.install()
    main()
