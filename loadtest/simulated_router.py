"""Routers of a simulated cell: the real gateway with all it chooses by, made-up replicas, and lines to schedulers that break."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import aclosing
from typing import Protocol

from opentelemetry import trace

from loadtest.simulated_loop import CellLoop
from loadtest.simulated_node import Process, SimulatedNode
from loadtest.simulated_scheduler import SimulatedScheduler, ToRouters
from loadtest.simulated_setup import Request
from woodfrog import errors
from woodfrog.errors import status
from woodfrog.metering import Ledger
from woodfrog.model.node import ReplicaState
from woodfrog.model.placement import ANYONE, Acquired, Caller, RouterReport, TrackUpdate
from woodfrog.model.rung import Rung
from woodfrog.router.gateway import Begun, Call, Gateway
from woodfrog.router.metrics import Metrics
from woodfrog.router.replica_client import Exchange, Head, ReplicaClient, ReplicaLost
from woodfrog.router.replicas import ReplicaTable
from woodfrog.router.routes import Route
from woodfrog.router.schedulers import Schedulers
from woodfrog.router.slots import Slots
from woodfrog.router.usage_records import UsageRecords
from woodfrog.scheduler import events as on
from woodfrog.scheduler.tracks import Track, Tracks

WAIT_S = 300.0  # a request waits so long for a replica
_MARGIN_S = 0.02  # as in the scheduler's loop
#: A router tells what runs after a tenth of a second at most; what began before may be known, if no report is on its way.
KNOWN_S = 0.11


class Cell(Protocol):
    """What a router needs of the cell that it is in."""

    now: float
    loop: CellLoop
    nodes: dict[str, SimulatedNode]
    requests: dict[int, Request]

    def delay(self) -> float: ...

    def loses(self) -> bool:
        """Whether a call gets lost, there or on its way back."""

    def lost_s(self) -> float:
        """Until its caller knows."""

    def message_s(self) -> float:
        """From a router to a replica."""

    def noisy(self, seconds: float) -> float: ...

    def end(self, request: Request, outcome: str) -> None: ...


class Front:
    """What routers have of a scheduler: the calls of its loop, and its real tracks."""

    def __init__(self, cell: Cell, scheduler: SimulatedScheduler) -> None:
        self.scheduler = scheduler
        self.callers: dict[int, asyncio.Future[Acquired]] = {}  #: that wait, by ticket
        self.told: dict[str, dict[str, int]] = {}  #: by router: how much runs on which replica
        self._cell = cell
        self.tracks = Tracks()
        self._tickets = itertools.count(1)

    def say(self, said: ToRouters) -> None:
        match said:
            case on.Grant(ticket, acquired):
                caller = self.callers.get(ticket)
                if caller is not None and not caller.done():
                    caller.set_result(acquired)
                else:  # it gave up in this very moment
                    released = on.Released(acquired.placement_id)
                    self._cell.loop.call_soon(self.scheduler.handle, released)
            case on.Refuse(ticket, refusal, reason, message, retry_after_s):
                caller = self.callers.get(ticket)
                if caller is not None and not caller.done():
                    kind = getattr(errors, refusal.value)
                    caller.set_exception(kind(reason, message, retry_after_s=retry_after_s))
            case on.Announce(ready, gone, ended):
                self.tracks.announce(ready, gone, ended)

    async def acquire(
        self, model: str, excluded: frozenset[str], router: str, timeout_s: float, caller: Caller
    ) -> Acquired:
        if self.scheduler.state is None:
            raise _away()
        ticket = next(self._tickets)
        answer: asyncio.Future[Acquired] = self._cell.loop.create_future()
        self.callers[ticket] = answer
        deadline = self._cell.now + max(0.0, timeout_s - _MARGIN_S)
        try:
            asked = on.AcquireRequested(ticket, model, deadline, router, excluded, caller)
            self.scheduler.handle(asked)
            return await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                self.scheduler.handle(on.Released(answer.result().placement_id))
            self.scheduler.handle(on.AcquireCancelled(ticket))
            raise
        finally:
            del self.callers[ticket]

    def track(self, router: str) -> Track:
        """Raises Unavailable."""
        state = self.scheduler.state
        if state is None:
            raise _away()
        if (older := self.tracks.get(router)) is not None:
            self.leave(router, older)
        return self.tracks.join(router, state.ready())

    def report(self, router: str, track: Track, report: RouterReport) -> None:
        if self.tracks.get(router) is not track:
            return
        self.tracks.report(router, report)
        if report.usage:
            told = self.told.setdefault(router, {})
            told.update((each.replica_id, each.active) for each in report.usage)
            self.scheduler.handle(on.UsageReported(router, report.usage))

    def leave(self, router: str, track: Track) -> None:
        track.close()
        if self.tracks.get(router) is track:
            self.tracks.leave(router)
            self.told.pop(router, None)
            self.scheduler.handle(on.RouterLost(router))

    def hears(self, router: str, track: Track | None) -> bool:
        return track is not None and self.tracks.get(router) is track

    def die(self) -> None:
        self.scheduler.kill()
        for caller in self.callers.values():
            if not caller.done():
                caller.set_exception(_away())
        self.tracks.close()
        self.tracks = Tracks()
        self.told.clear()


class Line:
    """A router's calls and stream to one scheduler: `woodfrog.router.placements.Placements`."""

    def __init__(self, cell: Cell, router: str, front: Front) -> None:
        self._cell = cell
        self._router = router
        self._front = front
        self._track: Track | None = None
        self._told_all = False  # no report is on its way

    def cut(self) -> None:
        """The stream breaks; the scheduler notices later."""
        if self._track is not None:
            self._track.close()

    @property
    def knows(self) -> bool:
        """Whether the scheduler was told what runs since `KNOWN_S`, or longer."""
        return self._told_all and self._front.hears(self._router, self._track)

    async def acquire(
        self,
        model: str,
        excluded: Collection[str] = (),
        caller: Caller = ANYONE,
        *,
        timeout_s: float,
    ) -> Acquired:
        ends = self._cell.now + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await self._travel()
                left_s = ends - self._cell.now
                try:
                    acquired = await self._front.acquire(
                        model, frozenset(excluded), self._router, left_s, caller
                    )
                except errors.WoodfrogError:
                    await self._travel()
                    raise
                await self._travel()
                return acquired
        except TimeoutError:
            raise errors.DeadlineExceeded("RPC_DEADLINE_EXCEEDED", "it took too long") from None

    async def release(self, placement_id: str, *, replica_failed: bool = False) -> None:
        await self._travel()
        if self._front.scheduler.state is None:
            raise _away()
        self._front.scheduler.handle(on.Released(placement_id, replica_failed))
        await self._travel()

    async def track(
        self, reports: AsyncIterator[RouterReport]
    ) -> AsyncGenerator[TrackUpdate, None]:
        await self._travel()
        track = self._track = self._front.track(self._router)
        reading = asyncio.create_task(self._read(track, reports))
        try:
            async with aclosing(track.updates()) as updates:
                async for update in updates:
                    await asyncio.sleep(self._cell.delay())
                    if not self._front.hears(self._router, track):
                        break
                    yield update
        finally:
            self._track = None
            reading.cancel()
            self._cell.loop.call_later(self._cell.delay(), self._front.leave, self._router, track)
        raise _away()

    async def _read(self, track: Track, reports: AsyncIterator[RouterReport]) -> None:
        try:
            async for report in reports:
                self._told_all = False
                await asyncio.sleep(self._cell.delay())
                self._front.report(self._router, track, report)
                self._told_all = True
        finally:
            self._told_all = False

    async def _travel(self) -> None:
        """One way. Raises Unavailable when the call is lost."""
        await asyncio.sleep(self._cell.delay())
        if self._cell.loses():
            await asyncio.sleep(self._cell.lost_s())
            raise _away()


class SimulatedExchange(Exchange):
    """One request on a replica, whose answer has a first byte and an end."""

    def __init__(self, process: Process, request: Request, first_s: float, rest_s: float) -> None:
        self.head = Head(200, ())
        self.began = 0.0
        self._process = process
        self._request = request
        self._waits = [(first_s, b"first"), (rest_s, b"")]
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def open(self) -> bool:
        return self._request.number in self._process.running

    @property
    def over(self) -> bool:
        return not self._waits

    def lose(self) -> None:
        if not self._lost.done():
            self._lost.set_result(None)

    async def chunk(self) -> bytes:
        if not self._waits:
            return b""
        wait_s, data = self._waits.pop(0)
        await asyncio.wait((self._lost,), timeout=wait_s)
        if self._lost.done():
            raise ReplicaLost("it died")
        if not data:
            self.abort()
        return data

    def abort(self) -> None:
        self._waits.clear()
        self._process.running.discard(self._request.number)


class SimulatedReplicas(ReplicaClient):
    """How one router reaches replicas."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(answer_wait_s=60.0)
        self.exchanges: dict[int, SimulatedExchange] = {}  #: the last of each request
        self._cell = cell

    async def ask(self, socket_path: str, request: bytes) -> Exchange:
        cell, replica_id = self._cell, socket_path[1:]
        asked = cell.requests[int(request.rpartition(b"\r\n")[2])]
        await asyncio.sleep(cell.message_s())
        node = cell.nodes[replica_id.rpartition("-")[0]]
        process = node.processes.get(replica_id) if node.up else None
        if process is None:
            raise ReplicaLost("it is gone")
        answer_s = cell.noisy(asked.arrival.answer_s)
        exchange = SimulatedExchange(process, asked, answer_s / 4, answer_s * 3 / 4)
        exchange.began = cell.now
        state = process.replica.state
        if state is not ReplicaState.SERVING:
            exchange.head = Head(503, ((b"x-woodfrog-state", state.value.encode()),))
            return exchange
        process.running.add(asked.number)
        self.exchanges[asked.number] = exchange
        return exchange

    def oldest(self, process: Process) -> float | None:
        """When the first of this router's requests began that run there."""
        began = (
            self.exchanges[number].began for number in process.running if number in self.exchanges
        )
        return min(began, default=None)


class SimulatedRouter:
    def __init__(self, cell: Cell, name: str, fronts: Sequence[Front]) -> None:
        """The first of `fronts` is asked first."""
        self.lines: Mapping[str, Line] = {
            front.scheduler.name: Line(cell, name, front) for front in fronts
        }
        self.table = ReplicaTable()
        self.replicas = SimulatedReplicas(cell)
        self._cell = cell
        schedulers = Schedulers(
            self.table,
            self.lines,
            lambda left: self.replicas.forget(left.socket_path),
            lambda replica_id: self._gateway.ended(replica_id),
            _Clock(cell),
        )
        slots = Slots(self.table, schedulers, _Clock(cell))
        metrics = Metrics()
        records = UsageRecords(Ledger(None), metrics, _Clock(cell))
        self._gateway = Gateway(slots, self.replicas, metrics, records, _Clock(cell), 1.0)
        cell.loop.spawn(schedulers.run())

    async def serve(self, request: Request) -> None:
        number, cell = str(request.number), self._cell
        call = Call(
            Route.CHAT, request.arrival.model, number.encode(), stream=False, wait_s=WAIT_S,
            arrived=cell.now, request_id=number, span=trace.INVALID_SPAN,
        )  # fmt: skip
        outcome = "answered"
        try:
            async with aclosing(self._gateway.answer(call)) as events:
                async for event in events:
                    if isinstance(event, Begun):
                        wake = event.wake
                        request.began, request.rung = cell.now, Rung(wake.rung)
                        request.replica = wake.replica_id
        except errors.WoodfrogError as error:
            outcome = error.reason
        cell.end(request, outcome)


class _Clock:
    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    def now(self) -> float:
        return self._cell.now

    def wall(self) -> float:
        return self._cell.now


def _away() -> errors.Unavailable:
    return errors.Unavailable(status.UNREACHABLE, "the scheduler cannot be reached")
