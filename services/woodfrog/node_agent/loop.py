"""The agent's shell: carries out what `state.py` decides, owns the live replicas, and tells watchers what changed."""

import asyncio
import itertools
import logging
import secrets
import signal
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any

from opentelemetry import trace

from woodfrog import telemetry
from woodfrog.clients.node_agent import node_full
from woodfrog.clients.weight_fs import ResidencyUpdate, WeightFsClient
from woodfrog.errors import (
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unavailable,
    WoodfrogError,
)
from woodfrog.model.node import (
    Climbed,
    NodeFacts,
    NodeUpdate,
    Replica,
    ReplicaState,
    Resident,
)
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import Fingerprint, SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.node_agent import fingerprint, state
from woodfrog.node_agent.checkpoint import Checkpointer, Dumped
from woodfrog.node_agent.climb import Climber
from woodfrog.node_agent.live import Live
from woodfrog.node_agent.sandbox import SandboxPool
from woodfrog.node_agent.stages import Stages
from woodfrog.telemetry import names

log = logging.getLogger(__name__)
_WATCH_QUEUE_MAX = 256
_RETRY_S = 0.3
_CALM_S = 0.3  # after a climb, before sandboxes are made again
_HEALTH_S = 5.0  # between two looks at the replicas, and how long each may take to answer
_CLIMBS_KEPT_MAX = 1024
# Once they may have another cause, e.g. a file system that went away. Twice in a row the snapshot is given up.
_BLAMES_SNAPSHOT = frozenset(("CRIU_RESTORE_FAILED", "REPLICA_UNREACHABLE", "REPLICA_SILENT"))


@dataclass(frozen=True, slots=True)
class Parts:
    """What the loop drives."""

    climber: Climber
    checkpointer: Checkpointer
    weight_fs: WeightFsClient
    pool: SandboxPool


class NodeLoop:
    def __init__(
        self, node: str, node_state: state.NodeState, parts: Parts, node_print: dict[str, str]
    ) -> None:
        self._node = node
        self._state = node_state
        self._parts = parts
        self._print = node_print
        self._live: dict[str, Live] = {}
        self._specs: dict[str, ModelSpec] = {}
        self._failures: Counter[str] = Counter()  # restores in a row, by manifest
        self._climbs: dict[str, asyncio.Task[Climbed]] = {}  # by request id, so that a retry joins
        self._residents: dict[str, Resident] = {}
        self._watchers: set[asyncio.Queue[NodeUpdate]] = set()
        self._background: set[asyncio.Task[None]] = set()
        self._run = secrets.token_hex(3)  # no replica of an earlier run has the same name
        self._numbers = itertools.count(1)
        self._climbing = 0
        self._refill = asyncio.Event()
        self._broken = asyncio.Event()  # an invariant does not hold

    async def climb(
        self,
        request_id: str,
        spec: ModelSpec,
        pointer: SnapshotPointer | None,
        replica_id: str | None,
    ) -> Climbed:
        """Goes on when its caller gives up: the next one finds the replica."""
        if request_id not in self._climbs:
            task = asyncio.create_task(self._climb(spec, pointer, replica_id), name="climb")
            self._climbs[request_id] = task
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            while len(self._climbs) > _CLIMBS_KEPT_MAX:
                oldest = next(iter(self._climbs))
                self._climbs.pop(oldest)
        return await asyncio.shield(self._climbs[request_id])

    async def descend(self, replica_id: str, rung: Rung) -> Rung:
        """Where it is then. Goes on when its caller gives up. Raises FailedPrecondition REPLICA_BUSY."""
        command = self._decide(state.DescendRequested(replica_id, rung))
        match command:
            case state.Park():
                await asyncio.shield(self._spawn(self._park(self._live[replica_id]), "park"))
            case state.Freeze():
                await asyncio.shield(self._spawn(self._freeze(self._live[replica_id]), "freeze"))
        return rung

    async def watch(self) -> AsyncIterator[NodeUpdate]:
        """Everything, then each change. A watcher that falls behind gets everything again."""
        queue: asyncio.Queue[NodeUpdate] = asyncio.Queue(_WATCH_QUEUE_MAX)
        self._watchers.add(queue)
        try:
            yield self._full()
            while True:
                update = await queue.get()
                if queue.qsize() >= _WATCH_QUEUE_MAX - 1:  # it was full, and something may be lost
                    while not queue.empty():
                        queue.get_nowait()
                    update = self._full()
                yield update
        finally:
            self._watchers.discard(queue)

    async def run(self) -> None:
        """Until cancelled; then every replica ends."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_weight_fs(), name="weight_fs")
                group.create_task(self._keep_pool_full(), name="pool")
                group.create_task(self._end_the_stuck(), name="health")
                group.create_task(self._parts.checkpointer.sweep(), name="sweep")
                group.create_task(self._end_when_broken(), name="broken")
        finally:
            for task in [*self._climbs.values(), *self._background]:
                task.cancel()
            await asyncio.gather(*self._climbs.values(), *self._background, return_exceptions=True)
            await self._parts.climber.close()
            await asyncio.gather(*(live.sandbox.close() for live in self._live.values()))
            await self._parts.pool.close()

    # --- climbs ---

    async def _climb(
        self, spec: ModelSpec, pointer: SnapshotPointer | None, replica_id: str | None
    ) -> Climbed:
        stages = Stages()
        self._climbing += 1
        with telemetry.tracer().start_as_current_span("climb") as span:
            span.set_attribute(names.MODEL, spec.name)
            try:
                if replica_id:
                    return await self._thaw(replica_id, stages)
                return await self._start(spec, pointer, stages, span)
            except (DataLoss, DeadlineExceeded, NotFound, Unavailable) as error:
                raise Unavailable("CLIMB_FAILED", error.message, cause=error.reason) from error
            finally:
                self._climbing -= 1
                self._refill.set()

    async def _thaw(self, replica_id: str, stages: Stages) -> Climbed:
        command = self._decide(state.ThawRequested(replica_id))
        live = self._live[replica_id]
        if isinstance(command, state.Thaw):
            try:
                with stages.stage("thaw"):
                    await live.sandbox.signal_all(signal.SIGCONT)
                    await live.thaw()
            except WoodfrogError:
                await self._end(live, "it could not be thawed")
                raise
            self._decide(state.ClimbFinished(replica_id))
            self._publish_replica(replica_id)
        return Climbed(self._replica(replica_id), Rung.PARKED, tuple(stages.done), "")

    async def _start(
        self, spec: ModelSpec, pointer: SnapshotPointer | None, stages: Stages, span: trace.Span
    ) -> Climbed:
        replica_id = f"{self._node}-{self._run}-{next(self._numbers)}"
        self._decide(state.StartRequested(replica_id, spec.name, spec.memory_bytes))
        self._specs[replica_id] = spec
        self._publish_replica(replica_id)
        dumped: Dumped | None = None
        live: Live | None = None
        try:
            own_print = fingerprint.of_snapshot(self._print, spec)
            live, rung, reason, damaged = await self._restore(
                replica_id, spec, pointer, own_print, stages
            )
            if live is None:
                live = await self._parts.climber.cold_start(replica_id, spec, stages)
                if spec.snapshot == "eager" and (pointer is None or damaged):
                    dumped = await self._dump(live, stages)
        except BaseException:
            if live is not None:
                await live.sandbox.close()
            self._forget(replica_id)
            self._spawn(self._parts.climber.let_go(replica_id), "unpin")
            raise
        self._live[replica_id] = live
        self._decide(state.ClimbFinished(replica_id))
        self._spawn(self._watch_end(live), "ended")
        if dumped:
            self._spawn(self._finish(dumped, own_print), "checkpoint")
        span.set_attribute(names.RUNG, rung.value)
        if reason:
            span.set_attribute(names.FALLBACK, reason)
        self._publish_replica(replica_id)
        return Climbed(self._replica(replica_id), rung, tuple(stages.done), reason)

    async def _restore(
        self,
        replica_id: str,
        spec: ModelSpec,
        pointer: SnapshotPointer | None,
        own_print: Fingerprint,
        stages: Stages,
    ) -> tuple[Live | None, Rung, str, bool]:
        """The replica, its rung, why the snapshot was passed over, and whether a new snapshot is wanted."""
        if pointer is None:
            return None, Rung.ABSENT, "", True
        if mismatch := pointer.fingerprint.mismatch(own_print):
            return None, Rung.ABSENT, mismatch, True
        try:
            live, rung = await self._parts.climber.restore(replica_id, spec, pointer, stages)
        except (WoodfrogError, OSError) as error:
            known = error if isinstance(error, WoodfrogError) else None
            reason = known.reason if known else type(error).__name__
            log.warning(
                "snapshot passed over",
                extra={"model": spec.name, "reason": reason, "error": str(error)},
            )
            if reason in _BLAMES_SNAPSHOT:
                self._failures[pointer.manifest] += 1
            damaged = isinstance(error, DataLoss) or self._failures[pointer.manifest] > 1
            await self._parts.climber.let_go(replica_id)
            if damaged:
                self._failures.pop(pointer.manifest, None)
                await self._parts.checkpointer.discard(pointer)
            return None, Rung.ABSENT, known.message if known else str(error), damaged
        self._failures.pop(pointer.manifest, None)
        return live, rung, "", False

    async def _dump(self, live: Live, stages: Stages) -> Dumped | None:
        """A checkpoint that fails costs the next wake, not this request. Raises when the replica was lost over it."""
        try:
            return await self._parts.checkpointer.dump(live, stages)
        except (WoodfrogError, OSError) as error:
            _log_failed(live.spec, error)
        if (await live.control("describe"))["state"] != "serving":
            raise Unavailable(
                "REPLICA_LOST", f"{live.spec.name} did not go on after its checkpoint failed"
            )
        return None

    async def _finish(self, dumped: Dumped, own_print: Fingerprint) -> None:
        with telemetry.tracer().start_as_current_span("checkpoint"):
            try:
                pointer = await self._parts.checkpointer.finish(dumped, own_print)
            except (WoodfrogError, OSError) as error:
                _log_failed(dumped.spec, error)
                return
        log.info(
            "snapshot made",
            extra={
                "model": pointer.model,
                "manifest": pointer.manifest,
                "size_bytes": pointer.size_bytes,
            },
        )

    # --- descents and ends ---

    async def _park(self, live: Live) -> None:
        await self._leave_serving(live)
        try:
            await live.park()
            await live.sandbox.signal_all(signal.SIGSTOP)
        except (WoodfrogError, OSError) as error:
            await self._end(live, f"it could not be parked: {error}")
            raise
        self._decide(state.DescendFinished(live.replica_id, ReplicaState.PARKED))
        self._publish_replica(live.replica_id)

    async def _freeze(self, live: Live) -> None:
        await self._leave_serving(live)
        await self._end(live, "it was frozen")

    async def _leave_serving(self, live: Live) -> None:
        """Stops admission. Raises FailedPrecondition REPLICA_BUSY, with the replica serving on, when requests run."""
        self._publish_replica(live.replica_id)
        try:
            await live.sandbox.signal_all(signal.SIGCONT)  # it may be parked
            if (await live.control("describe"))["state"] != "parked":
                await live.quiesce()
        except ResourceExhausted:
            self._decide(state.DescendFinished(live.replica_id, ReplicaState.SERVING))
            self._publish_replica(live.replica_id)
            raise FailedPrecondition(
                "REPLICA_BUSY", f"replica {live.replica_id} has requests; it serves on"
            ) from None
        except (WoodfrogError, OSError) as error:
            await self._end(live, str(error))
            raise

    async def _end(self, live: Live, why: str) -> None:
        if self._live.pop(live.replica_id, None) is None:
            return
        log.info("replica ended", extra={"replica": live.replica_id, "why": why})
        self._decide(state.EndBegun(live.replica_id))  # its memory is promised until it is free
        try:
            await live.sandbox.close()
        finally:
            self._forget(live.replica_id)
            self._spawn(self._parts.climber.let_go(live.replica_id), "unpin")

    async def _watch_end(self, live: Live) -> None:
        status = await live.sandbox.wait(live.pid)
        await self._end(live, f"its process ended with status {status}")

    # --- what runs beside ---

    async def _follow_weight_fs(self) -> None:
        """Passes residency on. A weight_fs that died took the mount along, and with it whoever maps files of it."""
        while True:
            try:
                async for update in self._parts.weight_fs.watch():
                    if update.full:
                        # Pins of a predecessor of ours, or of replicas that ended while weight_fs was away, go.
                        kept = self._parts.climber.owners
                        await self._parts.weight_fs.unpin("", f"{self._node}-*", kept)
                    self._residency_changed(update)
            except WoodfrogError as error:
                if self._residents:
                    log.warning("weight_fs is away", extra={"error": error.message})
            self._residency_changed(ResidencyUpdate(True, (), ()))
            for live in [live for live in self._live.values() if live.through_mount]:
                await self._end(live, "the mount that it maps its weights from is gone")
            await asyncio.sleep(_RETRY_S)

    def _residency_changed(self, update: ResidencyUpdate) -> None:
        fresh = {
            tree.manifest_digest: Resident(
                tree.manifest_digest,
                tree.size_bytes,
                tree.disk_bytes,
                tree.page_cache_bytes,
                tree.complete,
            )
            for tree in update.trees
        }
        lost = set(update.gone)
        if update.full:
            lost |= self._residents.keys() - fresh.keys()
        for manifest in (manifest for manifest, tree in fresh.items() if not tree.complete):
            self._parts.climber.forget_tree(manifest)  # it was complete, and then found damaged
        for manifest in lost:
            self._residents.pop(manifest, None)
            self._parts.climber.forget_tree(manifest)
        self._residents.update(fresh)
        self._publish(
            NodeUpdate(False, residents=tuple(fresh.values()), residents_gone=tuple(sorted(lost)))
        )

    async def _keep_pool_full(self) -> None:
        """Not while somebody waits: making a sandbox forks this process, which holds its loop up for milliseconds."""
        while True:
            self._refill.clear()
            if not self._climbing:
                try:
                    await self._parts.pool.refill()
                except (WoodfrogError, OSError) as error:
                    log.error("no sandbox can be made", extra={"error": str(error)})
            await self._refill.wait()
            await asyncio.sleep(_CALM_S)

    async def _end_the_stuck(self) -> None:
        """A replica that does not answer twice in a row is ended, so that its requests go to another one."""
        silent: set[str] = set()
        while True:
            await asyncio.sleep(_HEALTH_S)
            serving = [
                live
                for replica_id, live in self._live.items()
                if self._state.promises[replica_id].state is ReplicaState.SERVING
            ]
            answers = await asyncio.gather(*(live.answers(_HEALTH_S) for live in serving))
            now_silent = {
                live.replica_id
                for live, answered in zip(serving, answers, strict=True)
                if not answered
            }
            for live in serving:
                if live.replica_id in now_silent & silent:
                    await self._end(live, "it is stuck: it did not answer its control socket")
            silent = now_silent

    async def _end_when_broken(self) -> None:
        """The process ends and recovers by starting."""
        await self._broken.wait()
        raise AssertionError("an invariant of the node's state is broken; the log has the event")

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    # --- state and its watchers ---

    def _decide(self, event: state.Event) -> state.Command:
        """The command; a refusal is raised. The invariants hold after each event, or the process ends."""
        try:
            command = self._state.handle(event)
            self._state.check()
        except AssertionError:
            self._broken.set()
            raise
        if isinstance(command, state.Refuse):
            if command.reason == "NODE_FULL":
                raise node_full(self._facts(), command.reason, command.message)
            raise FailedPrecondition(command.reason, command.message)
        return command

    def _forget(self, replica_id: str) -> None:
        self._decide(state.ReplicaEnded(replica_id))
        self._specs.pop(replica_id, None)
        self._publish(NodeUpdate(False, facts=self._facts(), gone=(replica_id,)))

    def _replica(self, replica_id: str) -> Replica:
        promise = self._state.promises[replica_id]
        spec = self._specs[replica_id]
        live = self._live.get(replica_id)
        return Replica(
            replica_id=replica_id,
            model=promise.model,
            weights=spec.weights,
            state=promise.state,
            socket_path=str(live.socket_path) if live else "",
            slots=spec.slots,
            node=self._node,
            memory_bytes=promise.memory_bytes,
        )

    def _facts(self) -> NodeFacts:
        return NodeFacts(
            node=self._node,
            fingerprint=self._print,
            memory_bytes=self._state.memory_bytes,
            memory_promised_bytes=self._state.memory_promised_bytes,
            replica_count_max=self._state.replica_count_max,
        )

    def _full(self) -> NodeUpdate:
        return NodeUpdate(
            full=True,
            facts=self._facts(),
            replicas=tuple(self._replica(replica_id) for replica_id in self._state.promises),
            residents=tuple(self._residents.values()),
        )

    def _publish_replica(self, replica_id: str) -> None:
        if replica_id in self._state.promises:
            self._publish(
                NodeUpdate(False, facts=self._facts(), replicas=(self._replica(replica_id),))
            )

    def _publish(self, update: NodeUpdate) -> None:
        for queue in self._watchers:
            if not queue.full():  # the watcher sees that it is full and asks for everything
                queue.put_nowait(update)


def _log_failed(spec: ModelSpec, error: Exception) -> None:
    reason = error.reason if isinstance(error, WoodfrogError) else type(error).__name__
    log.error(
        "checkpoint failed",
        extra={"model": spec.name, "reason": reason, "error": str(error)},
    )
