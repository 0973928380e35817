"""The client of replicas over real unix sockets, against peers that answer with given bytes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from woodfrog.errors import DeadlineExceeded
from woodfrog.router.replica_client import ReplicaClient, ReplicaLost

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


class Peer:
    """Answers the n-th request with the n-th entry, on whatever connection; an empty entry closes."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.answers: list[bytes] = []
        self.connections = 0
        self.requests = 0
        self.keep_open = True
        self.writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> "Peer":
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self.writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        while await reader.read(1 << 20):
            self.requests += 1
            answer = self.answers.pop(0)
            writer.write(answer)
            if not answer or not self.keep_open:
                writer.close()
                return


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Peer]:
    async with Peer(tmp_path / "r.sock") as peer:
        yield peer


@pytest.fixture
async def client() -> AsyncIterator[ReplicaClient]:
    client = ReplicaClient(answer_wait_s=5.0)
    yield client
    client.close()


async def ask(client: ReplicaClient, peer: Peer) -> bytes:
    exchange = await client.ask(peer.path, b"POST / HTTP/1.1\r\n\r\n")
    return await exchange.rest(1 << 20)


async def test_connection_is_kept_for_the_next(peer: Peer, client: ReplicaClient) -> None:
    peer.answers = [OK, OK, OK]
    for _ in range(3):
        assert await ask(client, peer) == b"hi"
    assert peer.connections == 1
    client.forget(peer.path)
    peer.answers = [OK]
    assert await ask(client, peer) == b"hi"
    assert peer.connections == 2


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi", b"hi"),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", b"hi"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"hi"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n",
            b"hi",
        ),
    ],
)
async def test_ends_of_bodies(
    peer: Peer, client: ReplicaClient, answer: bytes, body: bytes
) -> None:
    peer.answers, peer.keep_open = [answer, OK], False
    assert await ask(client, peer) == body
    assert await ask(client, peer) == b"hi"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"this is not HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * (1 << 20),
    ],
)
async def test_lost_before_the_head(peer: Peer, client: ReplicaClient, answer: bytes) -> None:
    peer.answers, peer.keep_open = [answer], False
    with pytest.raises(ReplicaLost):
        await ask(client, peer)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\nzz\r\n",
    ],
)
async def test_lost_in_the_body(peer: Peer, client: ReplicaClient, answer: bytes) -> None:
    peer.answers, peer.keep_open = [answer], False
    exchange = await client.ask(peer.path, b"GET / HTTP/1.1\r\n\r\n")
    assert await exchange.chunk() == b"hi", "what came is not withheld"
    with pytest.raises(ReplicaLost):
        await exchange.chunk()


async def test_nobody_listens(tmp_path: Path, client: ReplicaClient) -> None:
    with pytest.raises(ReplicaLost, match="cannot connect"):
        await client.ask(str(tmp_path / "none.sock"), b"")


async def test_closed_idle_connection_is_replaced_unseen(peer: Peer, client: ReplicaClient) -> None:
    """The peer closes it just when the next request is sent, which no look at it beforehand can tell."""
    peer.answers = [OK, b"", OK]
    assert await ask(client, peer) == b"hi"
    assert await ask(client, peer) == b"hi"
    assert (peer.connections, peer.requests) == (2, 3)


async def test_unasked_bytes_end_an_idle_connection(peer: Peer, client: ReplicaClient) -> None:
    peer.answers = [OK + OK, OK]
    assert await ask(client, peer) == b"hi"
    assert await ask(client, peer) == b"hi"
    assert peer.connections == 2, "an answer without a question belongs to nobody"


async def test_silent_replica(peer: Peer) -> None:
    client = ReplicaClient(answer_wait_s=0.05)
    peer.answers = [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi"]
    exchange = await client.ask(peer.path, b"GET / HTTP/1.1\r\n\r\n")
    assert await exchange.chunk() == b"hi"
    with pytest.raises(DeadlineExceeded, match="silent"):
        await exchange.chunk()
    exchange.abort()


async def test_slow_reader_holds_the_replica_back(peer: Peer, client: ReplicaClient) -> None:
    size = 64 << 20
    peer.answers = [b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + bytes(size)]
    exchange = await client.ask(peer.path, b"GET / HTTP/1.1\r\n\r\n")
    (writer,) = peer.writers
    for _ in range(100):  # turns of the loop, in which an eager client would read it all
        await asyncio.sleep(0)
    assert writer.transport.get_write_buffer_size() > size // 2
    total, largest = 0, 0
    while data := await exchange.chunk():
        total += len(data)
        largest = max(largest, len(data))
    assert total == size
    assert largest < 2 << 20


async def test_abort_closes_the_connection(peer: Peer, client: ReplicaClient) -> None:
    peer.answers = [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi", OK]
    exchange = await client.ask(peer.path, b"GET / HTTP/1.1\r\n\r\n")
    exchange.abort()
    exchange.abort()
    assert not exchange.open
    assert await exchange.chunk() == b""
    assert await ask(client, peer) == b"hi"
    assert peer.connections == 2
