"""gRPC servers: health, reflection, and one interceptor that opens the span and translates errors."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio  # type: ignore[attr-defined]
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from woodfrog import errors, telemetry
from woodfrog.errors import status
from woodfrog.rpc import propagation
from woodfrog.telemetry import names

log = logging.getLogger(__name__)
GRACE_S = 1.0
# Of a server's span these are no errors, by OpenTelemetry's conventions: the peer may mend its call.
_PEERS = frozenset(
    ("INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED")
)  # fmt: skip
MESSAGE_BYTES_MAX = 80 << 20  # a manifest of the greatest size fits
_QUIET = ("/grpc.health.", "/grpc.reflection.")


class Server:
    """One gRPC server on one address.

    async with Server("127.0.0.1:7001") as server:
        add_ManifestsServicer_to_server(servicer, server.grpc)
        await server.start()
    """

    def __init__(self, listen: str, message_bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        """What is longer is not read: it gets RESOURCE_EXHAUSTED of gRPC's own."""
        self.grpc = grpc.aio.server(
            interceptors=[_Interceptor()],
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", message_bytes_max),
                ("grpc.http2.min_ping_interval_without_data_ms", 4000),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )
        self._listen = listen
        self.health = health_aio.HealthServicer()
        self.port = 0

    async def __aenter__(self) -> "Server":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.health.enter_graceful_shutdown()
        await self.grpc.stop(GRACE_S)

    async def start(self, *service_names: str) -> None:
        """Binds, serves, and says SERVING of the process and of each service. Raises FailedPrecondition when the address is taken."""
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.grpc)
        names = (*service_names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), self.grpc)
        try:
            self.port = self.grpc.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise errors.FailedPrecondition(
                "ADDRESS_TAKEN",
                f"cannot listen on {self._listen}: {error}; stop what uses it or choose another",
                address=self._listen,
            ) from None
        await self.grpc.start()
        for name in ("", *service_names):
            await self.health.set(name, health_pb2.HealthCheckResponse.SERVING)
        log.info("serving", extra={"address": self._listen, "port": self.port})


class _Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    def __init__(self) -> None:
        self._wrapped: dict[str, Any] = {}  # by method: to make one takes longer than all else here

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        name = handler_call_details.method
        if name in self._wrapped:
            return self._wrapped[name]
        handler = await continuation(handler_call_details)
        if handler is None or name.startswith(_QUIET):
            return handler  # not kept: clients may ask for any number of methods that are not there
        self._wrapped[name] = _wrapped(name, handler)
        return self._wrapped[name]


def _wrapped(name: str, handler: Any) -> Any:
    make = (
        grpc.unary_unary_rpc_method_handler,
        grpc.unary_stream_rpc_method_handler,
        grpc.stream_unary_rpc_method_handler,
        grpc.stream_stream_rpc_method_handler,
    )[2 * handler.request_streaming + handler.response_streaming]
    inner = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    wrap = _stream if handler.response_streaming else _unary
    return make(
        wrap(name, inner),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _unary(name: str, inner: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        span = _open(name, context)
        # grpc's abort ends the call by an exception, which says nothing of the cause.
        with trace.use_span(
            span, end_on_exit=True, record_exception=False, set_status_on_exception=False
        ):
            try:
                response = await inner(request, context)
                span.set_attribute(names.RPC_STATUS, "OK")
                return response
            except Exception as error:  # noqa: BLE001  the outermost frame of a call
                _tell(span, error)
                await _abort(name, context, error)

    return handle


def _stream(
    name: str, inner: Callable[..., AsyncIterator[Any]]
) -> Callable[..., AsyncIterator[Any]]:
    async def handle(
        request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        # A stream lives as long as its peer: its span marks the opening, so that one is seen before the end.
        span = _open(name, context)
        span.end()
        # Never detached: the context is of this call's own task, which ends with it.
        contexts.attach(trace.set_span_in_context(span))
        try:
            async for response in inner(request, context):
                yield response
        except Exception as error:  # noqa: BLE001  the outermost frame of a call
            await _abort(name, context, error)

    return handle


def _open(name: str, context: grpc.aio.ServicerContext[Any, Any]) -> trace.Span:
    return telemetry.tracer().start_span(
        name[1:],
        propagation.extract_metadata(context.invocation_metadata()),
        kind=SpanKind.SERVER,
        attributes={names.RPC_SYSTEM: "grpc", names.RPC_METHOD: name[1:]},
    )


def _tell(span: trace.Span, error: Exception) -> None:
    if isinstance(error, grpc.aio.AbortError):  # of a servicer that ended the call itself
        return
    known = error if isinstance(error, errors.WoodfrogError) else errors.Internal("INTERNAL", "")
    code = status.code_of(known).name
    span.set_attributes({names.RPC_STATUS: code, names.ERROR_TYPE: known.reason})
    if code not in _PEERS:
        span.set_status(trace.StatusCode.ERROR, known.message or type(error).__name__)


async def _abort(name: str, context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> None:
    """Ends the call with the error's status. grpc's own abort is raised again."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, errors.WoodfrogError):
        log.error("call failed", extra={"method": name}, exc_info=error)
        trace_id = trace.get_current_span().get_span_context().trace_id
        error = errors.Internal(
            "INTERNAL", f"internal error in {name}; the log has it under trace {trace_id:032x}"
        )
    details = rpc_status.to_status(status.to_status(error))
    await context.abort(details.code, details.details, details.trailing_metadata)
