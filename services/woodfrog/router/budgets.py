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


class Budgets:
    """Tokens by the ledgers of this router and of those beside it, so that a restart forgets none: the month is read again.
    While one cannot be read, nobody is refused for them. What models held by what nodes last told.
    """

    def __init__(self, ledger: Paged, held: Held, clock: Clock) -> None:
        self._ledger = ledger
        self._held = held
        self._clock = clock
        self._month: range | None = None
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

    def _turn(self) -> bool:
        """Whether another month began, or the first: then all that the ledgers have of it is counted."""
        month = month_of(self._clock.wall())
        if month == self._month:
            return False
        if self._clock.now() < self._unread_until:
            return True
        self._month, self._tokens = month, Counter()
        try:
            # Not those after it: a clock that was ahead for a while has left some.
            for row in self._ledger.rows(month.start, month.stop):
                self._tokens[row.tenant] += row.usage.prompt_tokens + row.usage.completion_tokens
        except Unavailable as error:
            self._month, self._tokens = None, Counter()
            self._unread_until = self._clock.now() + _RETRY_S
            log.error("budgets are not held", extra={"error": error.message})
        return True


def _check(tenant: Tenant, used: float, budget: int | None, what: str) -> None:
    if budget is not None and used >= budget:
        raise ResourceExhausted(
            "INSUFFICIENT_QUOTA",
            f"tenant {tenant.name!r} has used its {budget} {what} of this month; wait for the next, or have the budget"
            " raised",
        )
