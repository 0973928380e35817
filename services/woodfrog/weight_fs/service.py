"""The gRPC skin: request → one step of the cache or the fetcher → response."""

from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

import grpc

from woodfrog.api.weight_fs.v1 import trees_pb2 as pb
from woodfrog.api.weight_fs.v1 import trees_pb2_grpc as pb_grpc
from woodfrog.clients.weight_fs import residency_to_pb, update_to_pb
from woodfrog.errors import InvalidArgument
from woodfrog.model import digest as digests
from woodfrog.model.manifest import Manifest
from woodfrog.weight_fs.cache import CachedTree, NodeCache
from woodfrog.weight_fs.fetch import Fetcher, Priority
from woodfrog.weight_fs.residency import ResidencyWatch, residency

Context = grpc.aio.ServicerContext[object, object]


class TreesServicer(pb_grpc.TreesServicer):
    def __init__(
        self, cache: NodeCache, fetcher: Fetcher, watch: ResidencyWatch, mount_dir: Path
    ) -> None:
        self._cache = cache
        self._fetcher = fetcher
        self._watch = watch
        self._mount_dir = mount_dir

    async def Open(self, request: pb.OpenRequest, _: Context) -> pb.OpenResponse:
        tree = await self._cache.open(request.manifest_digest)
        if request.owner:
            self._cache.pin(tree.digest, request.owner)
        await self._cache.recheck(tree)
        self._cache.touch(tree)
        return pb.OpenResponse(
            mount_path=str(self._mount_dir / digests.hex_of(tree.digest)),
            cache_path=str(tree.files.files) if tree.complete else "",
            manifest=tree.manifest.encode(),
            residency=residency_to_pb(residency(tree)),
        )

    async def Adopt(self, request: pb.AdoptRequest, _: Context) -> pb.AdoptResponse:
        tree = await self._cache.adopt(_manifest(request.manifest), Path(request.path))
        return pb.AdoptResponse(cache_path=str(tree.files.files))

    async def Fetch(self, request: pb.FetchRequest, _: Context) -> pb.FetchResponse:
        tree = await self._cache.open(request.manifest_digest)
        numbers = _numbers(tree, request.extents)
        priority = Priority.AHEAD if request.ahead else Priority.PREFETCH
        moved = await self._fetcher.ensure(tree, numbers, priority)
        return pb.FetchResponse(
            fetched_bytes=moved.fetched_bytes, present_bytes=moved.present_bytes
        )

    async def Evict(self, request: pb.EvictRequest, _: Context) -> pb.EvictResponse:
        return pb.EvictResponse(freed_bytes=await self._cache.evict(request.manifest_digest))

    async def Pin(self, request: pb.PinRequest, _: Context) -> pb.PinResponse:
        tree = self._cache.pin(request.manifest_digest, request.owner)
        await self._cache.recheck(tree)
        return pb.PinResponse(complete=tree.complete)

    async def Unpin(self, request: pb.UnpinRequest, _: Context) -> pb.UnpinResponse:
        self._cache.unpin(request.manifest_digest, request.owner, request.kept_owners)
        return pb.UnpinResponse()

    async def Watch(self, _request: pb.WatchRequest, _: Context) -> AsyncIterator[pb.WatchResponse]:
        async for update in self._watch.follow():
            yield update_to_pb(update)


def _manifest(encoded: bytes) -> Manifest:
    try:
        return Manifest.decode(encoded)
    except ValueError as error:
        raise InvalidArgument("MANIFEST_INVALID", str(error)) from None


def _numbers(tree: CachedTree, extents: Iterable[pb.FileExtent]) -> Iterator[int]:
    """Chunks in the order of the extents, each once; all of them when there are no extents."""
    paths = {file.path: index for index, file in enumerate(tree.manifest.files)}
    wanted: dict[int, None] = {}
    for extent in extents:
        if extent.path not in paths or extent.offset < 0 or extent.length < 0:
            raise InvalidArgument(
                "EXTENT_INVALID", f"extent {extent.path!r} is not of a file in {tree.digest}"
            )
        numbers = tree.presence.numbers(paths[extent.path], extent.offset, extent.length)
        wanted.update(dict.fromkeys(numbers))
    return iter(wanted if extents else range(len(tree.presence)))
