"""The gRPC face: typed messages in and out, the same path in between. Errors are raised; `rpc.Server` translates them."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import unquote

import grpc
from opentelemetry.trace import StatusCode

from woodfrog import errors, telemetry
from woodfrog.api.router.v1 import (
    chats_pb2,
    chats_pb2_grpc,
    completions_pb2,
    completions_pb2_grpc,
    embeddings_pb2,
    embeddings_pb2_grpc,
    images_pb2,
    images_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
)
from woodfrog.clock import Clock
from woodfrog.model.spec import ModelSpec
from woodfrog.model.tenant import Tenant
from woodfrog.router import openai_errors, typed_json
from woodfrog.router.access import asker, caller_of
from woodfrog.router.admission import Admission
from woodfrog.router.gateway import Begun, Call, Event, Gateway, Refused, Wake
from woodfrog.router.http_request import Room
from woodfrog.router.metrics import Metrics
from woodfrog.router.routes import Route
from woodfrog.router.shares import Shares, peer
from woodfrog.router.sse import SseReader
from woodfrog.telemetry import names

Context = grpc.aio.ServicerContext[Any, Any]
Piece = TypeVar("Piece", chats_pb2.StreamResponse, completions_pb2.StreamCompleteResponse)
_ANSWER_BYTES_MAX = 64 << 20


Render = Callable[[], bytes]  # an engine's request


@dataclass(frozen=True, slots=True)
class AskingLimits:
    body_bytes_max: int
    wake_wait_s: float
    unread_s: float  # that a client may leave a stream unread


class Asking:
    """What all services share: one call through the gateway, read to its end or event by event."""

    def __init__(
        self,
        gateway: Gateway,
        admission: Admission,
        metrics: Metrics,
        clock: Clock,
        bodies: Shares,
        limits: AskingLimits,
    ) -> None:
        """`bodies` are those of the HTTP face too."""
        self._gateway = gateway
        self._access = admission.access
        self._admission = admission
        self._models = admission.models
        self._metrics = metrics
        self._clock = clock
        self._bodies = bodies
        self._limits = limits

    async def whole(
        self, route: Route, model: str, render: Render, context: Context
    ) -> tuple[bytes, Wake]:
        """The engine's answer. Raises the class of the engine's error."""
        answer = bytearray()
        wake: Wake | None = None
        async with self._events(route, model, render, context, stream=False) as events:
            async for event in events:
                if isinstance(event, bytes):
                    answer += event
                    if len(answer) > _ANSWER_BYTES_MAX:
                        raise errors.Internal(
                            "ANSWER_TOO_LONG",
                            f"the answer is longer than {_ANSWER_BYTES_MAX} bytes; use the stream",
                        )
                elif isinstance(event, Begun):
                    wake = event.wake
                elif isinstance(event, Refused):
                    raise _engine_error(event)
        assert wake is not None
        return bytes(answer), wake

    async def pieces(
        self, cls: type[Piece], route: Route, model: str, render: Render, context: Context
    ) -> AsyncGenerator[Piece, None]:
        """The engine's stream as messages. Raises the class of the engine's error, in the middle too."""
        reader, unread = SseReader(), _Unread(context, self._limits.unread_s)
        pieces: typed_json.Pieces[Piece] | None = None
        async with self._events(route, model, render, context, stream=True) as events:
            async for event in events:
                if isinstance(event, Begun):
                    pieces = typed_json.Pieces(cls, event.wake)
                elif isinstance(event, bytes):
                    assert pieces is not None
                    for payload in reader.feed(event):
                        for piece in pieces.of(payload) if payload != b"[DONE]" else ():
                            with unread.bounded():
                                yield piece
                elif isinstance(event, Refused):
                    raise _engine_error(event)

    @asynccontextmanager
    async def _events(
        self, route: Route, model: str, render: Render, context: Context, *, stream: bool
    ) -> AsyncIterator[AsyncIterator[Event]]:
        arrived = self._clock.now()
        status = 499  # cancelled, unless another end comes
        label = self._models.label(model)
        span = telemetry.tracer().start_span(
            f"{route.operation} {label}".rstrip(),  # clients must not be able to make new names
            attributes={
                names.GENAI_PROVIDER: "woodfrog",
                names.GENAI_OPERATION: route.operation,
                names.GENAI_MODEL: model[:200],
            },
        )
        try:
            tenant = self._access.tenant(authorization(context))
            who = asker(tenant, _peer(context))
            await self._admission.told(tenant)
            with self._admission.entered(tenant, who), Room(self._bodies, who) as room:
                self._check(model, tenant)
                body = render()
                self._check_size(body)
                room.take(len(body))
                left = context.time_remaining()
                most_s = self._limits.wake_wait_s
                wait_s = most_s if left is None else min(most_s, left)
                request_id = f"req_{secrets.token_hex(16)}"
                caller = caller_of(tenant)
                call = Call(route, model, body, stream, wait_s, arrived, request_id, span, caller)
                async with aclosing(self._gateway.answer(call)) as events:
                    yield events
            status = 200
        except errors.WoodfrogError as error:
            status = openai_errors.refusal(error).status
            span.set_attribute(names.ERROR_TYPE, error.reason)
            if status >= 500:
                span.set_status(StatusCode.ERROR, error.message)
            self._metrics.refused(error.reason)
            raise
        finally:
            span.end()
            took_s = self._clock.now() - arrived
            self._metrics.ended(f"grpc {route.operation}", label, status, took_s)

    def _check(self, model: str, tenant: Tenant | None) -> None:
        if not model:
            raise errors.InvalidArgument(
                "MISSING_MODEL", "the request names no model; ListModels has them", param="model"
            )
        self._models.check(model, tenant)

    def _check_size(self, body: bytes) -> None:
        if len(body) > self._limits.body_bytes_max:
            raise errors.InvalidArgument(
                "REQUEST_TOO_LARGE",
                f"the request is {len(body)} bytes as JSON, the limit is {self._limits.body_bytes_max}",
            )


class _Unread:
    """Ends a call whose client leaves a message unread: it holds a slot. For the task that serves the call."""

    def __init__(self, context: Context, wait_s: float) -> None:
        self._context = context
        self._wait_s = wait_s
        self._serving = asyncio.current_task()
        self._ending: asyncio.Task[None] | None = None

    @contextmanager
    def bounded(self) -> Iterator[None]:
        timer = asyncio.get_running_loop().call_later(self._wait_s, self._end)
        try:
            yield
        finally:
            timer.cancel()

    def _end(self) -> None:
        """What the client finds when it reads again comes from another task: this one hangs in grpc's."""
        if self._serving is not None:
            self._serving.cancel()
        self._ending = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        text = f"the stream was left unread for {self._wait_s:g} s"
        with suppress(Exception):  # AbortError is how it says that it did; else the client is gone
            await self._context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, text)


class ChatsServicer(chats_pb2_grpc.ChatsServicer):
    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    async def Create(
        self, request: chats_pb2.CreateRequest, context: Context
    ) -> chats_pb2.CreateResponse:
        render = partial(typed_json.chat_body, request.chat, stream=False)
        answer = await self._asking.whole(Route.CHAT, request.chat.model, render, context)
        return typed_json.chat_answer(*answer)

    def Stream(
        self, request: chats_pb2.StreamRequest, context: Context
    ) -> AsyncIterator[chats_pb2.StreamResponse]:
        render = partial(typed_json.chat_body, request.chat, stream=True)
        model = request.chat.model
        return self._asking.pieces(chats_pb2.StreamResponse, Route.CHAT, model, render, context)


class CompletionsServicer(completions_pb2_grpc.CompletionsServicer):
    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    async def Complete(
        self, request: completions_pb2.CompleteRequest, context: Context
    ) -> completions_pb2.CompleteResponse:
        render = partial(typed_json.completion_body, request.completion, stream=False)
        model = request.completion.model
        answer = await self._asking.whole(Route.COMPLETION, model, render, context)
        return typed_json.completion_answer(*answer)

    def StreamComplete(
        self, request: completions_pb2.StreamCompleteRequest, context: Context
    ) -> AsyncIterator[completions_pb2.StreamCompleteResponse]:
        render = partial(typed_json.completion_body, request.completion, stream=True)
        cls, model = completions_pb2.StreamCompleteResponse, request.completion.model
        return self._asking.pieces(cls, Route.COMPLETION, model, render, context)


class EmbeddingsServicer(embeddings_pb2_grpc.EmbeddingsServicer):
    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    async def Embed(
        self, request: embeddings_pb2.EmbedRequest, context: Context
    ) -> embeddings_pb2.EmbedResponse:
        render = partial(typed_json.embed_body, request)
        answer = await self._asking.whole(Route.EMBEDDING, request.model, render, context)
        return typed_json.embed_answer(*answer)


class ImagesServicer(images_pb2_grpc.ImagesServicer):
    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    async def Generate(
        self, request: images_pb2.GenerateRequest, context: Context
    ) -> images_pb2.GenerateResponse:
        render = partial(typed_json.generate_body, request)
        answer = await self._asking.whole(Route.IMAGE, request.model, render, context)
        return typed_json.generate_answer(*answer)


class ModelsServicer(models_pb2_grpc.ModelsServicer):
    def __init__(self, admission: Admission) -> None:
        self._models = admission.models
        self._access = admission.access

    async def ListModels(
        self, request: models_pb2.ListModelsRequest, context: Context
    ) -> models_pb2.ListModelsResponse:
        tenant = self._access.tenant(authorization(context))
        return models_pb2.ListModelsResponse(models=map(_model, self._models.all(tenant)))

    async def GetModel(
        self, request: models_pb2.GetModelRequest, context: Context
    ) -> models_pb2.GetModelResponse:
        tenant = self._access.tenant(authorization(context))
        return models_pb2.GetModelResponse(model=_model(self._models.get(request.model, tenant)))


def authorization(context: Context) -> str:
    """All that the call's metadata says of it, with commas between; empty when they say nothing."""
    said = context.invocation_metadata() or ()
    return ", ".join(str(value) for name, value in said if name == "authorization")


def _peer(context: Context) -> str:
    """Who asks, as `shares.peer` has it; `context` says ipv4:HOST:PORT, ipv6:%5BHOST%5D:PORT, or unix:."""
    kind, _, address = context.peer().partition(":")
    host = unquote(address).rpartition(":")[0].strip("[]")
    return peer(host) if kind in ("ipv4", "ipv6") else kind


def _engine_error(event: Refused) -> errors.WoodfrogError:
    retry_after_ms = event.head.get(b"retry-after-ms")
    return openai_errors.from_engine(event.head.status, event.body, retry_after_ms)


def _model(spec: ModelSpec) -> models_pb2.Model:
    return models_pb2.Model(
        id=spec.name, create_time=int(spec.create_time), weights_bytes=spec.weights_bytes
    )
