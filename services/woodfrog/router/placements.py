"""What the router asks of a scheduler; `woodfrog.clients.scheduler.SchedulerClient` is one."""

from collections.abc import AsyncIterator, Collection
from typing import Protocol

from woodfrog.model.placement import ANYONE, Acquired, Caller, RouterReport, TrackUpdate


class Placements(Protocol):
    async def acquire(
        self,
        model: str,
        excluded: Collection[str] = (),
        caller: Caller = ANYONE,
        *,
        timeout_s: float,
    ) -> Acquired:
        """Raises woodfrog.errors classes; cancelling it gives the wait up."""

    async def release(self, placement_id: str, *, replica_failed: bool = False) -> None:
        """Idempotent."""

    def track(self, reports: AsyncIterator[RouterReport]) -> AsyncIterator[TrackUpdate]:
        """Raises Unavailable when the stream breaks; it never just ends."""
