"""The HTTP side that every kind of model has: routes, bodies, streams, and the gate before each answer. Plain ASGI."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Protocol

from woodfrog.clock import Clock
from woodfrog.errors import Internal, InvalidArgument, WoodfrogError
from woodfrog.replica.openai_errors import error, error_object
from woodfrog.replica.replica import Replica
from woodfrog.replica.state import State

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

log = logging.getLogger(__name__)

_METHODS = {"/v1/models": "GET", "/health": "GET"}  # of every model


class Answer:
    """One HTTP answer; its first byte waits for the gate."""

    def __init__(self, send: Send, gate: asyncio.Event) -> None:
        self.begun = False
        self._send = send
        self._gate = gate
        self._beginning = asyncio.Lock()

    async def json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        """`body` as JSON; bytes are JSON already."""
        encoded = isinstance(body, bytes)
        data = body if encoded else json.dumps(body, ensure_ascii=False).encode()
        length = {"content-type": "application/json", "content-length": str(len(data))}
        await self.begin(status, {**length, **(headers or {})})
        await self._send({"type": "http.response.body", "body": data})

    async def event(self, data: Any) -> None:
        """One server-sent event, named by its `type` if it has one; the first one starts the stream."""
        await self.begin(
            200, {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        )
        text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
        name = f"event: {data['type']}\n" if isinstance(data, dict) and "type" in data else ""
        body = f"{name}data: {text}\n\n".encode()
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def usage(self, prompt_tokens: int, completion_tokens: int | None = None) -> None:
        """For the router: a comment, which clients pass over. At a stream's beginning what was read, at its end both."""
        line = f": usage prompt_tokens={prompt_tokens}"
        if completion_tokens is not None:
            line += f" completion_tokens={completion_tokens}"
        body = f"{line}\n\n".encode()
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def piece(self, data: bytes) -> None:
        """More of a body that `begin` began."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    async def begin(self, status: int, headers: dict[str, str]) -> None:
        """Only the first call counts."""
        async with self._beginning:
            if self.begun:
                return
            await self._gate.wait()
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            await self._send({"type": "http.response.start", "status": status, "headers": raw})
            self.begun = True


class Front(Protocol):
    """What one kind of model answers to."""

    methods: Mapping[str, str]  # path → method
    body_bytes_max: int

    async def handle(self, path: str, raw: bytes, answer: Answer) -> None:
        """A request with a body. Raises woodfrog.errors classes; is cancelled when the client goes away."""


class App:
    """Plain ASGI: routes, the replica's state and gate, bodies, and errors in OpenAI's form."""

    def __init__(self, front: Front, replica: Replica, model_name: str, clock: Clock) -> None:
        self._front = front
        self._replica = replica
        self._model_name = model_name
        self._started = int(clock.wall())
        self._methods = {**_METHODS, **front.methods}

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
        expected = self._methods.get(path)
        if state is not State.SERVING:
            await _refuse(answer, state)
        elif expected is None:
            routes = ", ".join(each for each in self._front.methods if each.startswith("/v1/"))
            text = f"the model {self._model_name} does not answer to {path}; it answers to {routes}"
            body = error_object(text, "invalid_request_error", None, "unknown_url")
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
            raw = await _read(receive, self._front.body_bytes_max)
            await _while_connected(receive, self._front.handle(path, raw, answer))

    def _models(self) -> dict[str, Any]:
        model = {
            "id": self._model_name,
            "object": "model",
            "created": self._started,
            "owned_by": "woodfrog",
        }
        return {"object": "list", "data": [model]}


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


def json_object(raw: bytes) -> dict[str, Any]:
    """A request's body. Raises InvalidArgument."""
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
