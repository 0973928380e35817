"""A SIMULATED engine: it speaks the engine's HTTP on a unix socket, fast, and answers with made-up words.

A request's own field `simulate` scripts it: `tokens`, `interval_s`, `status` (an error response), `hold` (answer only when
`let_go()` is called, or after the first token when `hold` is "mid"), `die` (drop the connection after that many tokens; 0 is
before the first byte), `tells` (false: no comment with the tokens at a stream's end), `text` (what each token of a chat is),
`torn` (each byte comes in a chunk of its own), `calls` (names of functions that a chat calls, in place of text). Run as a process it serves until it is killed:
`python -m tests.memory.simulated_engine SOCKET [HOST:PORT]`.
"""

import asyncio
import json
import sys
from typing import Any

import httptools
import uvloop
from tests.memory import simulated_answers as answers


class Request:
    def __init__(self) -> None:
        self.path = ""
        self.headers: dict[str, str] = {}
        self.body = b""
        self.json: dict[str, Any] = {}


class SimulatedEngine:
    """`async with SimulatedEngine(tmp_path / "a.sock") as engine`."""

    def __init__(self, socket_path: str) -> None:
        self.socket_path = socket_path
        self.requests: list[Request] = []  # the last thousand
        self.active = 0
        self.cancelled = 0  #: answers whose client went away
        self.state = (
            "serving"  #: else each request is refused with it, as by a replica going to sleep
        )
        self.changed = asyncio.Condition()
        self._going = asyncio.Event()
        self._connections: set[_Connection] = set()

    async def __aenter__(self) -> "SimulatedEngine":
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: _Connection(self), self.socket_path, backlog=1024
        )
        return self

    async def listen(self, address: str) -> None:
        """On TCP too, for clients that know nothing else; until the process ends."""
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        await loop.create_server(lambda: _Connection(self), host, int(port), backlog=1024)

    async def __aexit__(self, *_: object) -> None:
        self.kill()
        await self._server.wait_closed()

    def kill(self) -> None:
        """As kill -9 would: nothing listens, each connection is reset."""
        self._server.close()
        for connection in list(self._connections):
            connection.abort()

    def close_idle(self) -> None:
        for connection in list(self._connections):
            connection.abort()

    def let_go(self) -> None:
        self._going.set()

    async def held(self) -> None:
        await self._going.wait()

    async def moved(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until_active(self, count: int) -> None:
        async with asyncio.timeout(60), self.changed:
            await self.changed.wait_for(lambda: self.active == count)


class _Connection(asyncio.Protocol):
    def __init__(self, engine: SimulatedEngine) -> None:
        self._engine = engine
        self._parser = httptools.HttpRequestParser(self)
        self._request = Request()
        self._answering: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def abort(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._engine._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._engine._connections.discard(self)
        if self._answering is not None:
            self._answering.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._request.path = url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._request.headers[name.decode()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self._request.body += body

    def on_message_complete(self) -> None:
        request, self._request = self._request, Request()
        self._answering = asyncio.create_task(self._answer(request))

    async def _answer(self, request: Request) -> None:
        engine = self._engine
        engine.requests = [*engine.requests[-999:], request]
        if engine.state != "serving":
            headers = {"x-woodfrog-state": engine.state, "connection": "close"}
            self._json(503, _error(f"the replica is {engine.state}"), headers)
            self._transport.close()
            return
        request.json = json.loads(request.body)
        script = request.json.get("simulate") or {}
        engine.active += 1
        await engine.moved()
        try:
            await self._follow(request, script)
        except asyncio.CancelledError:
            engine.cancelled += 1
            raise
        finally:
            engine.active -= 1
            await engine.moved()

    async def _follow(self, request: Request, script: dict[str, Any]) -> None:
        if script.get("hold") is True:
            await self._engine.held()
        if script.get("die") == 0:
            self.abort()
        elif "status" in script:
            self._json(script["status"], _error("simulated error"), {"retry-after-ms": "1500"})
        elif request.json.get("stream") and answers.streams(request.path):
            await self._stream(request, script)
        else:  # as engines do, whole, whatever `stream` says of a path that does not stream
            await asyncio.sleep(script.get("interval_s", 0))
            tokens = script.get("tokens") or answers.tokens(request.json)
            self._json(200, answers.whole(request.path, request.json, tokens), {})

    async def _stream(self, request: Request, script: dict[str, Any]) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        self._transport.write(head)
        tokens = script.get("tokens") or answers.tokens(request.json)
        for index, event in enumerate(answers.events(request.path, request.json, tokens)):
            if script.get("die") == index:
                self.abort()
                return
            if script.get("hold") == "mid" and index == 1:
                await self._engine.held()
            if event == b"data: [DONE]\n\n" and script.get("tells", True):
                self._event(b": usage prompt_tokens=5 completion_tokens=%d\n\n" % tokens)
            if "text" in script:
                event = answers.with_text(event, script["text"])
            if script.get("torn"):
                await self._torn(event)
            else:
                self._event(event)
            await self._writable.wait()
            await asyncio.sleep(script.get("interval_s", 0))
        self._transport.write(b"0\r\n\r\n")

    async def _torn(self, event: bytes) -> None:
        for byte in event:
            self._event(bytes((byte,)))
            await asyncio.sleep(0)

    def _event(self, event: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))

    def _json(self, status: int, value: Any, headers: dict[str, str]) -> None:
        body = json.dumps(value).encode()
        lines = [f"HTTP/1.1 {status} Simulated", "content-type: application/json"]
        lines += [f"{name}: {text}" for name, text in headers.items()]
        lines += [f"content-length: {len(body)}", "server: simulated", "\r\n"]
        self._transport.write("\r\n".join(lines).encode() + body)


def _error(message: str) -> dict[str, Any]:
    return {
        "error": {"message": message, "type": "server_error", "param": None, "code": "simulated"}
    }


async def main(socket_path: str, address: str = "") -> None:
    async with SimulatedEngine(socket_path) as engine:
        if address:
            await engine.listen(address)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
