"""gRPC servers: health, reflection, and around each method what opens the span and translates errors."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
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
_IDLE_MS = 600_000  # after which a connection without calls ends; its client opens another
_UNIX = "unix:"
_Context = grpc.aio.ServicerContext[Any, Any]
_Parent = Callable[[_Context], contexts.Context]


@dataclass(frozen=True, slots=True)
class Outside:
    """What holds for a server that others than our own processes reach."""

    message_bytes_max: int
    connections_max: int
    calls_max: int  # at once, also those whose message has not come; of one connection half
    #: With other processes, among which the kernel shares connections out.
    shared_listen: bool = False


class Server:
    """One gRPC server on one address.

    async with Server("127.0.0.1:7001") as server:
        add_ManifestsServicer_to_server(servicer, server.grpc)
        await server.start()
    """

    def __init__(self, listen: str, outside: Outside | None = None) -> None:
        """`listen` is host:port, or unix:PATH; a folder that is not there is made for this user alone."""
        bounds: list[tuple[str, Any]] = []
        if outside is not None:
            bounds = [
                ("grpc.max_concurrent_streams", max(1, outside.calls_max // 2)),
                ("grpc.max_allowed_incoming_connections", outside.connections_max),
                ("grpc.max_connection_idle_ms", _IDLE_MS),
            ]
        bytes_max = outside.message_bytes_max if outside else MESSAGE_BYTES_MAX
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=outside.calls_max if outside else None,
            options=[
                *bounds,
                ("grpc.so_reuseport", int(outside is not None and outside.shared_listen)),
                ("grpc.max_receive_message_length", bytes_max),
                ("grpc.http2.min_ping_interval_without_data_ms", 4000),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )
        self.grpc = _Wrapping(
            self._server, _parent_outside if outside else _parent
        )  #: where servicers are added
        self._listen = listen
        self.health = health_aio.HealthServicer()
        self.port = 0

    async def __aenter__(self) -> "Server":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.health.enter_graceful_shutdown()
        await self.stop(GRACE_S)

    async def stop(self, grace_s: float | None) -> None:
        """Calls under way may go on so long; with None they end at once."""
        await self._server.stop(grace_s)

    async def start(self, *service_names: str) -> None:
        """Binds, serves, and says SERVING of the process and of each service. Raises FailedPrecondition when the address is taken."""
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        names = (*service_names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), self._server)
        try:
            if self._listen.startswith(_UNIX):
                folder = Path(self._listen.removeprefix(_UNIX)).parent
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.port = self._server.add_insecure_port(self._listen)
        except (RuntimeError, OSError) as error:
            raise errors.FailedPrecondition(
                "ADDRESS_TAKEN",
                f"cannot listen on {self._listen}: {error}; stop what uses it or choose another",
                address=self._listen,
            ) from None
        await self._server.start()
        for name in ("", *service_names):
            await self.health.set(name, health_pb2.HealthCheckResponse.SERVING)
        log.info("serving", extra={"address": self._listen, "port": self.port})


@asynccontextmanager
async def serving(listen: str, service: str, add: Callable[[Server], None]) -> AsyncIterator[None]:
    """One service at an address of its own, given to the server by `add`; nowhere when the address is empty."""
    if not listen:
        yield
        return
    async with Server(listen) as server:
        add(server)
        await server.start(service)
        yield


class _Wrapping:
    """A server that wraps what it is given, once. An interceptor would be a coroutine more in each call."""

    def __init__(self, server: grpc.aio.Server, parent: _Parent) -> None:
        self._server = server
        self._parent = parent

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        wrapped = [_WrappingHandler(each, self._parent) for each in handlers]
        self._server.add_generic_rpc_handlers(wrapped)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        wrapped = {
            name: _wrapped(f"/{service}/{name}", each, self._parent)
            for name, each in handlers.items()
        }
        self._server.add_registered_method_handlers(service, wrapped)  # type: ignore[attr-defined]


class _WrappingHandler(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    def __init__(self, inner: Any, parent: _Parent) -> None:
        self._inner = inner
        self._parent = parent
        self._wrapped: dict[str, Any] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        name = handler_call_details.method
        if name not in self._wrapped:
            handler = self._inner.service(handler_call_details)
            # Not kept: clients may ask for any number of methods that are not there.
            if handler is None:
                return None
            self._wrapped[name] = _wrapped(name, handler, self._parent)
        return self._wrapped[name]


def _wrapped(name: str, handler: Any, parent: _Parent) -> Any:
    make = (
        grpc.unary_unary_rpc_method_handler,
        grpc.unary_stream_rpc_method_handler,
        grpc.stream_unary_rpc_method_handler,
        grpc.stream_stream_rpc_method_handler,
    )[2 * handler.request_streaming + handler.response_streaming]
    inner = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    if handler.response_streaming:
        endless = handler.request_streaming or name.endswith("/Watch")
        wrapped: Callable[..., Any] = _stream(name, inner, parent, endless=endless)
    else:
        wrapped = _unary(name, inner, parent)
    return make(
        wrapped,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _unary(name: str, inner: Callable[..., Awaitable[Any]], parent: _Parent) -> Callable[..., Any]:
    async def handle(request: Any, context: _Context) -> Any:
        span = _open(name, context, parent)
        _enter(span)
        try:
            response = await inner(request, context)
            span.set_attribute(names.RPC_STATUS, "OK")
            return response
        except Exception as error:  # noqa: BLE001  the outermost frame of a call
            _tell(span, error)
            await _abort(name, context, error)
        finally:
            span.end()

    return handle


def _stream(
    name: str, inner: Callable[..., AsyncIterator[Any]], parent: _Parent, *, endless: bool
) -> Callable[..., AsyncIterator[Any]]:
    async def handle(request: Any, context: _Context) -> AsyncIterator[Any]:
        span = _open(name, context, parent)
        if endless:  # it lives as long as its peer: the span marks the opening, so that one is seen before the end
            span.end()
        _enter(span)
        try:
            async for response in inner(request, context):
                yield response
        except Exception as error:  # noqa: BLE001  the outermost frame of a call
            if not endless:
                _tell(span, error)
            await _abort(name, context, error)
        finally:
            if not endless:
                span.end()

    return handle


def _parent(context: _Context) -> contexts.Context:
    return propagation.extract_metadata(context.invocation_metadata())


def _parent_outside(context: _Context) -> contexts.Context:
    return telemetry.outside(_parent(context))


def _open(name: str, context: _Context, parent: _Parent) -> trace.Span:
    return telemetry.tracer().start_span(
        name[1:],
        parent(context),
        kind=SpanKind.SERVER,
        attributes={names.RPC_SYSTEM: "grpc", names.RPC_METHOD: name[1:]},
    )


def _enter(span: trace.Span) -> None:
    """It is the current one from now on; never left, since the context is of this call's own task, which ends with it."""
    contexts.attach(trace.set_span_in_context(span))


def _tell(span: trace.Span, error: Exception) -> None:
    if isinstance(error, grpc.aio.AbortError):  # of a servicer that ended the call itself
        return
    known = error if isinstance(error, errors.WoodfrogError) else errors.Internal("INTERNAL", "")
    code = status.code_of(known).name
    span.set_attributes({names.RPC_STATUS: code, names.ERROR_TYPE: known.reason})
    if code not in _PEERS:
        span.set_status(trace.StatusCode.ERROR, known.message or type(error).__name__)


async def _abort(name: str, context: _Context, error: Exception) -> None:
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
