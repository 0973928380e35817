"""How a model comes to serve: restored from its snapshot, thawed, or started cold. One climb, start to end."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from woodfrog.clients.weight_fs import Tree, WeightFsClient
from woodfrog.errors import DataLoss, DeadlineExceeded, NotFound, Unavailable, WoodfrogError
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.node_agent.criu import Criu
from woodfrog.node_agent.engines import CPU, STDERR, start_engine
from woodfrog.node_agent.gpu_state import Bring
from woodfrog.node_agent.gpus import Bringing, Gpus
from woodfrog.node_agent.live import Canary, Live
from woodfrog.node_agent.own_files import OWN, OwnFile, of_rows, rows
from woodfrog.node_agent.page_in import page_in
from woodfrog.node_agent.sandbox import SNAPSHOT, WEIGHTS, SandboxPool
from woodfrog.node_agent.stages import Stages
from woodfrog.telemetry import names

log = logging.getLogger(__name__)
PAGES = "pages"  # the file of a snapshot's tree that private memory is mapped from
PAGE_IN_BYTES_MIN = 16 << 20  # a smaller file is not worth a thread
_POLL_S = 0.02


T = TypeVar("T")


class _TreeChanged(Unavailable):
    """A tree that was known to be whole is not any more."""


@dataclass(frozen=True, slots=True)
class _Taken:
    tree: asyncio.Future[Tree]
    pinned: asyncio.Future[Any]  # ends once the tree is pinned; raises _TreeChanged


@dataclass(frozen=True, slots=True)
class Source:
    """What a replica is restored from."""

    snapshot: Path  # its folder
    weights: Path  # theirs
    canary: Canary
    gpu: str = ""  # that it was made on; empty: none
    cuda_pids: Sequence[int] = ()  # of its processes, as they are inside: which were on it
    bring: Bring | None = None  # weights to a GPU
    own: Sequence[OwnFile] = ()  # that it needs in its /tmp
    #: Waited for beside CRIU: nothing is thawed from files that were not as they should be.
    pinned: Callable[[], Awaitable[object]] | None = None

    @property
    def moved(self) -> dict[str, str]:
        """From the GPU that it was made on to the one where it is to run; empty when that is the same one."""
        if self.bring is None or self.gpu in ("", self.bring.gpu):
            return {}
        return {self.gpu: self.bring.gpu}


class Climber:
    def __init__(
        self,
        weight_fs: WeightFsClient,
        pool: SandboxPool,
        criu: Criu,
        gpus: Gpus,
        cold_timeout_s: float,
    ) -> None:
        self._weight_fs = weight_fs
        self._pool = pool
        self._criu = criu
        self._gpus = gpus
        self._cold_timeout_s = cold_timeout_s
        self._trees: dict[str, Tree] = {}  # complete ones only; they do not change
        self.proven: set[str] = set()  # manifests whose full canary was right on this node
        self.owners: set[str] = set()  # who may pin trees
        self._background: set[asyncio.Task[None]] = set()

    async def restore(
        self,
        replica_id: str,
        spec: ModelSpec,
        pointer: SnapshotPointer,
        stages: Stages,
        bring: Bring | None = None,
    ) -> tuple[Live, Rung]:
        """As `_restore`; once more when a tree turned out to be gone."""
        try:
            return await self._restore(replica_id, spec, pointer, stages, bring)
        except _TreeChanged:
            return await self._restore(replica_id, spec, pointer, stages, bring)

    async def _restore(
        self,
        replica_id: str,
        spec: ModelSpec,
        pointer: SnapshotPointer,
        stages: Stages,
        bring: Bring | None = None,
    ) -> tuple[Live, Rung]:
        """A replica from its snapshot, proven by its canary; and the rung that it rested on.

        Raises DataLoss when the snapshot is damaged (bytes, or what they compute), Unavailable when it could not be
        fetched or CRIU refused it. Its trees are pinned until `let_go`, whatever the outcome.
        """
        taken = [self._take(manifest, replica_id) for manifest in (pointer.manifest, spec.weights)]
        try:
            with stages.stage(names.RESTORE_FETCH):
                snapshot, weights = await _all([each.tree for each in taken])
                canary = _canary(snapshot)
                rung = Rung.FROZEN if snapshot.cache_path and weights.cache_path else Rung.STORED
                if not snapshot.cache_path:
                    await self._weight_fs.fetch(pointer.manifest, _first_extents(snapshot))
            self._fetch_rest(snapshot, weights)
            self._page_in(snapshot, *(() if bring else (weights,)))  # the vault reads them itself
            source = Source(
                _folder(snapshot),
                _folder(weights),
                canary,
                snapshot.manifest.attributes.get("gpu", ""),
                snapshot.manifest.attributes.get("cuda_pids", ()),
                bring,
                of_rows(snapshot.manifest.attributes.get("own_files", [])),
                pinned=lambda: _all([each.pinned for each in taken]),
            )
            live = await self.restore_tree(replica_id, spec, stages, source)
        except BaseException:
            await _all([each.pinned for each in taken])  # a tree that changed explains the failure
            raise
        live.through_mount = rung is Rung.STORED
        if pointer.manifest not in self.proven:
            try:
                with stages.stage(names.RESTORE_PROOF):
                    await live.prove(canary)
            except BaseException:
                await live.sandbox.close()
                raise
            self.proven.add(pointer.manifest)
        return live, rung

    async def restore_tree(
        self, replica_id: str, spec: ModelSpec, stages: Stages, source: Source
    ) -> Live:
        """A thawed replica, proven by its brief canary. Raises as `restore`.

        Weights that must be on a GPU are brought there meanwhile.
        """
        async with self._gpus.bringing(source.bring, source.weights) as bringing:
            with stages.stage(names.RESTORE_SANDBOX):
                sandbox = await self._pool.take(spec.memory_bytes)
            try:
                with stages.stage(names.RESTORE_MOUNT):
                    await sandbox.place(source.weights, WEIGHTS, read_only=True)
                    await sandbox.place(source.snapshot, SNAPSHOT, read_only=True)
                    await sandbox.hide(self._gpus.others(source.bring.gpu if source.bring else ""))
                if source.own:
                    with stages.stage(names.RESTORE_OWN):
                        await sandbox.fill(SNAPSHOT / OWN, rows(source.own))
                with stages.stage(names.RESTORE_CRIU):
                    await self._criu.restore(sandbox)
                    if source.pinned is not None:
                        await source.pinned()
                live = Live(replica_id, spec, sandbox, through_mount=False)
                fd = None
                if bringing is not None:
                    assert source.bring is not None
                    await bringing.room
                    with stages.stage(names.RESTORE_CUDA):
                        pids = [sandbox.host_pid(pid) for pid in source.cuda_pids]
                        await self._gpus.cuda.wake(*pids, moved=source.moved)
                    with stages.stage(names.RESTORE_WEIGHTS):
                        fd = await self._gpus.hand_over(
                            live, bringing, source.bring, source.weights
                        )
                with stages.stage(names.RESTORE_THAW):
                    proving_s = await live.thaw_and_prove(source.canary, fd)
                stages.split(names.RESTORE_THAW, names.RESTORE_CANARY, proving_s)
            except BaseException:
                await sandbox.close()
                raise
        return live

    async def cold_start(
        self, replica_id: str, spec: ModelSpec, stages: Stages, bring: Bring | None = None
    ) -> Live:
        """A replica from its weights alone, which are pinned until `let_go`.

        Raises Unavailable COLD_START_FAILED with the engine's own words.
        """
        with stages.stage(names.COLD_FETCH):
            weights = await self.tree(spec.weights, replica_id)
        self._fetch_rest(weights)
        async with self._gpus.bringing(bring, _folder(weights)) as bringing:
            with stages.stage(names.COLD_SANDBOX):
                sandbox = await self._pool.take(spec.memory_bytes)
            try:
                await sandbox.place(_folder(weights), WEIGHTS, read_only=True)
                await sandbox.hide(self._gpus.others(bring.gpu if bring else ""))
                if bringing is not None:
                    await bringing.room
                with stages.stage(names.COLD_ENGINE):
                    live = Live(replica_id, spec, sandbox, through_mount=weights.cache_path is None)
                    device = self._gpus.device(bring.gpu) if bring else CPU
                    live.gpu = bring.gpu if bring else ""
                    live.pid = await start_engine(sandbox, spec, device)
                    await self._serving(live, bringing)
            except BaseException:
                await sandbox.close()
                raise
        return live

    async def weights_of(self, live: Live) -> Path:
        """The folder of a live replica's weights, whose tree is pinned for it."""
        manifest = live.spec.weights
        known = self._trees.get(manifest)
        return _folder(known or await self._open(manifest, live.replica_id))

    async def tree(self, manifest: str, owner: str) -> Tree:
        """Pinned for its owner until `let_go`."""
        taken = self._take(manifest, owner)
        try:
            await taken.pinned
        except _TreeChanged:
            return await self._open(manifest, owner)
        return await taken.tree

    def _take(self, manifest: str, owner: str) -> "_Taken":
        """A tree that is known is there at once, and its pin comes beside what is done with it."""
        self.owners.add(owner)
        if known := self._trees.get(manifest):
            tree: asyncio.Future[Tree] = asyncio.get_running_loop().create_future()
            tree.set_result(known)
            return _Taken(tree, asyncio.ensure_future(self._pin(manifest, owner)))
        opening = asyncio.ensure_future(self._open(manifest, owner))
        return _Taken(opening, opening)

    async def _pin(self, manifest: str, owner: str) -> None:
        try:
            if await self._weight_fs.pin(manifest, owner):
                return
        except NotFound:
            pass
        self.forget_tree(manifest)  # the news of it is on its way
        raise _TreeChanged(
            "TREE_CHANGED", f"tree {manifest} was evicted or damaged meanwhile; try again"
        )

    async def _open(self, manifest: str, owner: str) -> Tree:
        tree = await self._weight_fs.open(manifest, owner)
        if tree.cache_path:
            self._trees[manifest] = tree
        return tree

    async def let_go(self, owner: str) -> None:
        """Its trees may be evicted. What fails is made up for when weight_fs comes back."""
        self.owners.discard(owner)
        try:
            await self._weight_fs.unpin("", owner)
        except WoodfrogError as error:
            log.warning("unpin failed", extra={"owner": owner, "error": error.message})

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
                self._spawn(self._fetch(tree.manifest.digest), "fetch")

    def _page_in(self, *trees: Tree) -> None:
        """Beside the climb: what it will touch of the files that are here."""
        for tree in trees:
            for file in tree.manifest.files:
                if tree.cache_path and file.size_bytes >= PAGE_IN_BYTES_MIN:
                    first = tree.manifest.attributes.get("first_pages")
                    extents = first if file.path == PAGES else None
                    path = tree.cache_path / file.path
                    self._spawn(asyncio.to_thread(page_in, path, extents), "page_in")

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
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

    async def _serving(self, live: Live, bringing: Bringing | None) -> None:
        """Waits until the engine serves; gives it its weights once both are there."""
        given = bringing is None
        deadline = time.monotonic() + self._cold_timeout_s
        ended = asyncio.create_task(live.sandbox.wait(live.pid), name="engine.ended")
        try:
            while time.monotonic() < deadline:
                try:
                    state = (await live.control("describe")).get("state")
                except WoodfrogError:
                    state = "loading"  # its socket is not there yet, or it is too busy to answer
                if state == "serving":
                    return
                if bringing is not None and not given and bringing.weights.done():
                    held = bringing.weights.result()
                    live.vault = held.vault
                    # It is not listening yet, or too busy to answer; twice is harmless.
                    with contextlib.suppress(Unavailable, DeadlineExceeded):
                        await live.control("attach", fd=held.fd)
                        given = True
                if ended.done() or state == "failed":
                    raise _cold_start_failed(live, _why_it_ended(live))
                await asyncio.wait([ended], timeout=_POLL_S)
        finally:
            ended.cancel()
        raise _cold_start_failed(live, f"it took longer than {self._cold_timeout_s:.0f} s")


async def _all(futures: Sequence[asyncio.Future[T]]) -> list[T]:
    """All end before an error of one is raised, so that no pin comes after `let_go`."""
    await asyncio.gather(*futures, return_exceptions=True)
    return [future.result() for future in futures]


def _canary(snapshot: Tree) -> Canary:
    try:
        return Canary(**snapshot.manifest.attributes["canary"])
    except (KeyError, TypeError):
        raise DataLoss(
            "SNAPSHOT_MALFORMED",
            f"snapshot {snapshot.manifest.digest} does not say what its replica must compute",
        ) from None


def _folder(tree: Tree) -> Path:
    return tree.cache_path or tree.mount_path


def _first_extents(tree: Tree) -> list[tuple[str, int, int]]:
    """What a restore needs before anything else, in order: CRIU's images, then the pages that it touches first."""
    images = [(f.path, 0, f.size_bytes) for f in tree.manifest.files if f.path != PAGES]
    return [*images, *((PAGES, o, n) for o, n in tree.manifest.attributes.get("first_pages", []))]


def _why_it_ended(live: Live) -> str:
    if live.sandbox.cgroup.out_of_memory():
        return (
            f"its engine needs more than its {live.spec.memory_bytes} bytes of memory; "
            "add the model with more"
        )
    return f"its engine ended: {_said(live)}"


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
