"""The bytes of chunks over HTTP: `GET`, `HEAD` and `PUT /chunks/<digest>`. A refusal's body is one sentence.

Files go out by sendfile, for which the process runs on asyncio's own loop: uvloop has none, and copying through Python
halves the rate.
"""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from woodfrog.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    WoodfrogError,
)
from woodfrog.model import digest as digests
from woodfrog.model.manifest import CHUNK_BYTES
from woodfrog.snapshot_store.disk import Disk, Upload
from woodfrog.snapshot_store.metrics import Metrics
from woodfrog.snapshot_store.store import Store
from woodfrog.snapshot_store.threads import Threads

log = logging.getLogger(__name__)
PATH = "/chunks"
PUTS_MAX = 16  # bounds memory and open files; others wait unread
PUT_TIMEOUT_S = 60.0
WRITE_BYTES = 1 << 20  # one trip to a thread pays from about here
_SHUTDOWN_S = 1.0
_STATUS: dict[type[WoodfrogError], int] = {
    InvalidArgument: 400,
    NotFound: 404,
    FailedPrecondition: 409,
    ResourceExhausted: 507,
}


class ChunkServer:
    """async with ChunkServer(...) as server: server.url"""

    def __init__(
        self, store: Store, disk: Disk, threads: Threads, listen: str, metrics: Metrics
    ) -> None:
        self._store = store
        self._disk = disk
        self._threads = threads
        self._moved = metrics.chunk_bytes
        self._host, _, port = listen.rpartition(":")
        self._port = int(port) if port.isdigit() else -1
        self._puts = asyncio.Semaphore(PUTS_MAX)
        self._upload_names = itertools.count()
        self.url = ""

    async def __aenter__(self) -> "ChunkServer":
        app = web.Application(middlewares=[_refusals])
        app.router.add_get(PATH + "/{digest}", self._get)
        app.router.add_put(PATH + "/{digest}", self._put)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_S)
        await self._runner.setup()
        address = f"{self._host}:{self._port}"
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except (OSError, OverflowError) as error:
            await self._runner.cleanup()
            raise FailedPrecondition(
                "ADDRESS_TAKEN",
                f"cannot listen on {address} for chunks: {error}; choose another host:port",
                address=address,
            ) from None
        self.url = f"http://{self._host}:{self._runner.addresses[0][1]}{PATH}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _get(self, request: web.Request) -> web.StreamResponse:
        chunk = _digest(request)
        if chunk not in self._store.inventory.present:
            raise NotFound("CHUNK_MISSING", f"chunk {chunk} is not in this store", chunk=chunk)
        if request.method == "GET":
            self._moved.labels("out").inc(self._store.inventory.present[chunk])
        headers = {"Content-Type": "application/octet-stream"}
        return web.FileResponse(self._disk.chunk_path(chunk), headers=headers)

    async def _put(self, request: web.Request) -> web.Response:
        chunk = _digest(request)
        if (request.content_length or 0) > CHUNK_BYTES:
            raise _too_large(chunk)
        async with self._puts:
            await self._threads.ordered(self._store.want, chunk)
            name = str(next(self._upload_names))
            upload = await self._threads.bulk(self._disk.open_upload, name)
            try:
                async with asyncio.timeout(PUT_TIMEOUT_S):
                    await self._receive(request, upload, chunk)
                found = await self._threads.bulk(upload.seal)
                if found != chunk:
                    raise InvalidArgument(
                        "CHUNK_MISMATCH",
                        f"{upload.size_bytes} bytes were put as chunk {chunk}, but their digest is {found}",
                    )
                await self._threads.ordered(self._store.publish, upload, chunk)
                self._moved.labels("in").inc(upload.size_bytes)
            except TimeoutError:
                text = f"chunk {chunk} did not arrive within {PUT_TIMEOUT_S:.0f} s"
                raise web.HTTPRequestTimeout(text=text) from None
            except (ConnectionError, web.RequestPayloadError):
                return web.Response(status=400, text=f"chunk {chunk} broke off")
            finally:
                upload.discard()
        return web.Response(status=204)

    async def _receive(self, request: web.Request, upload: Upload, chunk: str) -> None:
        waiting = bytearray()
        size_bytes = 0
        async for block in request.content.iter_any():
            waiting += block
            size_bytes += len(block)
            if size_bytes > CHUNK_BYTES:
                raise _too_large(chunk)
            if len(waiting) >= WRITE_BYTES:
                await self._threads.bulk(upload.write, waiting)
                waiting = bytearray()
        await self._threads.bulk(upload.write, waiting)


def _digest(request: web.Request) -> str:
    digest = request.match_info["digest"]
    if not digests.valid(digest):
        raise InvalidArgument(
            "DIGEST_INVALID", f"{digest[:80]!r} is not a digest like sha256:<64 hex>"
        )
    return digest


def _too_large(chunk: str) -> web.HTTPRequestEntityTooLarge:
    text = f"chunk {chunk} is larger than {CHUNK_BYTES} bytes"
    return web.HTTPRequestEntityTooLarge(CHUNK_BYTES, CHUNK_BYTES + 1, text=text)


@web.middleware
async def _refusals(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except WoodfrogError as error:
        return web.Response(status=_STATUS.get(type(error), 500), text=error.message)
