"""The shell: hears catalog, nodes and routers, carries the state's commands out, keeps the time."""

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from opentelemetry import context as contexts
from opentelemetry import trace

from woodfrog import catalog, telemetry
from woodfrog.clients import node_agent
from woodfrog.clock import Clock
from woodfrog.coordination import Election, Term
from woodfrog.errors import Unavailable, WoodfrogError, status
from woodfrog.model.placement import (
    ANYONE,
    Acquired,
    Caller,
    ClusterView,
    PlanView,
    RouterReport,
    TrackUpdate,
    WhatIf,
)
from woodfrog.rpc import propagation
from woodfrog.scheduler import events as on
from woodfrog.scheduler import refusals
from woodfrog.scheduler.describe import describe
from woodfrog.scheduler.events import Command, Event
from woodfrog.scheduler.metrics import Metrics
from woodfrog.scheduler.nodes import NodeLinks
from woodfrog.scheduler.plans import Plans
from woodfrog.scheduler.state import SchedulerState
from woodfrog.scheduler.tracks import Track, Tracks
from woodfrog.scheduler.troubles import Troubles
from woodfrog.telemetry import names

log = logging.getLogger(__name__)
_STORY_MAX = 1000
_STORY_TOLD = 40
_TICK_S_MIN = 0.001
_MARGIN_S = 0.02  # so that our answer comes before the caller's own deadline


@dataclass(frozen=True, slots=True)
class Waits:
    climb_timeout_s: float
    wait_s_max: float  # of a request without a deadline
    node_patience_s: float


@dataclass(frozen=True, slots=True)
class _Caller:
    model: str
    answer: asyncio.Future[Acquired]
    context: contexts.Context  # of the call's span


class SchedulerLoop:
    """Lives in `group`: a broken invariant ends the group, and with it the process."""

    def __init__(
        self,
        state: SchedulerState,
        clock: Clock,
        waits: Waits,
        group: asyncio.TaskGroup,
        plans: Plans | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._state = state
        self._clock = clock
        self._waits = waits
        self._plans = plans or Plans(state, clock, {})
        self._metrics = metrics or Metrics()
        self._metrics.view = self._overview
        self._metrics.waiting = lambda: len(self._callers)
        self._metrics.leads = lambda: self.leads
        self._group = group
        self._tasks: set[asyncio.Task[Any]] = set()
        self._links = NodeLinks(self.submit, self._spawn, waits.node_patience_s)
        self._callers: dict[int, _Caller] = {}
        self._election: Election | None = None
        self._led = True  # as the state was told last
        self._token = 0  # of the term that gave the orders which are a leader's
        self._tickets = 0
        self._climbs: dict[str, asyncio.Task[None]] = {}  # by attempt
        self._spans: dict[str, trace.Span] = {}  # of the last attempt of each climb
        self._tracks = Tracks()
        self._troubles = Troubles()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._story: deque[tuple[float, Event, list[Command]]] = deque(maxlen=_STORY_MAX)

    # --- calls ---

    async def acquire(
        self,
        model: str,
        excluded: frozenset[str],
        router: str,
        timeout_s: float | None,
        caller: Caller = ANYONE,
    ) -> Acquired:
        """Cancelling it gives the wait up."""
        self._tickets += 1
        ticket = self._tickets
        wait_s = self._waits.wait_s_max
        if timeout_s is not None:
            wait_s = min(wait_s, max(0.0, timeout_s - _MARGIN_S))
        answer: asyncio.Future[Acquired] = asyncio.get_running_loop().create_future()
        self._callers[ticket] = _Caller(model, answer, contexts.get_current())
        deadline = self._clock.now() + wait_s
        try:
            self.submit(on.AcquireRequested(ticket, model, deadline, router, excluded, caller))
            return await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                self.submit(on.Released(answer.result().placement_id))
            self.submit(on.AcquireCancelled(ticket))
            raise
        finally:
            del self._callers[ticket]

    async def track(
        self, router: str, reports: AsyncIterator[RouterReport]
    ) -> AsyncGenerator[TrackUpdate, None]:
        """Ends when the router stops reporting, or tracks anew."""
        if (older := self._tracks.get(router)) is not None:
            self._leave(router, older)
        track = self._tracks.join(router, self._state.ready())
        log.info("router connected", extra={"router": router})
        reading = asyncio.create_task(self._read(router, track, reports), name="track")
        try:
            async for update in track.updates():
                yield update
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            self._leave(router, track)

    async def _read(self, router: str, track: Track, reports: AsyncIterator[RouterReport]) -> None:
        try:
            async for report in reports:
                if self._tracks.get(router) is track:
                    self._tracks.report(router, report)
                    if report.usage:
                        self.submit(on.UsageReported(router, report.usage))
        finally:
            track.close()

    def _leave(self, router: str, track: Track) -> None:
        track.close()
        if self._tracks.get(router) is track:
            self._tracks.leave(router)
            log.info("router lost", extra={"router": router})
            self.submit(on.RouterLost(router))

    def describe(self) -> ClusterView:
        return describe(self._state, self._clock.now(), self._troubles)

    def _overview(self) -> ClusterView:
        return describe(self._state, self._clock.now(), self._troubles, predict=False)

    def start(self, source: catalog.Catalog, election: Election) -> None:
        self._election = election
        self.submit(on.Ticked())  # it does not lead yet
        self._spawn(self._follow(source), "catalog")
        self._spawn(election.run(), "election")
        self._spawn(self._follow_terms(election), "terms")

    @property
    def term(self) -> Term | None:
        """While this scheduler leads; with its token, and the only way to write what is a leader's to write."""
        return self._election.term if self._election is not None else None

    @property
    def leads(self) -> bool:
        return self.term is not None

    def plan(self, every_s: float) -> None:
        """From now on."""
        self._spawn(self._keep_planning(every_s), "plan")

    async def _keep_planning(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            term = self.term
            if term is None:
                continue
            planned = await self._plans.next()
            if planned is not None and self.term is term:
                self.submit(planned)

    async def what_if(self, given: WhatIf) -> PlanView:
        """A plan for people; nothing is moved. Raises Unavailable PLAN_FAILED."""
        return await self._plans.what_if(given)

    def refuse_all(self) -> None:
        """Lets nobody wait for a scheduler that stops."""
        for caller in self._callers.values():
            if not caller.answer.done():
                error = Unavailable("SCHEDULER_STOPPING", "the scheduler stops; try again")
                caller.answer.set_exception(error)
        self._tracks.close()

    def end(self) -> None:
        """Cancels all that it started; the group waits for it."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        self._plans.close()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _follow(self, source: catalog.Catalog) -> None:
        async with aclosing(source.follow()) as changes:
            async for change in changes:
                self._catalog_changed(change)
        raise AssertionError("the catalog never just ends")

    async def _follow_terms(self, election: Election) -> None:
        while True:
            term = await election.won()
            self.submit(on.Ticked())
            await term.lost.wait()
            self.submit(on.Ticked())
            await asyncio.sleep(_TICK_S_MIN)  # until the election has noticed too

    # --- events in ---

    def submit(self, event: Event) -> None:
        """Whether this scheduler leads is looked at each time, so that no plan outlives its term."""
        if (term := self.term) is not None:
            self._token = term.token
        if self._election is not None and self._led is not (term is not None):
            self._led = term is not None
            self.submit(on.Led(self._led))
        began = self._clock.wall()
        now = self._clock.now()
        try:
            commands = self._state.handle(event, now)
        except AssertionError as error:
            log.critical("invariant broken", extra={"story": self.story(), "event": repr(event)})
            self._spawn(_fall(error), "fall")
            raise
        self._story.append((now, event, commands))
        for command in commands:
            self._carry_out(command, began)
        self._arm()

    def story(self) -> list[str]:
        """The last events and what they led to."""
        return [
            f"{when:.3f} {event!r} -> {commands!r}"
            for when, event, commands in list(self._story)[-_STORY_TOLD:]
        ]

    def _catalog_changed(self, change: catalog.CatalogEvent) -> None:
        match change:
            case catalog.CatalogSnapshot(models=models, snapshots=snapshots, nodes=nodes):
                listed = tuple(record.name for record in nodes)
                self.submit(on.CatalogListed(models, snapshots, listed))
                for record in nodes:
                    self._links.put(record.name, record.address)
                self._links.keep(set(listed))
            case catalog.ModelPut(spec):
                self.submit(on.ModelListed(spec))
            case catalog.ModelRemoved(spec):
                self._troubles.forget(spec.name)
                self.submit(on.ModelRemoved(spec.name))
            case catalog.SnapshotPut(pointer):
                self.submit(on.SnapshotListed(pointer))
            case catalog.SnapshotRemoved(pointer):
                self.submit(on.SnapshotRemoved(pointer))
            case catalog.NodePut(record):
                self.submit(on.NodeListed(record.name))
                self._links.put(record.name, record.address)
            case catalog.NodeGone(record):
                self._links.gone(record.name)

    def _arm(self) -> None:
        when = self._state.next_time()
        if when == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = when
        if when is not None:
            delay_s = max(_TICK_S_MIN, when - self._clock.now())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = self._timer_at = None
        self.submit(on.Ticked())

    # --- commands out ---

    def _carry_out(self, command: Command, began: float) -> None:
        match command:
            case on.StartClimb():
                self._spans[command.climb] = placed = self._place_span(command, began)
                task = self._spawn(
                    self._climb(command, placed, self._term_of(command)), command.attempt
                )
                self._climbs[command.attempt] = task
            case on.CancelClimb(attempt):
                task = self._climbs.pop(attempt)
                task.cancel()
                self._forget_spans()
            case on.Descend():
                self._spawn(self._descend(command, self._term_of(command)), command.replica_id)
            case on.Prefetch():
                self._spawn(self._prefetch(command, self._term_of(command)), command.attempt)
            case on.Grant():
                self._grant(command)
            case on.Refuse():
                self._refuse(command)
            case on.Announce(ready, gone, ended):
                self._tracks.announce(ready, gone, ended)

    def _term_of(self, order: on.StartClimb | on.Descend | on.Prefetch) -> int:
        """As it is when the order is given."""
        return self._token if order.led else 0

    def _refuse(self, refuse: on.Refuse) -> None:
        caller = self._callers.get(refuse.ticket)
        if caller is None or caller.answer.done():
            return
        caller.answer.set_exception(refusals.error(refuse))
        self._metrics.refusals.labels(refuse.reason).inc()
        view = self._state.view
        serves = any(map(view.offered, view.replicas_of(caller.model)))  # only too few of it
        # A climb tells how it ended itself; who waits for it less long than it takes is no trouble of the model's.
        if caller.model in view.models and not (serves or self._state.rises(caller.model)):
            self._troubles.note(caller.model, refuse.message, self._clock.now())

    def _grant(self, grant: on.Grant) -> None:
        acquired = grant.acquired
        span = self._spans.get(grant.climb) if grant.climb is not None else None
        caller = self._callers.get(grant.ticket)
        if span is not None:
            acquired = replace(acquired, climb_traceparent=propagation.traceparent(span))
            if caller is not None:  # it shared a climb that another began
                telemetry.keep(trace.get_current_span(caller.context))
        if caller is not None and not caller.answer.done():
            caller.answer.set_result(acquired)
        else:  # it gave up in this very moment, and its cancellation is still to be told
            released = on.Released(acquired.placement_id)
            asyncio.get_running_loop().call_soon(self.submit, released)

    def _place_span(self, order: on.StartClimb, began: float) -> trace.Span:
        """The decision, in the trace of the request that caused it; the climb is its child."""
        caller = self._callers.get(order.ticket)
        before = self._spans.get(order.climb)
        parent = contexts.Context()
        if caller is not None:
            parent = caller.context
        elif before is not None:
            parent = trace.set_span_in_context(before, parent)
        span = telemetry.tracer().start_span(
            names.SCHEDULER_PLACE,
            parent,
            start_time=int(began * 1e9),
            attributes={
                names.MODEL: order.spec.name,
                names.NODE: order.node,
                names.RUNG: order.rung.value,
                names.PREDICTED_MS: order.predicted_s * 1000,
                names.ATTEMPT: order.attempt,
            },
        )
        telemetry.keep(span)  # a climb is in the traces whatever is sampled
        if order.seen and span.is_recording():
            span.set_attribute(names.SEEN, json.dumps([each._asdict() for each in order.seen]))
        span.end()
        return span

    async def _climb(self, order: on.StartClimb, span: trace.Span, term: int) -> None:
        began = self._clock.now()
        with trace.use_span(span, end_on_exit=False):
            event = await self._climbed(order, term)
        took_s = self._clock.now() - began
        extra = {
            "model": order.spec.name,
            "node": order.node,
            "attempt": order.attempt,
            "seconds": round(took_s, 4),
            "predicted_s": round(order.predicted_s, 4),
        }
        with trace.use_span(span, end_on_exit=False):  # logs name its trace
            self._metrics.ended(order, event, took_s)
            self._told(order, event, extra)
        if self._climbs.pop(order.attempt, None) is not None:
            self.submit(event)
        self._forget_spans()

    def _told(
        self,
        order: on.StartClimb,
        event: on.ClimbFinished | on.ClimbRefused | on.ClimbFailed,
        extra: dict[str, Any],
    ) -> None:
        if isinstance(event, on.ClimbFinished):
            extra["rung"] = event.climbed.from_rung.value
            extra["replica"] = event.climbed.replica.replica_id
            log.info("climb finished", extra=extra)
            self._troubles.forget(order.spec.name)
        else:
            failed = f"a climb failed on node {order.node!r}: {event.message}"
            self._troubles.note(order.spec.name, failed, self._clock.now())
            log.warning("climb failed", extra=extra | {"error": event.message})

    def _forget_spans(self) -> None:
        for climb in [climb for climb in self._spans if not self._state.climbing(climb)]:
            del self._spans[climb]

    async def _climbed(
        self, order: on.StartClimb, term: int
    ) -> on.ClimbFinished | on.ClimbRefused | on.ClimbFailed:
        try:
            client = self._client(order.node)
            climbed = await client.climb(
                order.spec,
                order.snapshot,
                order.replica_id,
                request_id=order.attempt,
                timeout_s=self._waits.climb_timeout_s,
                yields=order.yields,
                term=term,
            )
        except WoodfrogError as error:
            node = self._state.view.nodes.get(order.node)
            facts = node_agent.refused(error, node.facts) if node is not None else None
            if facts is not None:
                # Perhaps not any more: its stream tells.
                if error.reason in ("NODE_DRAINING", "NODE_OF_OTHERS"):
                    self._links.doubt(order.node)
                return on.ClimbRefused(order.attempt, facts, error.message)
            if error.reason == status.UNREACHABLE:
                self._links.doubt(order.node)
            return on.ClimbFailed(order.attempt, error.reason, error.message)
        return on.ClimbFinished(order.attempt, climbed)

    async def _descend(self, order: on.Descend, term: int) -> None:
        try:
            rung = await self._client(order.node).descend(order.replica_id, order.rung, term)
        except WoodfrogError as error:
            if error.reason != "REPLICA_BUSY":
                log.warning(
                    "replica not lowered",
                    extra={"replica": order.replica_id, "error": error.message},
                )
            self.submit(on.DescendFailed(order.replica_id, error.reason, error.message))
            return
        self._metrics.descents.labels(rung.value).inc()
        log.info("replica lowered", extra={"replica": order.replica_id, "rung": rung.value})
        self.submit(on.DescendFinished(order.replica_id, rung))

    async def _prefetch(self, order: on.Prefetch, term: int) -> None:
        extra = {"model": order.spec.name, "node": order.node}
        try:
            fetched_bytes = await self._client(order.node).prefetch(
                order.spec, order.snapshot, term
            )
        except WoodfrogError as error:
            log.warning("model not prefetched", extra=extra | {"error": error.message})
            self.submit(on.PrefetchFailed(order.attempt, error.reason, error.message))
            return
        log.info("model prefetched", extra=extra | {"fetched_bytes": fetched_bytes})
        self.submit(on.PrefetchFinished(order.attempt))

    def _client(self, node: str) -> node_agent.NodeAgentClient:
        client = self._links.client(node)
        if client is None:
            raise Unavailable("NODE_LOST", f"node {node!r} is not connected", node=node)
        return client


async def _fall(error: AssertionError) -> NoReturn:
    raise error
