"""uvicorn inside our own loop: its signals are ours, and its connections have limits that it lacks."""

import asyncio
import contextlib
import logging
import re
import socket
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from woodfrog import errors
from woodfrog.router.http_request import LOST
from woodfrog.router.openai_errors import Refusal
from woodfrog.router.shares import Shares, peer

log = logging.getLogger(__name__)
_BACKLOG = 2048
_KEEP_ALIVE_S = 75
_DISCARDED_BYTES_MAX = 64 << 20  # of a refused body: read on, so that the client sees why
_PIPELINED_MAX = 16  # each is kept a hundred times as large as it came
_UNSENT_BYTES_MAX = 16 << 10  # of an answer whose client is slow; then no more is asked for
_SEND_BUFFER_BYTES = 128 << 10  # the kernel doubles it: 2.5 MB/s to a client 100 ms away
_UNSENT_IN_KERNEL_BYTES = 32 << 10  # of it, beyond what is on its way
_UPGRADE = re.compile(rb"(?i)\r\nupgrade:")


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    head_bytes_max: int
    message_s: float  # from the first byte of a request to its last
    unread_s: float  # that a client may leave its answer unread
    connections_max: int
    drain_s: int
    #: With other processes, among which the kernel shares connections out.
    shared_listen: bool = False


class HttpServer:
    """Serves an ASGI application on one address.

    async with HttpServer(app, "127.0.0.1:8000", limits) as server:
        await server.wait()
    """

    def __init__(self, app: Any, listen: str, limits: ConnectionLimits) -> None:
        config = uvicorn.Config(
            app,
            http=type(
                "Protocol",
                (_Protocol,),
                {"limits": limits, "shares": Shares(limits.connections_max)},
            ),
            ws="none",
            proxy_headers=False,
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=limits.drain_s,
        )
        # What it says of a broken client is noise; what fails in us is logged by the application.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self._listen = listen
        self._limits = limits
        self._server = _Server(config)
        self.port = 0

    async def __aenter__(self) -> "HttpServer":
        """Binds and serves. Raises FailedPrecondition when the address is taken."""
        host, _, port = self._listen.rpartition(":")
        try:
            bound = socket.create_server(
                (host, int(port)), backlog=_BACKLOG, reuse_port=self._limits.shared_listen
            )
        except OSError as error:
            raise errors.FailedPrecondition(
                "ADDRESS_TAKEN",
                f"cannot listen on {self._listen}: {error.strerror}; stop what uses it or choose another",
                address=self._listen,
            ) from None
        # Else the kernel keeps megabytes for each client that does not read. Ten thousand of them with a whole buffer
        # each are above what it has for TCP in all: then it takes nothing more, of anybody, and says that it could.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_IN_KERNEL_BYTES)
        self.port = bound.getsockname()[1]
        self._serving = asyncio.create_task(self._server.serve([bound]))
        await self._server.serves.wait()
        log.info("serving", extra={"address": self._listen, "port": self.port})
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.should_exit = True
        await self._serving


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.serves = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.serves.set()


class _JoinedWrites:
    """A transport that sends what is written in one turn of the loop at once: a head, its body and its end cost one call."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self.abort = transport.abort
        self.is_closing = transport.is_closing
        self.get_extra_info = transport.get_extra_info
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._send)
        self._parts.append(data)

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():
            self._transport.write(b"".join(parts))


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol with limits for a request's head, its seconds, and the number of connections.

    Its scope has one more item, LOST: a future that is done when the connection is lost.
    """

    limits: ConnectionLimits  # both set by a subclass, since uvicorn makes the instances
    shares: Shares  # of the connections
    _in_head = True
    _in_body = False
    _head_bytes = 0
    _between_bytes = 0  # since the body's last: its framing, and trailers
    _discarded_bytes = 0
    _slow: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_JoinedWrites(transport, self.loop))  # type: ignore[arg-type]
        self._lost = self.loop.create_future()
        self._begin_timing()
        transport.set_write_buffer_limits(high=_UNSENT_BYTES_MAX)
        self._peer = peer(self.client[0]) if self.client else ""
        self._shared = self.shares.take(self._peer)
        if not self._shared:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_timing()
        if self._stuck is not None:
            self._stuck.cancel()
        self._lost.set_result(None)
        if self._shared:
            self.shares.give(self._peer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if b"pgrade" in data and not self._in_body:
            data = _without_upgrade(data)
        self._between_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.head_bytes_max:
                self.send_400_response("")
        elif self._in_body and self._between_bytes > self.limits.head_bytes_max:
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[LOST] = self._lost  # type: ignore[literal-required]
        self._in_head = True
        self._head_bytes = self._discarded_bytes = 0
        self._begin_timing()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Trailers are told here too, but are no headers: a proxy before us need not have looked at them."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= _PIPELINED_MAX:
            self.transport.abort()
            raise ValueError("too many requests follow one that is not answered")
        self._in_head = False
        self._in_body = True
        self._head_bytes = len(self.url) + sum(len(n) + len(v) for n, v in self.headers)
        if self._head_bytes > self.limits.head_bytes_max:
            raise ValueError("the head is too long")  # the parser stops, and asks for a 400
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._between_bytes = 0
        if self.cycle.response_complete:
            self._discarded_bytes += len(body)
            if self._discarded_bytes > _DISCARDED_BYTES_MAX:
                self.transport.close()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._end_timing()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self.transport.is_closing():
            return
        refusal = Refusal(400, "the request is not HTTP/1.1 as it should be", "invalid_http")
        if self._head_bytes > self.limits.head_bytes_max:
            text = (
                f"the request's head is longer than {self.limits.head_bytes_max} bytes, the limit"
            )
            refusal = Refusal(431, text, "head_too_large")
        body = refusal.body
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[refusal.status] + head % len(body) + body)
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(self.limits.unread_s, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
        super().resume_writing()

    def _begin_timing(self) -> None:
        self._end_timing()
        self._slow = self.loop.call_later(self.limits.message_s, self.transport.close)

    def _end_timing(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None


def _without_upgrade(data: bytes) -> bytes:
    """Clients that would rather speak HTTP/2 (Java's, curl --http2) ask to upgrade; the parser would drop their body.

    No length changes: what looks like the head may be a body, if the head's end came torn.
    """
    head, end, body = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"\r\nx-grade:", head) + end + body
