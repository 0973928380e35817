"""The agent's shell: carries out what `state.py` decides for the replicas of this node."""

import asyncio
import itertools
import logging
import secrets
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from opentelemetry import trace

from woodfrog import telemetry
from woodfrog.clients.node_agent import REFUSED
from woodfrog.clients.weight_fs import ResidencyUpdate, WeightFsClient
from woodfrog.errors import (
    DataLoss,
    FailedPrecondition,
    ResourceExhausted,
    Unavailable,
    WoodfrogError,
)
from woodfrog.model.node import Climbed, NodeUpdate, ReplicaState
from woodfrog.model.rung import Rung
from woodfrog.model.snapshot import Fingerprint, SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.node_agent import fingerprint, state
from woodfrog.node_agent.board import Board
from woodfrog.node_agent.checkpoint import Checkpointer, Dumped, Room
from woodfrog.node_agent.climb import Climber
from woodfrog.node_agent.gpu_state import Bring, need_of
from woodfrog.node_agent.gpus import Gpus
from woodfrog.node_agent.live import Live
from woodfrog.node_agent.metrics import Metrics
from woodfrog.node_agent.sandbox import SandboxPool
from woodfrog.node_agent.stages import Stages
from woodfrog.telemetry import names

log = logging.getLogger(__name__)
_RETRY_S = 0.3
_CALM_S = 0.3  # after a climb, before sandboxes are made again
_HEALTH_S = 5.0  # between two looks at the replicas, and how long each may take to answer
_CLIMBS_KEPT_MAX = 1024
_ROOM_TRIES = 3
_AWAKE = frozenset((ReplicaState.SERVING, ReplicaState.HOT))  # their processes run
#: The scheduler decides again.
_REFUSALS = frozenset((*REFUSED, "REPLICA_GONE", "REPLICA_BUSY"))
# Once they may have another cause, e.g. a file system that went away. Twice in a row the snapshot is given up.
_BLAMES_SNAPSHOT = frozenset(("CRIU_RESTORE_FAILED", "REPLICA_UNREACHABLE", "REPLICA_SILENT"))


@dataclass(frozen=True, slots=True)
class Parts:
    """What the loop drives."""

    climber: Climber
    checkpointer: Checkpointer
    weight_fs: WeightFsClient
    pool: SandboxPool
    gpus: Gpus
    metrics: Metrics


class NodeLoop:
    def __init__(self, board: Board, parts: Parts) -> None:
        self._board = board
        self._parts = parts
        self._failures: Counter[str] = Counter()  # restores in a row, by manifest
        self._climbs: dict[str, asyncio.Task[Climbed]] = {}  # by request id, so that a retry joins
        self._background: set[asyncio.Task[None]] = set()
        self._run = secrets.token_hex(3)  # no replica of an earlier run has the same name
        self._numbers = itertools.count(1)
        self._climbing = 0
        self._refill = asyncio.Event()

    async def climb(self, request_id: str, order: state.Order) -> Climbed:
        """Goes on when its caller gives up: the next one finds the replica."""
        if request_id not in self._climbs:
            task = asyncio.create_task(self._climb(order), name="climb")
            self._climbs[request_id] = task
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            while len(self._climbs) > _CLIMBS_KEPT_MAX:
                oldest = next(iter(self._climbs))
                self._climbs.pop(oldest)
        return await asyncio.shield(self._climbs[request_id])

    async def descend(self, replica_id: str, rung: Rung) -> Rung:
        """Where it is then. Goes on when its caller gives up. Raises FailedPrecondition REPLICA_BUSY."""
        rested = self._board.rests(replica_id)
        command = self._board.decide(state.DescendRequested(replica_id, rung))
        match command:
            case state.Park(hot=hot):
                live = self._board.live[replica_id]
                await asyncio.shield(self._spawn(self._park(live, hot, rested), "park"))
                return Rung.HOT if hot else Rung.PARKED
            case state.Freeze():
                live = self._board.live[replica_id]
                await asyncio.shield(self._spawn(self._freeze(live, rested), "freeze"))
        return rung

    def watch(self) -> AsyncIterator[NodeUpdate]:
        """Everything about the node, then each change."""
        return self._board.watch()

    async def run(self) -> None:
        """Until cancelled; then every replica ends."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_weight_fs(), name="weight_fs")
                group.create_task(self._keep_pool_full(), name="pool")
                group.create_task(self._end_the_stuck(), name="health")
                group.create_task(self._parts.checkpointer.sweep(), name="sweep")
                group.create_task(self._end_when_broken(), name="broken")
                for uuid in self._parts.gpus.uuids:
                    group.create_task(self._follow_vault(uuid), name="vault")
        finally:
            for task in [*self._climbs.values(), *self._background]:
                task.cancel()
            await asyncio.gather(*self._climbs.values(), *self._background, return_exceptions=True)
            await self._parts.climber.close()
            await asyncio.gather(*(live.sandbox.close() for live in self._board.live.values()))
            await self._parts.pool.close()

    # --- climbs ---

    async def _climb(self, order: state.Order) -> Climbed:
        stages = Stages()
        self._climbing += 1
        with telemetry.tracer().start_as_current_span(names.CLIMB) as span:
            span.set_attribute(names.MODEL, order.spec.name)
            try:
                if order.replica_id:
                    climbed = await self._thaw(order, stages)
                else:
                    climbed = await self._start(order, stages, span)
                self._parts.metrics.finished(climbed, stages.took_s)
                extra = {"replica": climbed.replica.replica_id, "rung": climbed.from_rung.value}
                log.info("replica serves", extra=extra | {"model": order.spec.name})
                return climbed
            except WoodfrogError as error:
                self._parts.metrics.ended(error.reason, refused=error.reason in _REFUSALS)
                if error.reason in _REFUSALS:
                    raise
                raise Unavailable("CLIMB_FAILED", error.message, cause=error.reason) from error
            finally:
                self._climbing -= 1
                self._refill.set()

    async def _thaw(self, order: state.Order, stages: Stages) -> Climbed:
        replica_id = order.replica_id
        rung = self._board.rung_of(replica_id)
        event = state.ThawRequested(replica_id, order.yields)
        command = await self._decide_with_room(event, stages)
        live = self._board.live[replica_id]
        if isinstance(command, state.Thaw):
            try:
                if command.stopped:
                    await live.sandbox.signal_all(signal.SIGCONT)
                await self._thaw_live(live, command, stages)
                self._check_alive(live)
            except BaseException:
                await self._end(live, "it could not be thawed")
                self._give_up(command.bring)
                raise
            self._board.decide(state.ClimbFinished(replica_id))
            self._board.publish_replica(replica_id)
        return Climbed(self._board.replica(replica_id), rung, tuple(stages.done), "")

    async def _thaw_live(self, live: Live, command: state.Thaw, stages: Stages) -> None:
        bring = command.bring
        folder = await self._parts.climber.weights_of(live) if bring else Path()
        async with self._parts.gpus.bringing(bring, folder) as bringing:
            with stages.stage(names.THAW_WEIGHTS):
                fd = None
                if bring is not None and bringing is not None:
                    await bringing.room
                    if command.stopped:  # a hot one has its weights
                        fd = await self._parts.gpus.hand_over(live, bringing, bring, folder)
            with stages.stage(names.THAW):
                await live.thaw(fd)

    def _check_alive(self, live: Live) -> None:
        """After a wait: it is still there, and its weights still belong to the vault that gave them."""
        known = self._board.live.get(live.replica_id) is live
        if not known or (live.gpu and not self._parts.gpus.current(live.gpu, live.vault)):
            raise Unavailable("REPLICA_LOST", f"replica {live.replica_id} ended meanwhile")

    async def _decide_with_room(
        self, event: state.StartRequested | state.ThawRequested, stages: Stages
    ) -> state.Command:
        """Lowers replicas that rest, where there is room only then. Raises ResourceExhausted NODE_FULL."""
        for _ in range(_ROOM_TRIES):
            command = self._board.decide(event)
            if not isinstance(command, state.Lower):
                if isinstance(command, state.Start | state.Thaw) and command.bring:
                    self._parts.gpus.begin(command.bring)
                return command
            for replica_id, rung in command.replicas:
                try:
                    with stages.stage(names.ROOM):
                        await self.descend(replica_id, rung)
                except WoodfrogError as error:  # it is busy, or gone; there may be another way
                    log.info("not lowered", extra={"replica": replica_id, "why": error.message})
        raise self._board.full("room on the GPU did not come")

    def _give_up(self, bring: Bring | None) -> None:
        """After a climb failed: the weights may not be where they were promised to be."""
        if bring is not None and not self._parts.gpus.holds(bring):
            self._board.decide(state.WeightsLost(bring.gpu, bring.weights))
            if bring.weights not in self._board.weights_on(bring.gpu):
                lost = (bring.weights,)  # the vault may be half way through them, or done after all
                self._parts.gpus.begin(Bring(bring.gpu, "", False, lost, lost))

    async def _start(self, order: state.Order, stages: Stages, span: trace.Span) -> Climbed:
        spec, pointer = order.spec, order.pointer
        replica_id = f"{self._board.node}-{self._run}-{next(self._numbers)}"
        own_print = fingerprint.of_snapshot(self._board.node_print, spec)
        mismatch = pointer.fingerprint.mismatch(own_print) if pointer else None
        need = need_of(spec, pointer.gpu if pointer and not mismatch else "")
        command = await self._decide_with_room(
            state.StartRequested(
                replica_id,
                spec.name,
                spec.memory_bytes,
                need,
                order.yields,
                self._board.admits(spec),
            ),
            stages,
        )
        assert isinstance(command, state.Start)
        bring = command.bring
        self._board.specs[replica_id] = spec
        self._board.publish_replica(replica_id)
        dumped: Dumped | None = None
        live: Live | None = None
        try:
            if pointer is None or mismatch:
                rung, reason, damaged = Rung.ABSENT, mismatch or "", True
            else:
                live, rung, reason, damaged = await self._restore(
                    replica_id, spec, pointer, stages, bring
                )
            if live is None:
                if bring is not None and bring.own:  # one that starts here shares them
                    bring = self._come_home(replica_id)
                live = await self._parts.climber.cold_start(replica_id, spec, stages, bring)
                if spec.snapshot == "eager" and (pointer is None or damaged):
                    dumped = await self._dump(live, stages)
            self._board.live[replica_id] = live
            self._check_alive(live)
        except BaseException:
            self._board.live.pop(replica_id, None)
            if live is not None:
                await self._parts.gpus.end(live)
            if dumped is not None:
                await asyncio.to_thread(shutil.rmtree, dumped.folder, True)
            self._board.forget(replica_id)
            self._give_up(bring)
            self._spawn(self._parts.climber.let_go(replica_id), "unpin")
            raise
        self._board.decide(state.ClimbFinished(replica_id))
        self._spawn(self._watch_end(live), "ended")
        if dumped:
            self._spawn(self._finish(dumped, own_print), "checkpoint")
        span.set_attribute(names.RUNG, rung.value)
        if reason:
            span.set_attribute(names.FALLBACK, reason)
        self._board.publish_replica(replica_id)
        return Climbed(self._board.replica(replica_id), rung, tuple(stages.done), reason)

    async def _restore(
        self,
        replica_id: str,
        spec: ModelSpec,
        pointer: SnapshotPointer,
        stages: Stages,
        bring: Bring | None,
    ) -> tuple[Live | None, Rung, str, bool]:
        """The replica, its rung, why the snapshot was passed over, and whether a new snapshot is wanted."""
        try:
            live, rung = await self._parts.climber.restore(replica_id, spec, pointer, stages, bring)
        except (WoodfrogError, OSError) as error:
            known = error if isinstance(error, WoodfrogError) else None
            reason = known.reason if known else type(error).__name__
            extra = {"model": spec.name, "reason": reason, "error": str(error)}
            log.warning("snapshot passed over", extra=extra)
            self._parts.metrics.fallbacks.labels(reason).inc()
            if reason == "CANARY_MISMATCH" and bring and not self._board.shared(bring, replica_id):
                # Perhaps it is they; the cold start reads them again.
                await self._parts.gpus.forget(bring.gpu, bring.weights)
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

    def _come_home(self, replica_id: str) -> Bring | None:
        command = self._board.decide(state.ColdRequested(replica_id))
        assert isinstance(command, state.Start)
        if command.bring is not None:
            self._parts.gpus.begin(command.bring)
        return command.bring

    async def _dump(self, live: Live, stages: Stages) -> Dumped | None:
        """A checkpoint that fails costs the next wake, not this request. Raises when the replica was lost over it."""
        try:
            return await self._parts.checkpointer.dump(live, stages)
        except (WoodfrogError, OSError) as error:
            self._checkpoint_failed(live.spec, error)
        if (await live.control("describe")).get("state") != "serving":
            raise Unavailable(
                "REPLICA_LOST", f"{live.spec.name} did not go on after its checkpoint failed"
            )
        return None

    async def _finish(self, dumped: Dumped, own_print: Fingerprint) -> None:
        with telemetry.tracer().start_as_current_span(names.CHECKPOINT):
            try:
                pointer = await self._parts.checkpointer.finish(
                    dumped, own_print, partial(self._proof_room, dumped)
                )
            except (WoodfrogError, OSError) as error:
                self._checkpoint_failed(dumped.spec, error)
                return
        self._parts.metrics.checkpoints.labels("finished").inc()
        extra = {"model": pointer.model, "manifest": pointer.manifest}
        log.info("snapshot made", extra=extra | {"size_bytes": pointer.size_bytes})

    def _checkpoint_failed(self, spec: ModelSpec, error: Exception) -> None:
        self._parts.metrics.checkpoints.labels("failed").inc()
        reason = error.reason if isinstance(error, WoodfrogError) else type(error).__name__
        extra = {"model": spec.name, "reason": reason, "error": str(error)}
        log.error("checkpoint failed", extra=extra)

    @contextmanager
    def _proof_room(self, dumped: Dumped) -> Iterator[Room]:
        need = need_of(dumped.spec, dumped.gpu)
        if need is None:
            yield Room(True)
            return
        proof = f"{dumped.folder.name}-proof"
        command = self._board.decide(state.ProofRequested(proof, need))
        bring = command.bring if isinstance(command, state.Start) else None
        if bring is not None:
            self._parts.gpus.begin(bring)
        try:
            yield Room(bring is not None, bring)
        finally:
            self._board.decide(state.ProofEnded(proof))
            self._give_up(bring)

    # --- descents and ends ---

    async def _park(self, live: Live, hot: bool, rested: bool) -> None:
        await self._leave_serving(live, rested)
        try:
            await live.park(keep_weights=hot)
            if not hot:  # a hot one sleeps by itself, and wakes sooner
                await live.sandbox.signal_all(signal.SIGSTOP)
            self._check_alive(live)
        except (WoodfrogError, OSError) as error:
            await self._end(live, f"it could not be parked: {error}")
            raise
        resting = ReplicaState.HOT if hot else ReplicaState.PARKED
        self._board.decide(state.DescendFinished(live.replica_id, resting))
        log.info("replica rests", extra={"replica": live.replica_id, "state": resting.value})
        self._board.publish_replica(live.replica_id)

    async def _freeze(self, live: Live, rested: bool) -> None:
        await self._leave_serving(live, rested)
        await self._end(live, "it was frozen")

    async def _leave_serving(self, live: Live, rested: bool) -> None:
        """Stops admission. Raises FailedPrecondition REPLICA_BUSY, with the replica serving on, when requests run."""
        self._board.publish_replica(live.replica_id)
        try:
            await live.sandbox.signal_all(signal.SIGCONT)  # it may be parked
            if (await live.control("describe")).get("state") != "parked":
                await live.quiesce()
        except ResourceExhausted as error:
            if rested:  # then it cannot serve, whatever it says
                await self._end(live, "it rested and says that it is busy")
                raise Unavailable("REPLICA_LOST", error.message) from error
            self._board.decide(state.DescendFinished(live.replica_id, ReplicaState.SERVING))
            self._board.publish_replica(live.replica_id)
            raise FailedPrecondition(
                "REPLICA_BUSY", f"replica {live.replica_id} has requests; it serves on"
            ) from None
        except (WoodfrogError, OSError) as error:
            await self._end(live, str(error))
            raise

    async def _end(self, live: Live, why: str) -> None:
        if self._board.live.pop(live.replica_id, None) is None:
            return
        log.info("replica ended", extra={"replica": live.replica_id, "why": why})
        self._board.decide(
            state.EndBegun(live.replica_id)
        )  # its memory is promised until it is free
        try:
            await self._parts.gpus.end(live)
        finally:
            self._board.forget(live.replica_id)
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
                        await self._parts.weight_fs.unpin("", f"{self._board.node}-*", kept)
                    self._residency_changed(update)
            except WoodfrogError as error:
                if not self._board.empty:
                    log.warning("weight_fs is away", extra={"error": error.message})
            self._residency_changed(ResidencyUpdate(True, (), ()))
            for live in [live for live in self._board.live.values() if live.through_mount]:
                await self._end(live, "the mount that it maps its weights from is gone")
            await asyncio.sleep(_RETRY_S)

    def _residency_changed(self, update: ResidencyUpdate) -> None:
        for manifest in self._board.residency_changed(update):
            self._parts.climber.forget_tree(manifest)

    async def _follow_vault(self, uuid: str) -> None:
        """Replicas whose vault died end, and are restored when they are wanted; the vault starts anew."""
        while True:
            await self._parts.gpus.died(uuid)
            log.error("vault died", extra={"gpu": uuid})
            self._board.decide(state.VaultDied(uuid))
            theirs = [live for live in self._board.live.values() if live.gpu == uuid]
            await asyncio.gather(
                *(self._end(live, "the vault that owns its weights died") for live in theirs)
            )
            self._board.decide(state.VaultDied(uuid))  # nobody uses them any more
            await self._parts.gpus.restart(uuid)

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
                live for live in self._board.live.values() if self._board.is_in(live, _AWAKE)
            ]
            answers = await asyncio.gather(*(live.answers(_HEALTH_S) for live in serving))
            now_silent = {
                live.replica_id
                for live, answered in zip(serving, answers, strict=True)
                if not answered
            }
            for live in serving:
                twice = live.replica_id in now_silent & silent
                if twice and self._board.is_in(live, _AWAKE):  # it may be parked by now
                    await self._end(live, "it is stuck: it did not answer its control socket")
            silent = now_silent

    async def _end_when_broken(self) -> None:
        """The process ends and recovers by starting."""
        await self._board.broken.wait()
        raise AssertionError("an invariant of the node's state is broken; the log has the event")

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task
