"""Where manifests and chunks come from."""

from typing import Protocol

from woodfrog.clients.store import ChunkClient, ChunkState, StoreClient
from woodfrog.errors import NotFound, Unavailable
from woodfrog.model.manifest import Manifest


class ChunkSource(Protocol):
    """A store, as far as the cache cares. All raise Unavailable while it cannot be reached."""

    async def manifest(self, digest: str) -> Manifest:
        """Its digest is right. Raises NotFound, DataLoss."""

    async def chunk(self, digest: str, manifest_digest: str) -> bytes:
        """Its digest is right. Raises NotFound, DataLoss."""

    async def verify_chunk(self, digest: str) -> bool:
        """Has the store look at its copy, after a chunk that came was not right; True when that is whole."""


class StoreSource:
    """The snapshot store. It tells with each manifest where its chunks are, which may change when it starts again."""

    def __init__(self, store: StoreClient, chunks: ChunkClient) -> None:
        self._store = store
        self._chunks = chunks
        self._chunks_url: str | None = None

    async def manifest(self, digest: str) -> Manifest:
        stored = await self._store.get_manifest(digest)
        self._chunks_url = stored.chunks_url
        return stored.manifest

    async def chunk(self, digest: str, manifest_digest: str) -> bytes:
        url = self._chunks_url
        if url is None:
            url = (await self._store.get_manifest(manifest_digest)).chunks_url
        try:
            data = await self._chunks.get(url, digest)
        except (Unavailable, NotFound):
            self._chunks_url = None
            raise
        self._chunks_url = url
        return data

    async def verify_chunk(self, digest: str) -> bool:
        return await self._store.verify_chunk(digest) is ChunkState.WHOLE
