"""gRPC channels and calls: the client's span, the deadline, and errors as woodfrog.errors classes again."""

import asyncio
import functools
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from woodfrog import telemetry
from woodfrog.errors import cancellation, status
from woodfrog.rpc import propagation
from woodfrog.rpc.server import MESSAGE_BYTES_MAX
from woodfrog.telemetry import names

_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),  # an http_proxy variable is not meant for us
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.http2.ping_timeout_ms", 2000),  # else a stopped peer is noticed after 25 s
    ("grpc.min_reconnect_backoff_ms", 1500),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]
_RETRY_S = 0.05


def open_channel(target: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(target, options=_OPTIONS)


async def call(
    method: grpc.aio.UnaryUnaryMultiCallable[Any, Any],
    request: Any,
    *,
    timeout_s: float,
    patience_s: float = 0.0,
) -> Any:
    """One unary call in a client span. Raises woodfrog.errors classes; cancelling it cancels the call.

    While the peer cannot be reached it is tried again for `patience_s`: a restart of a neighbour is no error then.
    """
    name = method._method.decode()[1:]  # type: ignore[attr-defined]
    attributes = _attributes(name, method._channel.target)  # type: ignore[attr-defined]
    span = telemetry.tracer().start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
    try:
        metadata = propagation.metadata(span)
        until = time.monotonic() + patience_s
        while True:
            try:
                with cancellation.kept():
                    response = await method(request, timeout=timeout_s, metadata=metadata)
                span.set_attribute(names.RPC_STATUS, "OK")
                return response
            except grpc.aio.AioRpcError as error:
                known = status.from_rpc_error(error, name)
                if known.reason != status.UNREACHABLE or time.monotonic() > until:
                    span.set_attribute(names.RPC_STATUS, error.code().name)
                    span.set_attribute(names.ERROR_TYPE, known.reason)
                    span.set_status(StatusCode.ERROR, known.message)
                    raise known from None
            await asyncio.sleep(_RETRY_S)
    finally:
        span.end()


@functools.lru_cache(4096)
def _attributes(name: str, target: bytes) -> Mapping[str, str | int]:
    """Of a client span; `target` is an address as channels take it, with or without a scheme."""
    address, _, port = target.decode().rpartition("/")[2].rpartition(":")
    found: dict[str, str | int] = {names.RPC_SYSTEM: "grpc", names.RPC_METHOD: name}
    if port.isdecimal():
        found |= {names.SERVER_ADDRESS: address.strip("[]"), names.SERVER_PORT: int(port)}
    return found


async def stream(method: Any, request: Any) -> AsyncGenerator[Any, None]:
    """The responses of a streaming call. Raises woodfrog.errors classes, and what `request` raises.

    `request` is a message, or an async generator of them, which ends with the call, however that ends: grpc.aio itself
    would wait for the next one, and take it from the stream that follows.
    """
    name = method._method.decode()[1:]
    metadata = propagation.metadata(trace.get_current_span())
    writing: asyncio.Task[None] | None = None
    if isinstance(request, AsyncGenerator):
        responses = method(metadata=metadata)
        writing = asyncio.create_task(_write(responses, request), name=f"write {name}")
    else:
        responses = method(request, metadata=metadata)
    try:
        messages = aiter(responses)
        while (response := await cancellation.following(messages)) is not None:
            yield response
    except grpc.aio.AioRpcError as error:
        raise status.from_rpc_error(error, name) from None
    finally:
        responses.cancel()
        if writing is not None:
            writing.cancel()
            await asyncio.wait([writing])
            failed = None if writing.cancelled() else writing.exception()
            reading = asyncio.current_task()
            if failed is not None and not (reading and reading.cancelling()):
                raise failed


async def _write(call: Any, requests: AsyncGenerator[Any, None]) -> None:
    """All of them; no more once the call has ended, of which its reader is told."""
    async with aclosing(requests):
        try:
            async for request in requests:
                try:
                    await call.write(request)
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    return
            await call.done_writing()
        except Exception:
            call.cancel()
            raise
