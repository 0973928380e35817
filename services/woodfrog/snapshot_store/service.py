"""The gRPC skin: request → one step of the store → response."""

import grpc

from woodfrog.api.snapshot_store.v1 import manifests_pb2 as pb
from woodfrog.api.snapshot_store.v1 import manifests_pb2_grpc as pb_grpc
from woodfrog.clients.store import summary_to_pb
from woodfrog.errors import InvalidArgument
from woodfrog.model import digest as digests
from woodfrog.snapshot_store.disk import Disk
from woodfrog.snapshot_store.store import Store
from woodfrog.snapshot_store.threads import Threads

Context = grpc.aio.ServicerContext[object, object]


class ManifestsServicer(pb_grpc.ManifestsServicer):
    def __init__(self, store: Store, disk: Disk, threads: Threads, chunks_url: str) -> None:
        self._store = store
        self._disk = disk
        self._threads = threads
        self._chunks_url = chunks_url

    async def BeginIngest(
        self, request: pb.BeginIngestRequest, _: Context
    ) -> pb.BeginIngestResponse:
        begun = await self._threads.ordered(self._store.begin, request.manifest)
        return pb.BeginIngestResponse(
            ingest_id=begun.ingest_id,
            manifest_digest=begun.manifest_digest,
            missing=begun.missing,
            chunks_url=self._chunks_url,
        )

    async def Commit(self, request: pb.CommitRequest, _: Context) -> pb.CommitResponse:
        digest = await self._threads.ordered(self._store.commit, request.ingest_id)
        return pb.CommitResponse(manifest_digest=digest)

    async def Abort(self, request: pb.AbortRequest, _: Context) -> pb.AbortResponse:
        await self._threads.ordered(self._store.abort, request.ingest_id)
        await self._collect()
        return pb.AbortResponse()

    async def Get(self, request: pb.GetRequest, _: Context) -> pb.GetResponse:
        manifest = await self._threads.ordered(self._store.get, request.manifest_digest)
        return pb.GetResponse(manifest=manifest, chunks_url=self._chunks_url)

    async def List(self, _request: pb.ListRequest, _: Context) -> pb.ListResponse:
        summaries = await self._threads.ordered(self._store.list)
        return pb.ListResponse(manifests=map(summary_to_pb, summaries))

    async def Delete(self, request: pb.DeleteRequest, _: Context) -> pb.DeleteResponse:
        freed_bytes = await self._threads.ordered(self._store.delete, request.manifest_digest)
        await self._collect()
        return pb.DeleteResponse(freed_bytes=freed_bytes)

    async def Hold(self, request: pb.HoldRequest, _: Context) -> pb.HoldResponse:
        await self._threads.ordered(self._store.hold, request.manifest_digest, request.holder)
        return pb.HoldResponse()

    async def Unhold(self, request: pb.UnholdRequest, _: Context) -> pb.UnholdResponse:
        await self._threads.ordered(self._store.unhold, request.manifest_digest, request.holder)
        return pb.UnholdResponse()

    async def VerifyChunk(
        self, request: pb.VerifyChunkRequest, _: Context
    ) -> pb.VerifyChunkResponse:
        if not digests.valid(request.digest):
            raise InvalidArgument(
                "DIGEST_INVALID", f"{request.digest[:80]!r} is not a digest like sha256:<64 hex>"
            )
        return pb.VerifyChunkResponse(state=await self._verify(request.digest))

    async def _verify(self, chunk: str) -> pb.ChunkState:
        if chunk not in self._store.inventory.present:
            return pb.CHUNK_STATE_MISSING
        try:
            if await self._threads.bulk(self._disk.chunk_whole, chunk):
                return pb.CHUNK_STATE_WHOLE
        except FileNotFoundError:  # collected meanwhile
            return pb.CHUNK_STATE_MISSING
        damaged = await self._threads.ordered(self._store.put_aside, chunk)
        return pb.CHUNK_STATE_DAMAGED if damaged else pb.CHUNK_STATE_WHOLE

    async def _collect(self) -> None:
        while await self._threads.ordered(self._store.collect):
            pass
