"""OpenAI's HTTP API over the gateway, as a bare ASGI application."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from opentelemetry.trace import Span, SpanKind, StatusCode

from woodfrog import errors, telemetry
from woodfrog.clock import Clock
from woodfrog.model.spec import ModelSpec
from woodfrog.router import openai_errors, routes
from woodfrog.router.access import asker, caller_of
from woodfrog.router.admission import Admission
from woodfrog.router.gateway import Begun, Call, Event, Gateway, Refused, Waiting, Wake
from woodfrog.router.http_request import (
    Arrival,
    Disconnected,
    Receive,
    Room,
    Scope,
    Send,
    WhileConnected,
    check_media_type,
    check_site,
    parse_body,
    read_body,
)
from woodfrog.router.metrics import Metrics
from woodfrog.router.openai_errors import Headers, Refusal
from woodfrog.router.places import Place, Places
from woodfrog.router.routes import MODELS, Route
from woodfrog.router.shares import Shares
from woodfrog.telemetry import names

log = logging.getLogger(__name__)
_JSON = (b"content-type", b"application/json")
_SSE: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_OURS = frozenset(  # headers of the engine's response that do not go on: this hop's, and those that the router sets
    b"connection keep-alive proxy-connection transfer-encoding te trailer upgrade date server x-request-id".split()
)
_CLIENT_CLOSED = 499
_FALLBACK_CHARS_MAX = 200
_EVENT_END_BYTES = 4  # an empty line may come torn


@dataclass(frozen=True, slots=True)
class HttpLimits:
    body_bytes_max: int
    body_wait_s: float
    wake_wait_s: float


class Reply:
    """One response, in the order that HTTP asks for."""

    def __init__(self, send: Send, headers: Headers) -> None:
        """`headers` go with whatever is answered."""
        self._send = send
        self.headers = headers
        self.status = 0  #: 0 until it has begun
        self._last = b""
        self._events = False  # the body is server-sent events

    async def begin(self, status: int, headers: Headers) -> None:
        self.status = status
        self._events = any(
            name == b"content-type" and value.startswith(b"text/event-stream")
            for name, value in headers
        )
        await self._send(
            {"type": "http.response.start", "status": status, "headers": headers + self.headers}
        )

    async def write(self, data: bytes) -> None:
        end = data[-_EVENT_END_BYTES:]
        self._last = end if len(end) == _EVENT_END_BYTES else (self._last + end)[-_EVENT_END_BYTES:]
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def whole(self, status: int, body: bytes, headers: Headers) -> None:
        await self.begin(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def refuse(self, refusal: Refusal) -> None:
        await self.whole(refusal.status, refusal.body, [_JSON, *refusal.headers])

    async def event_error(self, body: bytes, route: Route) -> None:
        """Ends a stream with OpenAI's error event and without [DONE]. After a torn event only the connection can end."""
        if self._events and self._last.endswith((b"\n\n", b"\r\n\r\n")):
            await self.write(openai_errors.event(body, typed=route is Route.RESPONSE))
            await self.end()


class HttpApp:
    def __init__(
        self,
        gateway: Gateway,
        admission: Admission,
        metrics: Metrics,
        clock: Clock,
        readiness: Callable[[], Mapping[str, bool]],
        bodies: Shares,
        limits: HttpLimits,
    ) -> None:
        """`bodies` is the memory for them. `readiness` names what must have come before the router is ready."""
        self._gateway = gateway
        self._access = admission.access
        self._admission = admission
        self._models = admission.models
        self._metrics = metrics
        self._clock = clock
        self._readiness = readiness
        self._limits = limits
        self._places = Places()
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", scope["type"]
        arrival = Arrival.of(scope)
        route = routes.find(arrival.path)
        if route is not None and arrival.method == "POST":
            await self._complete(route, arrival, scope, receive, send)
            return
        reply = Reply(send, [(b"x-request-id", arrival.request_id.encode())])
        try:
            await self._look(route, arrival, reply)
        except errors.WoodfrogError as error:
            await reply.refuse(openai_errors.refusal(error))
        except Refusal as refusal:
            await reply.refuse(refusal)

    async def _look(self, route: Route | None, arrival: Arrival, reply: Reply) -> None:
        """Answers what needs no replica."""
        path = arrival.path
        known = path in ("/health", "/ready", MODELS) or path.startswith(MODELS + "/")
        if route is None and not known:
            raise routes.no_route(path)
        allowed = ("POST",) if route is not None else ("GET", "HEAD")
        if arrival.method not in allowed:
            text = f"{path[:200]} does not take {arrival.method}, it takes {' and '.join(allowed)}"
            header = (b"allow", ", ".join(allowed).encode())
            raise Refusal(405, text, "method_not_allowed", headers=[header])
        match path:
            case "/health":
                await reply.whole(200, b'{"status":"ok"}', [_JSON])
            case "/ready":
                parts = self._readiness()
                body = json.dumps({"ready": all(parts.values()), **parts}).encode()
                await reply.whole(200 if all(parts.values()) else 503, body, [_JSON])
            case str() if path == MODELS:
                tenant = self._access.tenant(arrival.authorization)
                data = [_model(spec) for spec in self._models.all(tenant)]
                body = json.dumps({"object": "list", "data": data}).encode()
                await reply.whole(200, body, [_JSON])
            case _:
                tenant = self._access.tenant(arrival.authorization)
                spec = self._models.get(path.removeprefix(MODELS + "/"), tenant)
                await reply.whole(200, json.dumps(_model(spec)).encode(), [_JSON])

    async def _complete(
        self, route: Route, arrival: Arrival, scope: Scope, receive: Receive, send: Send
    ) -> None:
        arrived = self._clock.now()
        request_id = arrival.request_id
        span = telemetry.tracer().start_span(
            f"POST {route.name}",
            telemetry.outside(arrival.parent),
            kind=SpanKind.SERVER,
            attributes={
                names.HTTP_METHOD: "POST",
                names.URL_SCHEME: "http",
                names.URL_PATH: route.path[:200],
                names.HTTP_ROUTE: route.name,
                names.GENAI_PROVIDER: "woodfrog",
                names.GENAI_OPERATION: route.operation,
                names.REQUEST_ID: request_id,
                **arrival.client_attributes,
            },
        )
        trace_id = f"{span.get_span_context().trace_id:032x}"
        reply = Reply(
            send,
            [(b"x-request-id", request_id.encode()), (b"x-woodfrog-trace-id", trace_id.encode())],
        )
        model = ""
        try:
            tenant = self._access.tenant(arrival.authorization)
            check_site(arrival)
            check_media_type(arrival)
            who = asker(tenant, arrival.peer)
            await self._admission.told(tenant)
            with self._admission.entered(tenant, who), Room(self._bodies, who) as room:
                reply.headers += self._admission.quotas.headers(tenant)
                body = await read_body(
                    arrival,
                    receive,
                    room,
                    bytes_max=self._limits.body_bytes_max,
                    wait_s=self._limits.body_wait_s,
                )
                model, stream = parse_body(body)
                stream = stream and route.streams
                span.set_attribute(names.GENAI_MODEL, model[:200].encode(errors="replace").decode())
                self._models.check(model, tenant)
                wait_s = arrival.wait_s(self._limits.wake_wait_s, stream=stream)
                caller = caller_of(tenant)
                call = Call(route, model, body, stream, wait_s, arrived, request_id, span, caller)
                await self._pass_on(call, arrival, reply, WhileConnected(scope))
        except Disconnected:
            reply.status = _CLIENT_CLOSED
        except Refusal as refusal:
            await self._refuse(refusal, refusal.reason, route, reply, span)
        except errors.WoodfrogError as error:
            await self._fail(error, route, reply, span)
        except Exception as error:  # the outermost frame of a request
            log.error("request failed", extra={"trace_id": trace_id}, exc_info=error)
            text = f"internal error; the log has it under trace {trace_id}"
            await self._fail(errors.Internal("INTERNAL", text), route, reply, span)
        except asyncio.CancelledError:  # the router stops, and has let answers end for `drain_s`
            text = "the router stopped before the answer's end; try again"
            await self._fail(errors.Unavailable("ROUTER_STOPS", text), route, reply, span)
            raise
        finally:
            status = reply.status or _CLIENT_CLOSED
            span.set_attribute(names.HTTP_STATUS, status)
            span.end()
            took_s = self._clock.now() - arrived
            self._metrics.ended(route.name, self._models.label(model), status, took_s)

    async def _pass_on(
        self, call: Call, arrival: Arrival, reply: Reply, wanted: WhileConnected
    ) -> None:
        whose = arrival.authorization
        if not self._access.required:  # what it says of itself anybody can say
            whose = f"{arrival.peer} {whose}"
        with self._places.take(arrival, whose, call.body, wanted) as place:
            async with wanted, aclosing(self._gateway.answer(call)) as events:
                await _pass_on(call, events, reply, place)

    async def _fail(
        self, error: errors.WoodfrogError, route: Route, reply: Reply, span: Span
    ) -> None:
        refusal = openai_errors.refusal(error)
        if refusal.status >= 500:
            span.set_status(StatusCode.ERROR, error.message)
        await self._refuse(refusal, error.reason, route, reply, span)

    async def _refuse(
        self, refusal: Refusal, reason: str, route: Route, reply: Reply, span: Span
    ) -> None:
        """As a response, or inside the stream that has begun; a body of known length is cut off instead."""
        span.set_attribute(names.ERROR_TYPE, reason)
        self._metrics.refused(reason)
        if not reply.status:
            await reply.refuse(refusal)
        else:
            reply.status = refusal.status
            await reply.event_error(refusal.body, route)


async def _pass_on(
    call: Call, events: AsyncGenerator[Event, None], reply: Reply, place: Place
) -> None:
    async for event in events:
        place.answered = place.answered or not isinstance(event, Waiting)
        if isinstance(event, bytes):
            await reply.write(event)
        elif isinstance(event, Begun):
            if reply.status:
                await reply.write(_comment(event.wake))
            else:
                await reply.begin(
                    event.head.status, _engine_headers(event.head.headers, event.wake)
                )
        elif isinstance(event, Refused):
            if reply.status:
                reply.status = event.head.status
                said = openai_errors.in_a_line(event.head.status, event.body)
                await reply.event_error(said, call.route)
                return
            headers = _engine_headers(event.head.headers, event.wake)
            headers = [header for header in headers if header[0] != b"content-length"]
            await reply.whole(event.head.status, event.body, headers)
            return
        elif call.stream:
            assert isinstance(event, Waiting)
            if not reply.status:
                await reply.begin(200, list(_SSE))
            await reply.write(
                b": waiting for the first token\n\n" if event.woken else b": waking\n\n"
            )
    await reply.end()


def _engine_headers(headers: Any, wake: Wake) -> Headers:
    passed = [header for header in headers if header[0] not in _OURS]
    passed += [
        (b"x-woodfrog-rung", wake.rung.encode()),
        (b"x-woodfrog-climb-ms", b"%d" % round(wake.climb_ms)),
        (b"x-woodfrog-replica", wake.replica_id.encode()),
    ]
    if wake.fallback_reason:
        passed.append((b"x-woodfrog-fallback", _plain(wake.fallback_reason)))
    return passed


def _comment(wake: Wake) -> bytes:
    """What the headers would have said, had they not gone out before it was known."""
    reason = b" fallback=" + _plain(wake.fallback_reason) if wake.fallback_reason else b""
    fields = (wake.rung.encode(), round(wake.climb_ms), wake.replica_id.encode(), reason)
    return b": woken rung=%b climb-ms=%d replica=%b%b\n\n" % fields


def _plain(text: str) -> bytes:
    """Printable ASCII, safe in a header."""
    text = text[:_FALLBACK_CHARS_MAX]
    return "".join(c if " " <= c <= "~" else "?" for c in text).encode()


def _model(spec: ModelSpec) -> dict[str, Any]:
    created = int(spec.create_time)
    return {"id": spec.name, "object": "model", "created": created, "owned_by": "woodfrog"}
