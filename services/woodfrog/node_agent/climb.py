"""How a model comes to serve: restored from its snapshot, thawed, or started cold. One climb, start to end."""

import asyncio
import json
import logging
import time
from pathlib import Path

from woodfrog.clients.weight_fs import Tree, WeightFsClient
from woodfrog.errors import DataLoss, Unavailable, WoodfrogError
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.node_agent.criu import Criu
from woodfrog.node_agent.engines import STDERR, start_engine
from woodfrog.node_agent.live import Live, Populate
from woodfrog.node_agent.sandbox import SNAPSHOT, WEIGHTS, SandboxPool
from woodfrog.node_agent.stages import Stages

log = logging.getLogger(__name__)
PAGES = "pages"  # the file of a snapshot's tree that private memory is mapped from
TOUCHED = "touched.json"  # what a restore is known to touch at once
_POLL_S = 0.02


class Climber:
    def __init__(
        self, weight_fs: WeightFsClient, pool: SandboxPool, criu: Criu, cold_timeout_s: float
    ) -> None:
        self._weight_fs = weight_fs
        self._pool = pool
        self._criu = criu
        self._cold_timeout_s = cold_timeout_s
        self._trees: dict[str, Tree] = {}  # complete ones only; they do not change
        self._background: set[asyncio.Task[None]] = set()

    async def restore(
        self, replica_id: str, spec: ModelSpec, pointer: SnapshotPointer, stages: Stages
    ) -> tuple[Live, Rung]:
        """A replica from its snapshot, proven by its canary; and the rung that it rested on.

        Raises DataLoss when the snapshot is damaged (bytes, or what they compute), Unavailable when it could not be
        fetched or CRIU refused it.
        """
        with stages.stage("restore.fetch"):
            snapshot, weights = await asyncio.gather(
                self.tree(pointer.manifest), self.tree(spec.weights)
            )
            rung = Rung.FROZEN if snapshot.cache_path and weights.cache_path else Rung.STORED
            if not snapshot.cache_path:
                await self._weight_fs.fetch(pointer.manifest, _first_extents(snapshot))
        self._fetch_rest(snapshot, weights)
        live = await self.restore_tree(
            replica_id, spec, stages, snapshot=_folder(snapshot), weights=_folder(weights)
        )
        live.snapshot = pointer.manifest
        live.through_mount = not (snapshot.cache_path and weights.cache_path)
        try:
            with stages.stage("restore.canary"):
                await check_canary(live, str(snapshot.manifest.attributes["canary"]))
        except BaseException:
            await live.sandbox.close()
            raise
        return live, rung

    async def restore_tree(
        self, replica_id: str, spec: ModelSpec, stages: Stages, *, snapshot: Path, weights: Path
    ) -> Live:
        """A thawed replica from a snapshot's folder, not yet proven."""
        with stages.stage("restore.sandbox"):
            sandbox = await self._pool.take(spec.memory_bytes)
        try:
            with stages.stage("restore.mount"):
                await sandbox.place(weights, WEIGHTS, read_only=True)
                await sandbox.place(snapshot, SNAPSHOT, read_only=True)
            with stages.stage("restore.criu"):
                await self._criu.restore(sandbox)
            live = Live(replica_id, spec, sandbox, through_mount=False)
            with stages.stage("restore.thaw"):
                await live.thaw(_populate(snapshot))
        except BaseException:
            await sandbox.close()
            raise
        return live

    async def cold_start(self, replica_id: str, spec: ModelSpec, stages: Stages) -> Live:
        """A replica from its weights alone. Raises Unavailable COLD_START_FAILED with the engine's own words."""
        with stages.stage("cold.fetch"):
            weights = await self.tree(spec.weights)
        self._fetch_rest(weights)
        with stages.stage("cold.sandbox"):
            sandbox = await self._pool.take(spec.memory_bytes)
        try:
            await sandbox.place(_folder(weights), WEIGHTS, read_only=True)
            with stages.stage("cold.engine"):
                live = Live(replica_id, spec, sandbox, through_mount=weights.cache_path is None)
                live.pid = await start_engine(sandbox, spec)
                await self._serving(live)
        except BaseException:
            await sandbox.close()
            raise
        return live

    async def tree(self, manifest: str) -> Tree:
        if manifest not in self._trees:
            tree = await self._weight_fs.open(manifest)
            if not tree.cache_path:
                return tree
            self._trees[manifest] = tree
        return self._trees[manifest]

    def forget_tree(self, manifest: str) -> None:
        """The tree was evicted."""
        self._trees.pop(manifest, None)

    async def close(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    def _fetch_rest(self, *trees: Tree) -> None:
        """Completes trees that are still arriving, behind the climb."""
        for tree in trees:
            if not tree.cache_path:
                task = asyncio.create_task(self._fetch(tree.manifest.digest), name="fetch")
                self._background.add(task)
                task.add_done_callback(self._background.discard)

    async def _fetch(self, manifest: str) -> None:
        try:
            await self._weight_fs.fetch(manifest)
        except WoodfrogError as error:
            log.warning(
                "fetch behind a climb failed",
                extra={"manifest": manifest, "reason": error.reason, "error": error.message},
            )

    async def _serving(self, live: Live) -> None:
        """Waits until the engine serves."""
        deadline = time.monotonic() + self._cold_timeout_s
        ended = asyncio.create_task(live.sandbox.wait(live.pid), name="engine.ended")
        try:
            while time.monotonic() < deadline:
                try:
                    state = (await live.control("describe"))["state"]
                except Unavailable:
                    state = "loading"  # its socket is not there yet
                if state == "serving":
                    return
                if ended.done() or state == "failed":
                    raise _cold_start_failed(live, f"its engine ended: {_said(live)}")
                await asyncio.wait([ended], timeout=_POLL_S)
        finally:
            ended.cancel()
        raise _cold_start_failed(live, f"it took longer than {self._cold_timeout_s:.0f} s")


async def check_canary(live: Live, expected: str) -> None:
    """Raises DataLoss when the replica computes something else than it did before its checkpoint."""
    found = await live.canary()
    if found != expected:
        raise DataLoss(
            "CANARY_MISMATCH",
            f"the restored replica of {live.spec.name} generated other tokens than before its checkpoint",
            found=found,
            expected=expected,
        )


def _populate(snapshot: Path) -> list[Populate]:
    """The first-touch list of a snapshot; empty before it was proven."""
    try:
        value = json.loads((snapshot / TOUCHED).read_bytes())
    except FileNotFoundError:
        return []
    return [(address, length, kind) for address, length, kind in value["populate"]]


def _folder(tree: Tree) -> Path:
    return tree.cache_path or tree.mount_path


def _first_extents(tree: Tree) -> list[tuple[str, int, int]]:
    """What a restore needs before anything else, in order: CRIU's images, then the pages that it touches first."""
    images = [(f.path, 0, f.size_bytes) for f in tree.manifest.files if f.path != PAGES]
    return [*images, *((PAGES, o, n) for o, n in tree.manifest.attributes.get("first_pages", []))]


def _said(live: Live) -> str:
    """The last line that the engine wrote to stderr."""
    try:
        text = (live.sandbox.folder / STDERR.name).read_text(errors="replace").strip()
    except OSError:
        return "it said nothing"
    return text.splitlines()[-1][:300] if text else "it said nothing"


def _cold_start_failed(live: Live, why: str) -> Unavailable:
    return Unavailable(
        "COLD_START_FAILED", f"model {live.spec.name} did not start: {why}", model=live.spec.name
    )
