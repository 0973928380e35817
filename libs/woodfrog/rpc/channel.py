"""gRPC channels and calls: the client's span, the deadline, and errors as woodfrog.errors classes again."""

from collections.abc import AsyncGenerator
from typing import Any

import grpc
from opentelemetry.trace import SpanKind

from woodfrog import telemetry
from woodfrog.errors import status
from woodfrog.rpc import propagation
from woodfrog.rpc.server import MESSAGE_BYTES_MAX

_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),  # an http_proxy variable is not meant for us
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.http2.ping_timeout_ms", 2000),  # else a stopped peer is noticed after 25 s
    ("grpc.min_reconnect_backoff_ms", 1500),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


def open_channel(target: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(target, options=_OPTIONS)


async def call(
    method: grpc.aio.UnaryUnaryMultiCallable[Any, Any],
    request: Any,
    *,
    timeout_s: float,
    wait_for_ready: bool = False,
) -> Any:
    """One unary call in a client span. Raises woodfrog.errors classes; cancelling it cancels the call."""
    name = method._method.decode()[1:]  # type: ignore[attr-defined]
    with telemetry.tracer().start_as_current_span(name, kind=SpanKind.CLIENT):
        try:
            return await method(
                request,
                timeout=timeout_s,
                metadata=tuple(propagation.inject().items()),
                wait_for_ready=wait_for_ready,
            )
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error, name) from None


async def stream(
    method: Any, request: Any, *, wait_for_ready: bool = False
) -> AsyncGenerator[Any, None]:
    """The responses of a streaming call. `request` is a message or an async iterator of them."""
    name = method._method.decode()[1:]
    responses = method(
        request, metadata=tuple(propagation.inject().items()), wait_for_ready=wait_for_ready
    )
    try:
        async for response in responses:
            yield response
    except grpc.aio.AioRpcError as error:
        raise status.from_rpc_error(error, name) from None
    finally:
        responses.cancel()
