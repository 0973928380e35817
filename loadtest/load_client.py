"""A load client in a process of its own: N clients, each of which asks again as soon as its answer is whole.

    python -m loadtest.load_client ADDRESS[,ADDRESS…] CLIENTS SECONDS [RATE] < body.json

With RATE, requests a second of all clients together, each asks when its turn is; an answer that comes late makes the next
request late, and that counts as latency.

ADDRESS is `unix:PATH` or `HOST:PORT`; of several, each client asks one after the other, request by request, so that what
else happens on the machine meets all alike. It understands of HTTP what our own servers send, no more, so that it costs a
fraction of what it measures. Prints a JSON list, one object for each address; a status other than 200 or a broken
connection ends it with a sentence.
"""

import asyncio
import gc
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import uvloop

_PATH = "/v1/chat/completions"
_WARM_S = 0.2  # not measured
_LAST_ANSWERS_S = 60.0
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_CHUNKS_END = b"0\r\n\r\n"
_EVENT = b"\ndata: "


@dataclass(slots=True)
class Load:
    """What one run of the client saw of one address."""

    seconds: float
    latencies_ms: list[float] = field(default_factory=list)  # in the order of the answers
    events: int = 0
    requests_all: int = 0  # with those of the warm-up and the last ones, which the others leave out
    events_all: int = 0


class _Run:
    def __init__(
        self, request: bytes, seconds: float, addresses: Sequence[str], period_s: float
    ) -> None:
        """`period_s`: of each client, from one request to the next; 0 as soon as it may."""
        self.period_s = period_s
        self.request = request
        self.seconds = seconds
        self.loads = [Load(seconds) for _ in addresses]
        self.open = 0
        self.failed = ""
        self.done = asyncio.Event()

    def start(self) -> None:
        self._begun = time.perf_counter() + _WARM_S
        self._end = self._begun + self.seconds

    def answered(self, load: Load, sent: float, events: int) -> bool:
        """Whether to ask again."""
        now = time.perf_counter()
        load.requests_all += 1
        load.events_all += events
        if self._begun <= now < self._end:
            load.latencies_ms.append((now - sent) * 1000)
            load.events += events
        return now < self._end

    def fail(self, why: str) -> None:
        self.failed = self.failed or why
        self.done.set()


class _Connection(asyncio.Protocol):
    """One of a ring, in which one is asked at a time."""

    def __init__(self, run: _Run, load: Load) -> None:
        self._run = run
        self._load = load
        self.next = self  # in the ring
        self._due = 0.0  # of the next request, by perf_counter
        self._finished = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._run.open += 1

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._finished:
            self._run.fail(f"a connection was closed before the end: {exc!r}")
        self._run.open -= 1
        if not self._run.open:
            self._run.done.set()

    def data_received(self, data: bytes) -> None:
        self._got += data
        if self._size < 0 and not self._read_head():
            return
        got = self._got
        whole = len(got) >= self._size if self._size else got.endswith(_CHUNKS_END)
        if not whole:
            return
        if self._run.answered(self._load, self._sent, got.count(_EVENT)):
            self.next.ask(self._due + self._run.period_s)
        else:
            self._finish()

    def ask(self, due: float) -> None:
        """At `due`, or at once when that is over."""
        self._due = due
        early_s = due - time.perf_counter() if self._run.period_s else 0.0
        if early_s > 0:
            asyncio.get_running_loop().call_later(early_s, self._ask)
        else:
            self._ask()

    def _ask(self) -> None:
        self._got = bytearray()
        self._size = (
            -1
        )  # of the whole response; 0 when it comes in chunks, below 0 when not yet known
        now = time.perf_counter()
        self._sent = min(now, self._due) if self._run.period_s else now
        if self._transport.is_closing():
            return
        self._transport.write(self._run.request)

    def _finish(self) -> None:
        """Closes the whole ring."""
        self._finished = True
        self._transport.close()
        if not self.next._finished:
            self.next._finish()

    def _read_head(self) -> bool:
        end = self._got.find(b"\r\n\r\n")
        if end < 0:
            return False
        if not self._got.startswith(b"HTTP/1.1 200 "):
            self._run.fail(f"the answer is {bytes(self._got[:400])!r}")
        length = _LENGTH.search(self._got, 0, end)
        self._size = end + 4 + int(length[1]) if length else 0
        return True


async def run(
    addresses: Sequence[str], clients: int, seconds: float, rate: float, body: bytes
) -> list[Load]:
    """Raises RuntimeError with what went wrong."""
    head = f"POST {_PATH} HTTP/1.1\r\nhost: load\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    run = _Run(request, seconds, addresses, clients / rate if rate else 0.0)
    rings = [[await _connect(run, *pair) for pair in zip(addresses, run.loads, strict=True)]
             for _ in range(clients)]  # fmt: skip
    run.start()
    for index, ring in enumerate(rings):
        for place, connection in enumerate(ring):
            connection.next = ring[(place + 1) % len(ring)]
        ring[index % len(ring)].ask(time.perf_counter() + index * run.period_s / clients)
    async with asyncio.timeout(_WARM_S + seconds + _LAST_ANSWERS_S):
        await run.done.wait()
    if run.failed:
        raise RuntimeError(run.failed)
    return run.loads


async def _connect(run: _Run, address: str, load: Load) -> _Connection:
    loop = asyncio.get_running_loop()
    if address.startswith("unix:"):
        _, made = await loop.create_unix_connection(lambda: _Connection(run, load), address[5:])
    else:
        host, _, port = address.rpartition(":")
        _, made = await loop.create_connection(lambda: _Connection(run, load), host, int(port))
    return made


def main() -> None:
    addresses, clients, seconds, *rate = sys.argv[1:]
    body = sys.stdin.buffer.read()
    gc.disable()  # it lives for seconds
    try:
        loads = uvloop.run(
            run(addresses.split(","), int(clients), float(seconds), float(*rate or (0,)), body)
        )
    except (RuntimeError, OSError) as error:
        sys.exit(f"load on {addresses} failed: {error!r}")
    with open(
        sys.stdout.fileno(), "w", closefd=False
    ) as out:  # unbuffered, print loses what the pipe has no room for
        json.dump([asdict(load) for load in loads], out)


if __name__ == "__main__":
    main()
