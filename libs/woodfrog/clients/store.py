"""The snapshot store: manifests by gRPC, the bytes of chunks by HTTP."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial

import aiohttp

from woodfrog import rpc
from woodfrog.api.snapshot_store.v1 import manifests_pb2 as pb
from woodfrog.api.snapshot_store.v1 import manifests_pb2_grpc as pb_grpc
from woodfrog.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    WoodfrogError,
)
from woodfrog.model import digest as digests
from woodfrog.model.manifest import CHUNK_BYTES, Manifest

CALL_TIMEOUT_S = 10.0
PATIENCE_S = 5.0  # a restart takes about one second
MANIFEST_TIMEOUT_S = 60.0  # a manifest of the greatest size, or its many folders to sync
_CHUNK_TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=2, sock_read=10)
_SEND_BYTES = 256 << 10  # more at once would hold the loop
_RETRY_FULL_S = 30.0


@dataclass(frozen=True, slots=True)
class BegunIngest:
    id: str
    manifest_digest: str
    missing: tuple[str, ...]
    chunks_url: str


@dataclass(frozen=True, slots=True)
class StoredManifest:
    manifest: Manifest
    chunks_url: str


@dataclass(frozen=True, slots=True)
class ManifestSummary:
    manifest_digest: str
    kind: str
    size_bytes: int  # of all files, holes included
    stored_bytes: int  # of its chunks
    create_time: float  # seconds since the epoch
    holders: tuple[str, ...]


class ChunkState(Enum):
    WHOLE = pb.CHUNK_STATE_WHOLE
    MISSING = pb.CHUNK_STATE_MISSING
    DAMAGED = pb.CHUNK_STATE_DAMAGED


_call = partial(rpc.call, patience_s=PATIENCE_S)


class StoreClient:
    """async with StoreClient("127.0.0.1:7002") as store. Reasons are named in the proto."""

    def __init__(self, target: str) -> None:
        self._channel = rpc.open_channel(target)
        self._stub = pb_grpc.ManifestsStub(self._channel)  # type: ignore[no-untyped-call]

    async def __aenter__(self) -> "StoreClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close(None)

    async def begin_ingest(self, manifest: Manifest) -> BegunIngest:
        request = pb.BeginIngestRequest(manifest=manifest.encode())
        reply = await _call(self._stub.BeginIngest, request, timeout_s=MANIFEST_TIMEOUT_S)
        missing = tuple(reply.missing)
        return BegunIngest(reply.ingest_id, reply.manifest_digest, missing, reply.chunks_url)

    async def commit(self, ingest_id: str) -> str:
        """The manifest's digest."""
        request = pb.CommitRequest(ingest_id=ingest_id)
        reply = await _call(self._stub.Commit, request, timeout_s=MANIFEST_TIMEOUT_S)
        digest: str = reply.manifest_digest
        return digest

    async def abort(self, ingest_id: str) -> None:
        request = pb.AbortRequest(ingest_id=ingest_id)
        await _call(self._stub.Abort, request, timeout_s=MANIFEST_TIMEOUT_S)

    async def get_manifest(self, digest: str) -> StoredManifest:
        request = pb.GetRequest(manifest_digest=digest)
        reply = await _call(self._stub.Get, request, timeout_s=MANIFEST_TIMEOUT_S)
        if digests.of_bytes(reply.manifest) != digest:
            raise DataLoss(
                "MANIFEST_DAMAGED",
                f"manifest {digest} came damaged from the store; ask again, or ingest it again",
                manifest=digest,
            )
        return StoredManifest(Manifest.decode(reply.manifest), reply.chunks_url)

    async def list(self) -> tuple[ManifestSummary, ...]:
        """Sorted by digest."""
        reply = await _call(self._stub.List, pb.ListRequest(), timeout_s=CALL_TIMEOUT_S)
        return tuple(map(summary_from_pb, reply.manifests))

    async def delete(self, digest: str) -> int:
        """Bytes freed."""
        request = pb.DeleteRequest(manifest_digest=digest)
        reply = await _call(self._stub.Delete, request, timeout_s=MANIFEST_TIMEOUT_S)
        freed_bytes: int = reply.freed_bytes
        return freed_bytes

    async def hold(self, digest: str, holder: str) -> None:
        request = pb.HoldRequest(manifest_digest=digest, holder=holder)
        await _call(self._stub.Hold, request, timeout_s=CALL_TIMEOUT_S)

    async def unhold(self, digest: str, holder: str) -> None:
        request = pb.UnholdRequest(manifest_digest=digest, holder=holder)
        await _call(self._stub.Unhold, request, timeout_s=CALL_TIMEOUT_S)

    async def verify_chunk(self, digest: str) -> ChunkState:
        request = pb.VerifyChunkRequest(digest=digest)
        reply = await _call(self._stub.VerifyChunk, request, timeout_s=CALL_TIMEOUT_S)
        return ChunkState(reply.state)


class ChunkClient:
    """async with ChunkClient() as chunks. At most `concurrency_max` transfers at once; others wait."""

    def __init__(self, concurrency_max: int = 8) -> None:
        self._limit = asyncio.Semaphore(concurrency_max)
        self._concurrency_max = concurrency_max

    async def __aenter__(self) -> "ChunkClient":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._concurrency_max),
            timeout=_CHUNK_TIMEOUT,
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, url_base: str, digest: str) -> bytes:
        """The chunk's bytes, whose digest was checked.

        Raises NotFound CHUNK_MISSING, DataLoss CHUNK_DAMAGED (then ask the store to verify it), Unavailable.
        """
        async with self._limit:
            with _border(url_base):
                async with self._session.get(f"{url_base}/{digest}") as response:
                    await _check(response, digest)
                    if not 0 < (response.content_length or 0) <= CHUNK_BYTES:
                        raise _damaged(digest, url_base)
                    data = await response.read()
            if await asyncio.to_thread(digests.of_bytes, data) != digest:
                raise _damaged(digest, url_base)
        return data

    async def put(self, url_base: str, digest: str, data: bytes | memoryview) -> None:
        """Idempotent. Raises FailedPrecondition CHUNK_UNWANTED when no ingest under way names it (begin again),

        InvalidArgument CHUNK_REFUSED when the digest is not that of `data`, ResourceExhausted STORE_FULL, Unavailable.
        """
        view = memoryview(data)
        async with self._limit:
            with _border(url_base):
                headers = {"Content-Length": str(len(view))}
                url = f"{url_base}/{digest}"
                async with self._session.put(url, data=_slices(view), headers=headers) as response:
                    await _check(response, digest)


async def _slices(view: memoryview) -> AsyncIterator[memoryview]:
    for offset in range(0, len(view), _SEND_BYTES):
        yield view[offset : offset + _SEND_BYTES]


@contextmanager
def _border(url_base: str) -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientError, TimeoutError) as error:
        why = str(error) or type(error).__name__
        raise _unreachable(url_base, why) from None


async def _check(response: aiohttp.ClientResponse, chunk: str) -> None:
    if response.ok:
        return
    why = (await response.text())[:400]
    error: WoodfrogError
    match response.status:
        case 404:
            error = NotFound("CHUNK_MISSING", why, chunk=chunk)
        case 409:
            error = FailedPrecondition("CHUNK_UNWANTED", why, chunk=chunk)
        case 507:
            error = ResourceExhausted("STORE_FULL", why, retry_after_s=_RETRY_FULL_S)
        case status if status < 500 and status != 408:
            error = InvalidArgument("CHUNK_REFUSED", why, chunk=chunk)
        case status:
            error = _unreachable(str(response.url), f"status {status}: {why}")
    raise error


def _unreachable(url: str, why: str) -> Unavailable:
    return Unavailable(
        "STORE_UNREACHABLE", f"chunks at {url} cannot be reached: {why}; try again", url=url
    )


def _damaged(chunk: str, url_base: str) -> DataLoss:
    return DataLoss(
        "CHUNK_DAMAGED",
        f"chunk {chunk} came from {url_base} with bytes that do not match; have the store verify it",
        chunk=chunk,
    )


def summary_to_pb(summary: ManifestSummary) -> pb.ManifestSummary:
    return pb.ManifestSummary(
        manifest_digest=summary.manifest_digest,
        kind=summary.kind,
        size_bytes=summary.size_bytes,
        stored_bytes=summary.stored_bytes,
        create_time=summary.create_time,
        holders=summary.holders,
    )


def summary_from_pb(summary: pb.ManifestSummary) -> ManifestSummary:
    return ManifestSummary(
        manifest_digest=summary.manifest_digest,
        kind=summary.kind,
        size_bytes=summary.size_bytes,
        stored_bytes=summary.stored_bytes,
        create_time=summary.create_time,
        holders=tuple(summary.holders),
    )
