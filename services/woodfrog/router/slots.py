"""A slot on a ready replica for each request: from the local table at once, else from a scheduler."""

import asyncio
import logging
from collections import Counter
from collections.abc import Collection

from opentelemetry import trace

from woodfrog import errors, telemetry
from woodfrog.clock import Clock
from woodfrog.model.placement import ANYONE, Acquired, Caller, ReadyReplica
from woodfrog.model.rung import Rung
from woodfrog.router.replicas import ReplicaTable
from woodfrog.router.scheduler_link import SchedulerLink
from woodfrog.router.schedulers import Schedulers
from woodfrog.rpc import propagation
from woodfrog.telemetry import names

log = logging.getLogger(__name__)
_BACKOFF_FIRST_S, _BACKOFF_MAX_S = 0.05, 1.0
_RETRY_AFTER_S = 1.0  # where nobody predicted the time
_CATALOG_LAG_S = 1.0  # the scheduler may hear of a new model later than we did


class Slot:
    """End it once, in whatever way the request ended."""

    def __init__(
        self, slots: "Slots", acquired: Acquired, granted_by: SchedulerLink | None, waited_s: float
    ) -> None:
        """`granted_by` nobody: it is of the table."""
        self._slots = slots
        self._granted_by = granted_by
        self._span = trace.get_current_span()
        self.acquired = acquired
        self.replica = acquired.replica
        self.waited_s = waited_s

    def trust(self) -> None:
        """The replica answered."""
        self._slots.table.trust(self.replica.replica_id)

    def suspect(self) -> None:
        """The replica did not take the request: it is asked again only when a scheduler offers it."""
        self._slots.table.suspect(self.replica.replica_id)

    def end(self, *, failed: bool = False) -> None:
        self._slots.ended(self.replica)
        if self._granted_by is not None:
            placement_id = self.acquired.placement_id
            self._granted_by.release(placement_id, self._span, replica_failed=failed)


class Slots:
    def __init__(self, table: ReplicaTable, schedulers: Schedulers, clock: Clock) -> None:
        self.table = table
        self._schedulers = schedulers
        self._clock = clock
        self._waiting: Counter[str] = Counter()  # tenants' requests at a scheduler, by model

    async def take(
        self, model: str, excluded: Collection[str], deadline: float, caller: Caller = ANYONE
    ) -> Slot:
        """Waits for a climb until `deadline` (on the clock). Raises woodfrog.errors classes.

        A tenant's request does not pass by others that wait for their turn.
        """
        queues = caller.tenant != "" and self._waiting[model] > 0
        replica = None if queues else self.table.pick(model, excluded)
        if replica is not None:
            return self._start(_serving(replica), None, 0.0)
        began = self._clock.now()
        attributes = {names.MODEL: model}
        with telemetry.tracer().start_as_current_span(
            names.ROUTER_ACQUIRE, attributes=attributes
        ) as span:
            acquired, granted_by = await self._in_turn(model, excluded, deadline, caller)
            if acquired.climb_traceparent:
                telemetry.keep(span)
            span.set_attributes(
                {
                    names.REPLICA: acquired.replica.replica_id,
                    names.NODE: acquired.replica.node,
                    names.RUNG: acquired.rung.value,
                    names.CLIMB_MS: acquired.climb_ms,
                    names.FALLBACK: acquired.fallback_reason,
                }
            )
            _link(span, acquired.climb_traceparent)
            return self._start(acquired, granted_by, self._clock.now() - began)

    async def _in_turn(
        self, model: str, excluded: Collection[str], deadline: float, caller: Caller
    ) -> tuple[Acquired, SchedulerLink | None]:
        if not caller.tenant:
            return await self._acquire(model, excluded, deadline, caller)
        self._waiting[model] += 1
        try:
            return await self._acquire(model, excluded, deadline, caller)
        finally:
            self._waiting[model] -= 1
            if not self._waiting[model]:
                del self._waiting[model]

    def ended(self, replica: ReadyReplica) -> None:
        self.table.end(replica.replica_id)
        self._schedulers.touch()

    def _start(self, acquired: Acquired, granted_by: SchedulerLink | None, waited_s: float) -> Slot:
        self.table.start(acquired.replica.replica_id)
        self._schedulers.touch()
        return Slot(self, acquired, granted_by, waited_s)

    async def _acquire(
        self, model: str, excluded: Collection[str], deadline: float, caller: Caller
    ) -> tuple[Acquired, SchedulerLink | None]:
        """Asks again while no scheduler can be reached; a replica that gets ready meanwhile will do."""
        began = self._clock.now()
        backoff = _BACKOFF_FIRST_S
        while True:
            left_s = deadline - self._clock.now()
            try:
                return await self._schedulers.acquire(
                    model, excluded, caller, timeout_s=max(left_s, 0.001)
                )
            except errors.WoodfrogError as error:
                now = self._clock.now()
                end = final(error, model, waited_s=now - began, left_s=deadline - now - backoff)
                if end is not None:
                    raise end from None
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, _BACKOFF_MAX_S)
            replica = self.table.pick(model, excluded)
            if replica is not None:
                return _serving(replica), None


def final(
    error: errors.WoodfrogError, model: str, *, waited_s: float, left_s: float
) -> errors.WoodfrogError | None:
    """What a failed Acquire means for the request; None when it is worth to ask again. Pure."""
    lost = error.reason.startswith(
        "RPC_"
    )  # it never reached the scheduler, or the answer never came
    match error:
        case errors.NotFound() if waited_s < _CATALOG_LAG_S and left_s > 0:
            return None
        case errors.Unavailable() if error.reason != "CLIMB_FAILED" and left_s > 0:
            return None
        case errors.Unavailable() if lost:
            return errors.Unavailable(
                "SCHEDULER_LOST",
                f"no replica of model {model!r} is ready and no scheduler can be reached: {error.message}",
                retry_after_s=_RETRY_AFTER_S,
                model=model,
            )
        case errors.DeadlineExceeded():
            still = f"model {model!r} is still waking after {waited_s:.0f} s; ask again soon"
            return errors.Unavailable(
                "MODEL_WAKING",
                still if lost else error.message,
                retry_after_s=error.retry_after_s or _RETRY_AFTER_S,
                model=model,
            )
        case errors.ResourceExhausted():
            error.retry_after_s = error.retry_after_s or _RETRY_AFTER_S
    return error


def _serving(replica: ReadyReplica) -> Acquired:
    return Acquired("", replica, Rung.SERVING)


def _link(span: trace.Span, traceparent: str) -> None:
    """To the climb's span, when the climb belongs to another request's trace."""
    for link in propagation.link(traceparent):
        if link.context.trace_id != span.get_span_context().trace_id:
            span.add_link(link.context)
