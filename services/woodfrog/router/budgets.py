"""How many tokens tenants have used this calendar month, in UTC, by this router's ledger."""

import logging
from collections import Counter
from datetime import UTC, datetime, timedelta

from woodfrog.clock import Clock
from woodfrog.errors import ResourceExhausted, Unavailable
from woodfrog.metering import HOUR_S, Ledger, Row
from woodfrog.model.tenant import Tenant

log = logging.getLogger(__name__)
_LONGER_THAN_A_MONTH = timedelta(days=32)


class Budgets:
    """A restart forgets nothing: the month is read again from the ledger. While that cannot be read, nobody is refused."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._month: datetime | None = None
        self._used: Counter[str] = Counter()

    def check(self, tenant: Tenant) -> None:
        """Raises ResourceExhausted INSUFFICIENT_QUOTA, which time mends only with the month."""
        if tenant.tokens_per_month is None:
            return
        self._turn()
        if self._used[tenant.name] >= tenant.tokens_per_month:
            raise ResourceExhausted(
                "INSUFFICIENT_QUOTA",
                f"tenant {tenant.name!r} has used its {tenant.tokens_per_month} tokens of this month; wait for the next,"
                " or have the budget raised",
            )

    def charge(self, tenant: str, tokens: int) -> None:
        """The ledger has them already."""
        if not self._turn():
            self._used[tenant] += tokens

    def _turn(self) -> bool:
        """Whether another month began, or the first: then all that the ledger has of it is counted."""
        now = datetime.fromtimestamp(self._clock.wall(), UTC)
        month = datetime(now.year, now.month, 1, tzinfo=UTC)
        if month == self._month:
            return False
        self._month, self._used = month, Counter()
        since = int(month.timestamp() // HOUR_S)
        # A clock that was ahead for a while has left rows of the next.
        until = int((month + _LONGER_THAN_A_MONTH).replace(day=1).timestamp() // HOUR_S)
        after: Row | None = None
        try:
            while page := self._ledger.page(since, until, after):
                for row in page:
                    self._used[row.tenant] += row.usage.prompt_tokens + row.usage.completion_tokens
                after = page[-1]
        except Unavailable as error:
            self._month = None
            log.error("budgets are not held", extra={"error": error.message})
        return True
