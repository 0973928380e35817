"""Orders of a scheduler that leads no more are refused, once the next leader was heard."""

import time

from woodfrog.errors import FailedPrecondition

MEMORY_S = 60.0  #: an etcd restored from a backup counts terms from a lower number


class Fence:
    """Remembers the newest term that gave an order."""

    def __init__(self) -> None:
        self._term = 0
        self._heard = 0.0

    def check(self, term: int) -> None:
        """`term` 0: the order is not a leader's own. Raises FailedPrecondition TERM_OVER for an older one than the newest."""
        now = time.monotonic()
        if not term:
            return
        if term < self._term and now < self._heard + MEMORY_S:
            raise FailedPrecondition(
                "TERM_OVER",
                f"the order is of term {term}, and the scheduler of term {self._term} leads; leave it to that one",
            )
        self._term, self._heard = term, now
