"""What the router reads of an HTTP request: a few headers, and of the body the model and whether to stream."""

import asyncio
import json
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from opentelemetry.context import Context

from woodfrog.errors import ResourceExhausted
from woodfrog.router.openai_errors import Refusal
from woodfrog.router.shares import Shares, peer
from woodfrog.rpc import propagation
from woodfrog.telemetry import names

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

LOST = "woodfrog.lost"  # in the scope: a future that is done when the client's connection is lost
_REQUEST_ID = re.compile(rb"[!-~]{1,128}")
_DISCARDED_BYTES_MAX = 64 << 20
_COUNT = re.compile(rb"[1-9][0-9]{0,5}")
_CLIENT_SHARE = 0.95  # of a client's time-out, so that it hears why before it gives up
_RETRY_AFTER_S = 1.0
_CLOSE = [(b"connection", b"close")]


class Disconnected(Exception):
    """The client went away."""


class Room:
    """What one request has of the memory for the bodies of all, until it ends: `with Room(bodies, who) as room`."""

    def __init__(self, bodies: Shares, who: str) -> None:
        self._bodies = bodies
        self._who = who
        self._size = 0

    def __enter__(self) -> "Room":
        return self

    def __exit__(self, *_: object) -> None:
        self._bodies.give(self._who, self._size)

    def take(self, size: int) -> None:
        """Raises ResourceExhausted when there is no more."""
        if not self._bodies.take(self._who, size):
            raise ResourceExhausted(
                "ROUTER_FULL",
                f"requests of yours that are under way hold {self._bodies.of(self._who)} bytes, and this one's {size}"
                " would be more than is left for all others; ask again soon",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._size += size


@dataclass(frozen=True, slots=True)
class Arrival:
    method: str
    path: str
    headers: dict[bytes, bytes]  # of equal names the last
    authorization: str = ""  # all that it says of it, with commas between
    peer: str = ""  # who sent it, as `shares.peer` has it

    @staticmethod
    def of(scope: Scope) -> "Arrival":
        said = [value for name, value in scope["headers"] if name == b"authorization"]
        client = scope.get("client")
        return Arrival(
            scope["method"],
            scope["path"],
            dict(scope["headers"]),
            b", ".join(said).decode("latin-1"),
            peer(client[0]) if client else "",
        )

    @property
    def parent(self) -> Context:
        """The client's span, when it sent one."""
        if b"traceparent" not in self.headers:
            return Context()
        names = (b"traceparent", b"tracestate")
        carrier = {
            n.decode(): self.headers[n].decode("latin-1") for n in names if n in self.headers
        }
        return propagation.extract(carrier)

    @property
    def request_id(self) -> str:
        """The client's own, or a new one."""
        sent = self.headers.get(b"x-request-id", b"")
        return sent.decode() if _REQUEST_ID.fullmatch(sent) else f"req_{secrets.token_hex(16)}"

    @property
    def retries(self) -> int:
        """How often OpenAI's client has sent the request before."""
        count = self.headers.get(b"x-stainless-retry-count", b"0")
        return int(count) if _COUNT.fullmatch(count) else 0

    @property
    def client_attributes(self) -> dict[str, int | float]:
        """For the span: what OpenAI's client says of itself."""
        found: dict[str, int | float] = {names.CLIENT_RETRY: self.retries} if self.retries else {}
        if (timeout_s := self.client_timeout_s) is not None:
            found[names.CLIENT_TIMEOUT] = timeout_s
        return found

    @property
    def client_timeout_s(self) -> float | None:
        """Between two reads, as OpenAI's client says; None where it says none."""
        sent = self.headers.get(b"x-stainless-read-timeout")
        if sent is None:
            return None
        try:
            timeout_s = float(sent)
        except ValueError:
            return None
        return timeout_s if timeout_s > 0 else None

    def wait_s(self, cap_s: float, *, stream: bool) -> float:
        """How long the client will wait for a replica. A stream's time-out runs anew at each comment, so it is no bound."""
        timeout_s = self.client_timeout_s
        if stream or timeout_s is None:
            return cap_s
        return min(cap_s, timeout_s * _CLIENT_SHARE)


def check_site(arrival: Arrival) -> None:
    """Raises Refusal for what a page of another site has a browser send: it could read no answer, but spend."""
    if arrival.headers.get(b"sec-fetch-site") == b"cross-site":
        text = "a page of another site had your browser ask; ask from a program, or from a page of this site"
        raise Refusal(403, text, "cross_site")


def check_media_type(arrival: Arrival) -> None:
    """Raises Refusal for a form, before anything of it is read. A body without a type, or with curl's, may be JSON."""
    sent = arrival.headers.get(b"content-type", b"").lower()
    if sent.startswith(b"multipart/"):
        text = f"{arrival.path[:200]} takes JSON (content-type: application/json), not a form with files"
        raise Refusal(415, text, "unsupported_media_type")


async def read_body(
    arrival: Arrival, receive: Receive, room: Room, *, bytes_max: int, wait_s: float
) -> bytes:
    """Raises Refusal when it is too long or too slow, ResourceExhausted when there is no room, Disconnected when it ends early."""
    declared = arrival.headers.get(b"content-length", b"0").lstrip(b"0")  # HTTP allows any number
    # On a connection that ends with the answer, a client would lose the answer over bytes that nobody read.
    closes = arrival.headers.get(b"connection", b"").lower() == b"close"
    read_max = bytes_max + (_DISCARDED_BYTES_MAX if closes else 0)
    if len(declared) > len(str(read_max)) or int(declared or b"0") > read_max:
        raise _too_long(bytes_max)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(wait_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Disconnected
                size += len(message["body"])
                more = message.get("more_body", False)
                if size > read_max or (size > bytes_max and not more):
                    raise _too_long(bytes_max)
                if size <= bytes_max:
                    room.take(len(message["body"]))
                    parts.append(message["body"])
                if not more:
                    return b"".join(parts)
    except TimeoutError:
        text = f"the request's body did not arrive within {wait_s:.0f} s"
        raise Refusal(408, text, "request_timeout", headers=_CLOSE) from None


def _too_long(bytes_max: int) -> Refusal:
    text = f"the request's body is longer than {bytes_max} bytes, the limit"
    return Refusal(413, text, "request_too_large")


def parse_body(body: bytes) -> tuple[str, bool]:
    """The model's name and whether to stream. The rest is the engine's affair. Raises Refusal."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        text = f"the request's body is not JSON: {str(error)[:200]}"
        raise Refusal(400, text, "invalid_json") from None
    if not isinstance(value, dict):
        raise Refusal(400, "the request's body is not a JSON object", "invalid_json")
    model = value.get("model")
    if not isinstance(model, str) or not model:
        text = 'the request names no model: set "model" to the id of one of GET /v1/models'
        raise Refusal(400, text, "missing_model", param="model")
    return model, value.get("stream") is True


class WhileConnected:
    """Cancels its body when the client goes away, or who else calls `end`, and then raises why in place of CancelledError."""

    def __init__(self, scope: Scope) -> None:
        self._lost: asyncio.Future[None] = scope[LOST]
        self._task: asyncio.Task[object] | None = None
        self._why: Exception | None = None

    async def __aenter__(self) -> None:
        self._task = asyncio.current_task()
        self._lost.add_done_callback(self._left)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._lost.remove_done_callback(self._left)
        task, self._task = self._task, None
        if self._why is not None and task is not None:
            task.uncancel()
            if kind is not None and issubclass(kind, asyncio.CancelledError):
                raise self._why from error

    def end(self, why: Exception) -> None:
        """Outside the body it does nothing; only the first reason counts."""
        if self._task is not None and self._why is None:
            self._why = why
            self._task.cancel()

    def _left(self, _: asyncio.Future[None]) -> None:
        self.end(Disconnected())
