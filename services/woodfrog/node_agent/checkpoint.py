"""How a cold-started replica becomes a snapshot: dump, rewrite to a mapped image, prove by a restore, digest, ingest.

Only the dump holds the replica up, and it goes on serving afterwards. Nothing is visible before the last step: the
pointer in etcd is written when the store has committed the manifest.
"""

import asyncio
import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp

from woodfrog.catalog import Catalog
from woodfrog.clients.ingest import build_manifest, ingest
from woodfrog.clients.store import ChunkClient, StoreClient
from woodfrog.clients.weight_fs import WeightFsClient
from woodfrog.clock import Clock
from woodfrog.errors import ResourceExhausted, Unavailable, WoodfrogError
from woodfrog.model.manifest import Kind, Manifest
from woodfrog.model.snapshot import Fingerprint, SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.node_agent.climb import PAGES, Climber, Source
from woodfrog.node_agent.criu import IMAGES, Criu
from woodfrog.node_agent.gpu_state import Bring
from woodfrog.node_agent.gpus import Gpus
from woodfrog.node_agent.image import Rewritten, rewrite, touched
from woodfrog.node_agent.live import Canary, Live
from woodfrog.node_agent.own_files import OWN, OwnFile, keep, rows
from woodfrog.node_agent.sandbox import DUMP, SNAPSHOT
from woodfrog.node_agent.stages import Stages
from woodfrog.telemetry import names

log = logging.getLogger(__name__)
_PROBE_TIMEOUT_S = 30.0
_SWEEP_AGE_S = 3600.0  # a younger one may be on its way to its pointer


@dataclass(frozen=True, slots=True)
class Dumped:
    """CRIU's image of a replica, not yet a snapshot."""

    folder: Path  # staging of this checkpoint; removed at its end
    spec: ModelSpec
    canary: Canary
    gpu: str  # that it was on; empty: none
    cuda_pids: tuple[int, ...]  # of its processes, as they are inside: which were on it
    own: list[OwnFile]  # of its /tmp; their bytes are in the folder too


@dataclass(frozen=True, slots=True)
class Room:
    """For the proof of a snapshot."""

    enough: bool
    bring: Bring | None = None  # weights to a GPU


class Checkpointer:
    def __init__(  # noqa: PLR0913  one adapter each
        self,
        climber: Climber,
        criu: Criu,
        gpus: Gpus,
        weight_fs: WeightFsClient,
        store: StoreClient,
        chunks: ChunkClient,
        catalog: Catalog,
        clock: Clock,
        staging: Path,
    ) -> None:
        self._climber = climber
        self._criu = criu
        self._gpus = gpus
        self._weight_fs = weight_fs
        self._store = store
        self._chunks = chunks
        self._catalog = catalog
        self._clock = clock
        self._staging = staging
        # Its sandbox is promised to nobody, so that a node as full as it can be still gets snapshots.
        self._one_proof = asyncio.Lock()

    async def dump(self, live: Live, stages: Stages) -> Dumped:
        """Takes the image of a replica that has not answered anybody yet; it serves afterwards.

        Raises woodfrog.errors classes; the replica is thawed all the same.
        """
        folder = self._staging / live.replica_id
        (folder / "dump").mkdir(parents=True)
        try:
            with stages.stage(names.CHECKPOINT_QUIESCE):
                canary = await live.canary()
                await (live.park() if live.gpu else live.quiesce())
            try:
                await live.sandbox.place(folder / "dump", DUMP)
                async with self._off_gpu(live, stages) as cuda_pids:
                    with stages.stage(names.CHECKPOINT_DUMP):
                        await self._criu.dump(live.sandbox, live.pid)
                    with stages.stage(names.CHECKPOINT_OWN):
                        init_pid = live.sandbox.init_pid
                        own = await asyncio.to_thread(keep, folder / "dump", init_pid, folder / OWN)
            finally:
                with stages.stage(names.CHECKPOINT_RESUME):
                    await self._resume(live)
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, folder, True)
            raise
        return Dumped(folder, live.spec, canary, live.gpu, cuda_pids, own)

    @asynccontextmanager
    async def _off_gpu(self, live: Live, stages: Stages) -> AsyncIterator[tuple[int, ...]]:
        """What its processes have on their GPU is in their memory meanwhile; which these are, as they are inside."""
        if not live.gpu:
            yield ()
            return
        with stages.stage(names.CHECKPOINT_CUDA):
            frozen = await self._gpus.freeze(live.sandbox)
        try:
            yield tuple(sorted(frozen))
        finally:
            with stages.stage(names.CHECKPOINT_CUDA_BACK):
                await self._gpus.cuda.wake(*frozen.values())

    async def _resume(self, live: Live) -> None:
        fd = await self._gpus.export(live.gpu, live.spec.weights) if live.gpu else None
        try:
            await live.thaw(fd)
        finally:
            if fd is not None:
                os.close(fd)

    async def finish(
        self,
        dumped: Dumped,
        fingerprint: Fingerprint,
        room: Callable[[], AbstractContextManager[Room]],
    ) -> SnapshotPointer:
        """Makes the snapshot of a dump and points to it. Raises woodfrog.errors classes; leaves no staging behind.

        `room` is held for the proof only. What is not proven here is at its first restore.
        """
        stages = Stages()
        tree = dumped.folder / "tree"
        try:
            with stages.stage(names.CHECKPOINT_REWRITE):
                image = await asyncio.to_thread(_rewrite, dumped, tree)
            with stages.stage(names.CHECKPOINT_PROVE):
                async with self._one_proof:
                    with room() as found:
                        extents = (
                            await self._prove(dumped, tree, image, found.bring)
                            if found.enough
                            else []
                        )
            with stages.stage(names.CHECKPOINT_DIGEST):
                attributes = {
                    "model": dumped.spec.name,
                    "weights": dumped.spec.weights,
                    "fingerprint": asdict(fingerprint),
                    "canary": asdict(dumped.canary),
                    "first_pages": touched.in_file(extents, image.areas),
                    "image_bytes": image.image_bytes,
                    "pages_bytes": image.pages_data_bytes,
                    "weights_bytes": image.weights_bytes_in_image,
                    "gpu": dumped.gpu,
                    "cuda_pids": list(dumped.cuda_pids),
                    "own_files": rows(dumped.own),
                }
                manifest = await asyncio.to_thread(build_manifest, Kind.SNAPSHOT, tree, attributes)
            with stages.stage(names.CHECKPOINT_INGEST):
                pointer = await self._keep(manifest, tree, dumped, fingerprint)
            if found.enough:
                self._climber.proven.add(manifest.digest)
            return pointer
        finally:
            await asyncio.to_thread(shutil.rmtree, dumped.folder, True)
            log.info(
                "checkpoint",
                extra={"model": dumped.spec.name, "stages": [asdict(s) for s in stages.done]},
            )

    async def discard(self, pointer: SnapshotPointer) -> None:
        """Forgets a snapshot that proved damaged: first its pointer, then its bytes."""
        try:
            await self._catalog.remove_snapshot(pointer)
        except WoodfrogError as error:  # its successor will take the pointer's place
            log.warning("pointer left behind", extra={"error": error.message})
        await self._drop(pointer.manifest, (pointer.holder,))

    async def sweep(self) -> None:
        """Removes snapshots that were committed and never pointed to, because somebody died in between."""
        try:
            pointed = {pointer.manifest for pointer in await self._catalog.list_snapshots()}
            old = self._clock.wall() - _SWEEP_AGE_S
            for stored in await self._store.list():
                lost = stored.kind == Kind.SNAPSHOT.value and stored.manifest_digest not in pointed
                if lost and stored.create_time < old:
                    log.warning("lost snapshot removed", extra={"manifest": stored.manifest_digest})
                    await self._drop(stored.manifest_digest, stored.holders)
        except WoodfrogError as error:
            log.warning("no sweep of lost snapshots", extra={"error": error.message})

    async def _drop(self, manifest: str, holders: Sequence[str]) -> None:
        """Removes the bytes of a snapshot that nothing points to. What fails is left to a later `sweep`."""
        self._climber.forget_tree(manifest)
        for step in (
            self._weight_fs.evict(manifest),
            *(self._store.unhold(manifest, holder) for holder in holders),
            self._store.delete(manifest),
        ):
            try:
                await step
            except WoodfrogError as error:
                log.warning(
                    "bytes of a snapshot left behind",
                    extra={"manifest": manifest, "error": error.message},
                )

    async def _keep(
        self, manifest: Manifest, tree: Path, dumped: Dumped, fingerprint: Fingerprint
    ) -> SnapshotPointer:
        """In the store, in this node's cache if there is room, and then in the catalog. All or nothing."""
        stored = sum(
            file.chunk_bytes(index)
            for file in manifest.files
            for index, chunk in enumerate(file.chunks)
            if chunk
        )
        pointer = SnapshotPointer(
            dumped.spec.name,
            manifest.digest,
            fingerprint,
            stored,
            self._clock.wall(),
            dumped.gpu,
        )
        await ingest(self._store, self._chunks, manifest, tree)
        try:
            await self._adopt(manifest, tree)
            await self._store.hold(pointer.manifest, pointer.holder)
            replaced = await self._catalog.put_snapshot(pointer)
        except WoodfrogError:
            await self._drop(pointer.manifest, (pointer.holder,))
            raise
        if replaced and replaced.manifest != pointer.manifest:
            await self._drop(replaced.manifest, (replaced.holder,))
        await self._drop_outdated(pointer)
        return pointer

    async def _adopt(self, manifest: Manifest, tree: Path) -> None:
        try:
            await self._weight_fs.adopt(manifest, tree)
        except ResourceExhausted as error:  # the next wake brings it from the store
            log.warning("snapshot not kept on the node", extra={"error": error.message})

    async def _drop_outdated(self, pointer: SnapshotPointer) -> None:
        """Snapshots of this model and this kind of node that an older engine or other weights made: none fits again."""
        for other in await self._catalog.list_snapshots(pointer.model):
            if other.fingerprint.node == pointer.fingerprint.node and other != pointer:
                await self.discard(other)

    async def _prove(
        self, dumped: Dumped, tree: Path, image: Rewritten, bring: Bring | None
    ) -> list[touched.Extent]:
        """Restores the image once, before anybody relies on it; what the restore and a first request touched."""
        proof = f"{dumped.folder.name}-proof"
        try:
            weights = await self._climber.tree(dumped.spec.weights, proof)
            source = Source(
                tree,
                weights.cache_path or weights.mount_path,
                dumped.canary,
                dumped.gpu,
                dumped.cuda_pids,
                bring,
                dumped.own,
            )
            live = await self._climber.restore_tree(proof, dumped.spec, Stages(), source)
            try:
                await live.prove(dumped.canary)
                await _ask(live)
                pid = live.sandbox.host_pid(live.pid)
                return await asyncio.to_thread(touched.touched, image.areas, pid)
            finally:
                await self._gpus.end(live)
        finally:
            await self._climber.let_go(proof)


def _rewrite(dumped: Dumped, tree: Path) -> Rewritten:
    tree.mkdir()
    source = dumped.folder / "dump"
    if dumped.own:
        (dumped.folder / OWN).rename(tree / OWN)
    done = rewrite(source, tree / IMAGES, tree / PAGES, str(SNAPSHOT / PAGES))
    shutil.rmtree(source)
    return done


async def _ask(live: Live) -> None:
    """One short request through the front door, so that the path of a request is among what was touched."""
    probe = (await live.control("describe")).get("probe")
    if not isinstance(probe, dict) or not {"path", "body"} <= probe.keys():
        raise Unavailable("PROOF_FAILED", "the restored replica does not say what to ask it")
    connector = aiohttp.UnixConnector(path=str(live.socket_path))
    timeout = aiohttp.ClientTimeout(total=_PROBE_TIMEOUT_S)
    try:
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            async with session.post(
                "http://replica" + str(probe["path"]), json=probe["body"]
            ) as response:
                text = await response.text()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unavailable(
            "PROOF_FAILED", f"the restored replica did not answer: {error!r}"
        ) from None
    if response.status != 200:
        raise Unavailable(
            "PROOF_FAILED", f"the restored replica answered {response.status}: {text[:200]}"
        )
