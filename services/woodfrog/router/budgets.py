"""What tenants have used of their budgets this calendar month, in UTC."""

import logging
from collections import Counter

from woodfrog.clock import Clock
from woodfrog.errors import ResourceExhausted, Unavailable
from woodfrog.metering import GIB_H, Paged, month_of
from woodfrog.model.tenant import Tenant
from woodfrog.router.held import Held

log = logging.getLogger(__name__)
_RETRY_S = 1.0  # a read of the month holds the loop up
_AGAIN_S = 60.0  # so does one because of doubts, which a scheduler that comes and goes may bring again and again


class Budgets:
    """Tokens by the ledgers of this router and of those beside it, so that a restart forgets none: the month is read again.
    While one cannot be read, nobody is refused for them. Between reads others tell of theirs, but for what they took while
    no scheduler could be reached. What models held by what nodes last told.
    """

    def __init__(self, ledger: Paged, held: Held, clock: Clock) -> None:
        self._ledger = ledger
        self._held = held
        self._clock = clock
        self._month: range | None = None
        self._doubted = False
        self._read_at = 0.0
        self._unread_until = 0.0
        self._tokens: Counter[str] = Counter()

    def check(self, tenant: Tenant) -> None:
        """Raises ResourceExhausted INSUFFICIENT_QUOTA, which time mends only with the month."""
        if tenant.tokens_per_month is not None:
            self._turn()
            _check(tenant, self._tokens[tenant.name], tenant.tokens_per_month, "tokens")
        if tenant.budgets_held:
            held = self._held.of(tenant.name)
            _check(tenant, held.gpu_s, tenant.gpu_seconds_per_month, "GPU seconds")
            gib_h, most = held.host_byte_s / GIB_H, tenant.host_gib_hours_per_month
            _check(tenant, gib_h, most, "GiB hours of memory")

    def charge(self, tenant: str, tokens: int) -> None:
        """The ledger has them already."""
        if not self._turn():
            self._tokens[tenant] += tokens

    def doubt(self) -> None:
        """Others may have taken what they did not tell: the month is read again, once a minute at most."""
        self._doubted = True

    def _turn(self) -> bool:
        """Whether another month began, or the first, or this one is doubted: then all that the ledgers have is counted."""
        month, now = month_of(self._clock.wall()), self._clock.now()
        if month == self._month and not (self._doubted and now >= self._read_at + _AGAIN_S):
            return False
        if now < self._unread_until:
            return True
        known = self._tokens if month == self._month else Counter[str]()
        self._month, self._doubted, self._tokens, self._read_at = month, False, Counter(), now
        try:
            # Not those after it: a clock that was ahead for a while has left some.
            for row in self._ledger.rows(month.start, month.stop):
                self._tokens[row.tenant] += row.usage.prompt_tokens + row.usage.completion_tokens
            self._tokens |= known  # with what routers of other machines told
        except Unavailable as error:
            self._month, self._tokens = None, Counter()
            self._unread_until = now + _RETRY_S
            log.error("budgets are not held", extra={"error": error.message})
        return True


def _check(tenant: Tenant, used: float, budget: int | None, what: str) -> None:
    if budget is not None and used >= budget:
        raise ResourceExhausted(
            "INSUFFICIENT_QUOTA",
            f"tenant {tenant.name!r} has used its {budget} {what} of this month; wait for the next, or have the budget"
            " raised",
        )
