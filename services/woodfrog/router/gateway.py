"""The one path of a request, whatever face it came by: take a slot, forward, pass the answer on as events."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from opentelemetry import trace
from opentelemetry.trace import Span, StatusCode

from woodfrog import errors, telemetry
from woodfrog.clock import Clock
from woodfrog.model.placement import ANYONE, Caller
from woodfrog.router.metrics import Metrics
from woodfrog.router.replica_client import Exchange, Head, ReplicaClient, ReplicaLost
from woodfrog.router.routes import Route
from woodfrog.router.slots import Slot, Slots
from woodfrog.router.usage_records import UsageRecord, UsageRecords
from woodfrog.rpc import propagation
from woodfrog.telemetry import names

_RETRIES_MAX = 2
_QUIESCED_PAUSE_S = 0.02  # the scheduler hears of a descent by its own stream
_RETRY_AFTER_S = 1.0
_REFUSAL_BYTES_MAX = 64 << 10


@dataclass(frozen=True, slots=True)
class Call:
    route: Route
    model: str
    body: bytes  # goes to the engine as it is
    stream: bool
    wait_s: float  # for a replica, at most
    arrived: float  # on the clock
    request_id: str  # printable ASCII
    span: Span  # opened and ended by the face
    caller: Caller = ANYONE


@dataclass(frozen=True, slots=True)
class Wake:
    """How the model woke for a request."""

    rung: str
    climb_ms: float
    replica_id: str
    fallback_reason: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """The answer to a call that streams has not begun; comes at each interval."""

    woken: bool  # a replica has the request


@dataclass(frozen=True, slots=True)
class Begun:
    """The head of the engine's response; its body follows."""

    head: Head
    wake: Wake


@dataclass(frozen=True, slots=True)
class Refused:
    """The engine's error response, whole; nothing follows."""

    head: Head
    wake: Wake
    body: bytes


Event = Waiting | Begun | Refused | bytes


class _Quiesced(Exception):
    """The replica is going to sleep and did not take the request."""


@dataclass(slots=True)
class _Progress:
    record: UsageRecord
    woken: bool = False
    waited_s: float = 0.0
    excluded: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Answer:
    slot: Slot
    span: Span
    exchange: Exchange
    first: bytes
    closed: bool = False

    @property
    def over(self) -> bool:
        """Nothing follows what was read."""
        return self.exchange.over

    async def next(self) -> bytes:
        try:
            return await self.exchange.chunk()
        except ReplicaLost as error:
            self.close(failed=str(error))
            raise errors.Unavailable(
                "REPLICA_LOST", "the replica went away in the middle of its answer; ask again"
            ) from None

    def close(self, *, failed: str = "") -> None:
        """Cancels what is unfinished. May be called again."""
        if self.closed:
            return
        self.closed = True
        if failed:
            self.span.set_status(StatusCode.ERROR, failed)
        elif self.exchange.open:
            self.span.set_attribute(names.ERROR_TYPE, "cancelled")
        self.exchange.abort()
        self.span.end()
        self.slot.end(failed=bool(failed))


class Gateway:
    def __init__(
        self,
        slots: Slots,
        client: ReplicaClient,
        metrics: Metrics,
        records: UsageRecords,
        clock: Clock,
        waiting_interval_s: float,
    ) -> None:
        """A call that streams is told every `waiting_interval_s` that it waits."""
        self._slots = slots
        self._records = records
        self._client = client
        self._metrics = metrics
        self._clock = clock
        self._waiting_interval_s = waiting_interval_s
        self._active = 0
        self._waiting = 0
        # First bytes, by replica, in the order in which they were asked for; never empty.
        self._unanswered: dict[str, dict[asyncio.Timeout, None]] = {}
        metrics.active.set_function(lambda: self._active)
        metrics.waiting.set_function(lambda: self._waiting)

    def ended(self, replica_id: str) -> None:
        """Nothing comes from this replica any more: who has no byte from it asks another, who asked first before others."""
        now = asyncio.get_running_loop().time()
        for first_byte in self._unanswered.pop(replica_id, ()):  # once: two schedulers may say so
            first_byte.reschedule(now)

    @asynccontextmanager
    async def _unless_it_ends(self, replica_id: str) -> AsyncIterator[None]:
        """Raises ReplicaLost inside when the replica has ended, which a hung one's connection does not tell."""
        first_byte = asyncio.timeout(None)
        try:
            async with first_byte:
                waiting = self._unanswered.setdefault(replica_id, {})
                waiting[first_byte] = None
                try:
                    yield
                finally:
                    waiting.pop(first_byte, None)
                    if not waiting and self._unanswered.get(replica_id) is waiting:
                        del self._unanswered[replica_id]
        except TimeoutError:
            raise ReplicaLost("it ended, or its node was lost") from None

    async def answer(self, call: Call) -> AsyncGenerator[Event, None]:
        """Closing it early cancels the engine's work. Raises woodfrog.errors classes, in the middle of a body too."""
        self._active += 1
        record = self._records.open(call.caller.tenant, call.model)
        progress = _Progress(record)
        beginning: asyncio.Task[_Answer] | None = None
        answer: _Answer | None = None
        try:
            with trace.use_span(call.span, record_exception=False, set_status_on_exception=False):
                if call.stream:
                    beginning = asyncio.create_task(self._begin(call, progress))
                else:
                    answer = await self._begin(call, progress)
            if beginning is not None:
                while not beginning.done():
                    await asyncio.wait((beginning,), timeout=self._waiting_interval_s)
                    if not beginning.done():
                        yield Waiting(progress.woken)
                answer = beginning.result()
            assert answer is not None
            head, wake = answer.exchange.head, _wake(call, answer.slot)
            if head.status >= 400:
                record.write(failed=True)
                _tell_refused(call.span, head.status)
                yield Refused(head, wake, answer.first)
                return
            yield Begun(head, wake)
            record.began(head.get(b"content-type"))
            data = answer.first
            while data:
                record.saw(data, last=answer.over)
                yield data
                data = await answer.next()
        except Exception:
            record.write(failed=True)
            raise
        finally:
            record.write()  # also when the client left
            call.span.set_attributes(record.attributes)
            self._active -= 1
            if beginning is not None:
                _finish(beginning)
            elif answer is not None:
                answer.close()

    async def _begin(self, call: Call, progress: _Progress) -> _Answer:
        """Up to the first byte of the body; so far nothing went to the client and another replica may be asked."""
        for retry in range(_RETRIES_MAX + 1):
            deadline = self._clock.now() + call.wait_s - progress.waited_s
            self._waiting += 1
            try:
                slot = await self._slots.take(call.model, progress.excluded, deadline, call.caller)
            finally:
                self._waiting -= 1
            progress.record.took_slot(slot.acquired.rung)
            progress.woken = True
            progress.waited_s += slot.waited_s
            try:
                return await self._forward(call, slot, progress, retry)
            except _Quiesced:
                self._metrics.failed.labels("quiesced").inc()
                # From our table it was only late news, and its thaw is welcome; from the scheduler it was wrong.
                if slot.acquired.placement_id:
                    progress.excluded.add(slot.replica.replica_id)
                await asyncio.sleep(_QUIESCED_PAUSE_S)
            except ReplicaLost:
                self._metrics.failed.labels("lost").inc()
                progress.excluded.add(slot.replica.replica_id)
            progress.record.gave_slot()
            progress.woken = False
        raise errors.Unavailable(
            "REPLICA_LOST",
            f"{_RETRIES_MAX + 1} replicas of model {call.model!r} went away before they answered; ask again",
            retry_after_s=_RETRY_AFTER_S,
            model=call.model,
        )

    async def _forward(self, call: Call, slot: Slot, progress: _Progress, retry: int) -> _Answer:
        """Raises _Quiesced and ReplicaLost. Whatever it raises, the slot is ended."""
        replica = slot.replica
        attributes = {names.REPLICA: replica.replica_id, names.NODE: replica.node}
        if retry:
            attributes[names.RETRIES] = str(retry)
        span = telemetry.tracer().start_span(names.ROUTER_FORWARD, attributes=attributes)
        first_span = telemetry.tracer().start_span(
            names.ROUTER_FIRST_TOKEN, trace.set_span_in_context(span)
        )
        exchange: Exchange | None = None
        try:
            if not retry:
                self._metrics.added.observe(self._clock.now() - call.arrived - progress.waited_s)
            async with self._unless_it_ends(replica.replica_id):
                exchange = await self._client.ask(replica.socket_path, _render(call, span))
                _check_serving(exchange.head)
                refused = exchange.head.status >= 400
                first = await (exchange.rest(_REFUSAL_BYTES_MAX) if refused else exchange.chunk())
        except BaseException as error:
            if exchange is not None:
                exchange.abort()
            if isinstance(error, _Quiesced | ReplicaLost):
                slot.suspect()
            slot.end(failed=isinstance(error, ReplicaLost))
            if isinstance(error, asyncio.CancelledError):
                span.set_attribute(names.ERROR_TYPE, "cancelled")
            else:
                span.set_status(StatusCode.ERROR, str(error))
            first_span.end()
            span.end()
            raise
        first_span.end()
        slot.trust()
        self._metrics.began(
            slot.acquired.rung.value, slot.waited_s, self._clock.now() - call.arrived
        )
        return _Answer(slot, span, exchange, first)


def _tell_refused(span: Span, status: int) -> None:
    """That the engine answered so."""
    span.set_attribute(names.ERROR_TYPE, str(status))
    if status >= 500:
        span.set_status(StatusCode.ERROR, f"the engine answered with status {status}")


def _finish(beginning: asyncio.Task[_Answer]) -> None:
    """Ends what a request holds, however far it came."""
    if beginning.done():
        _close(beginning)
    else:
        beginning.cancel()
        beginning.add_done_callback(_close)


def _close(beginning: asyncio.Task[_Answer]) -> None:
    if not beginning.cancelled() and beginning.exception() is None:
        beginning.result().close()


def _check_serving(head: Head) -> None:
    """Raises _Quiesced or ReplicaLost when the replica refused because of its own state: it took nothing."""
    state = head.get(b"x-woodfrog-state") if head.status == 503 else None
    if state == b"failed":
        raise ReplicaLost("the replica says that it failed")
    if state is not None:
        raise _Quiesced(f"the replica is {state.decode('latin-1')}")


def _wake(call: Call, slot: Slot) -> Wake:
    acquired = slot.acquired
    call.span.set_attributes({names.RUNG: acquired.rung.value, names.CLIMB_MS: acquired.climb_ms})
    return Wake(
        acquired.rung.value,
        acquired.climb_ms,
        acquired.replica.replica_id,
        acquired.fallback_reason,
    )


def _render(call: Call, span: Span) -> bytes:
    """No header of the client goes along: its key must never be in a process that is checkpointed."""
    head = [
        f"POST {call.route.path} HTTP/1.1",
        "host: replica",
        "content-type: application/json",
        f"content-length: {len(call.body)}",
        f"x-request-id: {call.request_id}",
        f"traceparent: {propagation.traceparent(span)}",
        "\r\n",
    ]
    return "\r\n".join(head).encode() + call.body
