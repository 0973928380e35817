"""weight_fs: this node's trees. Paths are those of this machine."""

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from woodfrog import rpc
from woodfrog.api.weight_fs.v1 import trees_pb2 as pb
from woodfrog.api.weight_fs.v1 import trees_pb2_grpc as pb_grpc
from woodfrog.errors import Unavailable
from woodfrog.model.manifest import Manifest

CALL_TIMEOUT_S = 10.0
PATIENCE_S = 5.0  # a restart takes about one second
TREE_TIMEOUT_S = 60.0  # the store's answer, or a folder to look through and move
FETCH_TIMEOUT_S = 3600.0  # a whole tree over a slow line

Extent = tuple[
    str, int, int
]  #: path within the tree, offset, length in bytes; length 0 means to the end


@dataclass(frozen=True, slots=True)
class Residency:
    """How much of one tree is on the node, by tier. All-zero chunks are not counted."""

    manifest_digest: str
    kind: str  # "weights" or "snapshot"
    size_bytes: int
    disk_bytes: int  # in the cache, verified
    page_cache_bytes: int
    complete: bool


class ResidencyUpdate(NamedTuple):
    """One step of a watch. When `full`, what is not named is not there."""

    full: bool
    trees: tuple[Residency, ...]
    gone: tuple[str, ...]  # digests
    cache_bytes_max: int = 0  # that the cache may hold on disk; set when `full`


@dataclass(frozen=True, slots=True)
class Tree:
    mount_path: Path  # always usable
    cache_path: Path | None  # plain files that may be bind-mounted; None until every chunk is there
    manifest: Manifest
    residency: Residency


@dataclass(frozen=True, slots=True)
class Fetched:
    fetched_bytes: int  # came from the store
    present_bytes: int  # were there


_call = partial(rpc.call, patience_s=PATIENCE_S)


class WeightFsClient:
    """async with WeightFsClient("127.0.0.1:7003") as weight_fs. Reasons are named in the proto."""

    def __init__(self, target: str) -> None:
        self._target = target

    async def __aenter__(self) -> "WeightFsClient":
        self._channel = rpc.open_channel(self._target)
        self._stub = pb_grpc.TreesStub(self._channel)  # type: ignore[no-untyped-call]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close(None)

    async def open(self, digest: str, owner: str = "") -> Tree:
        """With an owner, it is pinned in the same step."""
        request = pb.OpenRequest(manifest_digest=digest, owner=owner)
        reply = await _call(self._stub.Open, request, timeout_s=TREE_TIMEOUT_S)
        return Tree(
            mount_path=Path(reply.mount_path),
            cache_path=Path(reply.cache_path) if reply.cache_path else None,
            manifest=Manifest.decode(reply.manifest),
            residency=residency_from_pb(reply.residency),
        )

    async def adopt(self, manifest: Manifest, path: Path) -> Path:
        """Takes the folder over by rename; returns the tree's folder in the cache."""
        request = pb.AdoptRequest(manifest=manifest.encode(), path=str(path))
        reply = await _call(self._stub.Adopt, request, timeout_s=TREE_TIMEOUT_S)
        return Path(reply.cache_path)

    async def fetch(
        self,
        digest: str,
        extents: Iterable[Extent] = (),
        *,
        ahead: bool = False,
        timeout_s: float = FETCH_TIMEOUT_S,
    ) -> Fetched:
        """In the order of the extents; without any, all of the tree. `ahead`: behind fetches that somebody waits for."""
        request = pb.FetchRequest(
            manifest_digest=digest,
            extents=[pb.FileExtent(path=p, offset=o, length=n) for p, o, n in extents],
            ahead=ahead,
        )
        reply = await _call(self._stub.Fetch, request, timeout_s=timeout_s)
        return Fetched(reply.fetched_bytes, reply.present_bytes)

    async def evict(self, digest: str) -> int:
        """Bytes freed."""
        request = pb.EvictRequest(manifest_digest=digest)
        reply = await _call(self._stub.Evict, request, timeout_s=TREE_TIMEOUT_S)
        freed_bytes: int = reply.freed_bytes
        return freed_bytes

    async def pin(self, digest: str, owner: str) -> bool:
        """Whether the tree is complete."""
        request = pb.PinRequest(manifest_digest=digest, owner=owner)
        return bool((await _call(self._stub.Pin, request, timeout_s=CALL_TIMEOUT_S)).complete)

    async def unpin(self, digest: str, owner: str, kept: Iterable[str] = ()) -> None:
        """With no digest every tree; an owner that ends in "*" stands for all that start so, except those kept."""
        request = pb.UnpinRequest(manifest_digest=digest, owner=owner, kept_owners=kept)
        await _call(self._stub.Unpin, request, timeout_s=CALL_TIMEOUT_S)

    async def watch(self) -> AsyncIterator[ResidencyUpdate]:
        """First everything, then each change. Raises Unavailable when the stream breaks; it never just ends."""
        async with aclosing(rpc.stream(self._stub.Watch, pb.WatchRequest())) as responses:
            async for response in responses:
                yield update_from_pb(response)
        raise Unavailable("WATCH_ENDED", "weight_fs ended its stream; watch it again")


def residency_to_pb(residency: Residency) -> pb.Residency:
    return pb.Residency(
        manifest_digest=residency.manifest_digest,
        kind=residency.kind,
        size_bytes=residency.size_bytes,
        disk_bytes=residency.disk_bytes,
        page_cache_bytes=residency.page_cache_bytes,
        complete=residency.complete,
    )


def residency_from_pb(message: pb.Residency) -> Residency:
    return Residency(
        manifest_digest=message.manifest_digest,
        kind=message.kind,
        size_bytes=message.size_bytes,
        disk_bytes=message.disk_bytes,
        page_cache_bytes=message.page_cache_bytes,
        complete=message.complete,
    )


def update_to_pb(update: ResidencyUpdate) -> pb.WatchResponse:
    trees = map(residency_to_pb, update.trees)
    return pb.WatchResponse(
        full=update.full, trees=trees, gone=update.gone, cache_bytes_max=update.cache_bytes_max
    )


def update_from_pb(message: pb.WatchResponse) -> ResidencyUpdate:
    trees = tuple(map(residency_from_pb, message.trees))
    return ResidencyUpdate(message.full, trees, tuple(message.gone), message.cache_bytes_max)
