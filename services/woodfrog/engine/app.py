"""The HTTP side: routes, bodies, streams, and the gate before each answer. Plain ASGI."""

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from woodfrog.clock import Clock
from woodfrog.engine.admission import Ticket
from woodfrog.engine.choice import Choice
from woodfrog.engine.engine import TextEngine
from woodfrog.engine.parse import chat_request, completion_request
from woodfrog.engine.render import Envelope, Renderer, error, error_object
from woodfrog.engine.request import GenerationRequest, Piece
from woodfrog.engine.sampling import Sampler
from woodfrog.errors import Internal, InvalidArgument, WoodfrogError
from woodfrog.replica.replica import Replica
from woodfrog.replica.state import State

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

log = logging.getLogger(__name__)

_BODY_BYTES = 1 << 20  # tokenizing blocks the loop, some 0.3 s for this much
_BYTES_PER_TOKEN = 16  # on top of it, for long contexts
_METHODS = {
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/v1/models": "GET",
    "/health": "GET",
}


class Answer:
    """One HTTP answer; its first byte waits for the gate."""

    def __init__(self, send: Send, gate: asyncio.Event) -> None:
        self.begun = False
        self._send = send
        self._gate = gate
        self._beginning = asyncio.Lock()

    async def json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body, ensure_ascii=False).encode()
        length = {"content-type": "application/json", "content-length": str(len(data))}
        await self._begin(status, {**length, **(headers or {})})
        await self._send({"type": "http.response.body", "body": data})

    async def event(self, data: Any) -> None:
        """One server-sent event; the first one starts the stream."""
        await self._begin(
            200, {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        )
        text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
        body = f"data: {text}\n\n".encode()
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    async def _begin(self, status: int, headers: dict[str, str]) -> None:
        async with self._beginning:
            if self.begun:
                return
            await self._gate.wait()
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            await self._send({"type": "http.response.start", "status": status, "headers": raw})
            self.begun = True


class App:
    def __init__(self, engine: TextEngine, replica: Replica, clock: Clock) -> None:
        self._engine = engine
        self._replica = replica
        self._clock = clock
        self._started = int(clock.wall())
        self._body_bytes_max = _BODY_BYTES + _BYTES_PER_TOKEN * engine.limits.context_tokens

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        answer = Answer(send, self._replica.gate)
        try:
            await self._route(scope["method"], scope["path"], receive, answer)
        except WoodfrogError as failure:
            await _fail(answer, failure)
        except Exception:  # the outermost frame: the client gets OpenAI's form, the log the cause
            log.exception("request failed")
            await _fail(answer, Internal("INTERNAL", "the engine failed at this request"))

    async def _route(self, method: str, path: str, receive: Receive, answer: Answer) -> None:
        state = self._replica.state
        expected = _METHODS.get(path)
        if state is not State.SERVING:
            await _refuse(answer, state)
        elif expected is None:
            body = error_object(f"there is no {path}", "invalid_request_error", None, "unknown_url")
            await answer.json(404, body)
        elif method != expected:
            body = error_object(
                f"{path} takes {expected}", "invalid_request_error", None, "method_not_allowed"
            )
            await answer.json(405, body, {"allow": expected})
        elif path == "/health":
            await answer.json(200, {"status": state.value})
        elif path == "/v1/models":
            await answer.json(200, self._models())
        else:
            raw = await _read(receive, self._body_bytes_max)
            await _while_connected(receive, self._generate(path, raw, answer))

    def _models(self) -> dict[str, Any]:
        name = self._engine.settings.model_name
        model = {"id": name, "object": "model", "created": self._started, "owned_by": "woodfrog"}
        return {"object": "list", "data": [model]}

    async def _generate(self, path: str, raw: bytes, answer: Answer) -> None:
        engine = self._engine
        body = _object(raw)
        if path == "/v1/chat/completions":
            request = chat_request(body, engine.limits, engine.tokenizer.encode_chat)
        else:
            request = completion_request(body, engine.limits, engine.tokenizer.encode)
        tickets = engine.admission.take(len(request.prompts) * request.n)
        try:
            if request.stream:
                await self._stream(request, tickets, answer)
            else:
                await self._whole(request, tickets, answer)
        finally:
            for ticket in tickets:
                ticket.give_back()

    async def _whole(
        self, request: GenerationRequest, tickets: list[Ticket], answer: Answer
    ) -> None:
        pieces: list[list[Piece]] = [[] for _ in tickets]

        async def keep(index: int, piece: Piece) -> None:
            pieces[index].append(piece)

        await self._run(request, tickets, keep)
        answers = [
            Piece(
                text="".join(piece.text for piece in some),
                logprobs=[entry for piece in some for entry in piece.logprobs],
                token_count=sum(piece.token_count for piece in some),
                finish_reason=some[-1].finish_reason,
            )
            for some in pieces
        ]
        await answer.json(200, self._renderer(request).whole(answers))

    async def _stream(
        self, request: GenerationRequest, tickets: list[Ticket], answer: Answer
    ) -> None:
        renderer = self._renderer(request)

        async def send(index: int, piece: Piece) -> None:
            chunk = renderer.chunk(index, piece)
            if chunk is not None:
                await answer.event(chunk)

        await self._run(request, tickets, send)
        if request.include_usage:
            await answer.event(renderer.usage_chunk())
        await answer.event("[DONE]")
        await answer.end()

    async def _run(
        self,
        request: GenerationRequest,
        tickets: list[Ticket],
        emit: Callable[[int, Piece], Awaitable[None]],
    ) -> None:
        """All answers at once, each in its own slot; the first failure ends the others."""
        engine = self._engine

        async def run(index: int, ticket: Ticket) -> None:
            prompt = request.prompts[index // request.n]
            choice = Choice(request, prompt, Sampler(request.sampling, prompt, stream=index))
            try:
                await choice.run(
                    engine.batcher, engine.tokenizer.decode, ticket, lambda p: emit(index, p)
                )
            finally:
                ticket.give_back()

        try:
            async with asyncio.TaskGroup() as group:
                for index, ticket in enumerate(tickets):
                    group.create_task(run(index, ticket))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    def _renderer(self, request: GenerationRequest) -> Renderer:
        envelope = Envelope(
            id=("chatcmpl-" if request.chat else "cmpl-") + os.urandom(12).hex(),
            created=int(self._clock.wall()),
            model=self._engine.settings.model_name,
            fingerprint=self._engine.fingerprint,
        )
        return Renderer(request, envelope, self._engine.tokenizer.bytes_of)


async def _read(receive: Receive, bytes_max: int) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b""  # gone before it had asked; the answer goes nowhere
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > bytes_max:
            raise InvalidArgument("BODY_TOO_LARGE", f"the body is over {bytes_max} bytes")
        if not message.get("more_body", False):
            return b"".join(parts)


def _object(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise InvalidArgument("INVALID_JSON", "the body is not JSON") from None
    if not isinstance(body, dict):
        raise InvalidArgument("INVALID_JSON", "the body is not a JSON object")
    return body


async def _while_connected(receive: Receive, work: Awaitable[None]) -> None:
    """Run `work`; cancel it when the client goes away."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _refuse(answer: Answer, state: State) -> None:
    shown = State.QUIESCED if state is State.DRAINING else state
    body = error_object(
        f"the replica is {shown.value}; another one must answer",
        "server_error",
        None,
        "replica_not_serving",
    )
    # The connection ends, because a quiesced replica must have none.
    await answer.json(503, body, {"x-woodfrog-state": shown.value, "connection": "close"})


async def _fail(answer: Answer, failure: WoodfrogError) -> None:
    status, body = error(failure)
    if answer.begun:  # in the middle of a stream
        await answer.event(body)
        await answer.end()
        return
    headers = {}
    if failure.retry_after_s is not None:
        headers["retry-after-ms"] = str(max(1, round(failure.retry_after_s * 1000)))
        headers["retry-after"] = str(max(1, round(failure.retry_after_s)))
    await answer.json(status, body, headers)
