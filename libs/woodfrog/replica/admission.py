"""Slots: how many sequences run, how many wait, and who is turned away. Single-threaded, on the event loop."""

import asyncio
from collections import deque

from woodfrog.errors import ResourceExhausted

_FIRST_GUESS_S = 1.0
_WEIGHT = 0.2  # of the newest duration in the mean


class Ticket:
    """A place in the queue, then a slot; `async with` waits for the slot and gives it back."""

    def __init__(self, admission: "Admission") -> None:
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._admission = admission
        self._since = 0.0

    async def __aenter__(self) -> None:
        await self.granted
        self._since = asyncio.get_running_loop().time()

    async def __aexit__(self, *_: object) -> None:
        self._admission.observe(asyncio.get_running_loop().time() - self._since)

    def give_back(self) -> None:
        """Whether it waits, runs, or is done; only the first call counts."""
        self._admission.give_back(self)


class Admission:
    def __init__(self, slots: int, waiting_max: int) -> None:
        self.slots = slots
        self._waiting_max = waiting_max
        self._running: set[Ticket] = set()
        self._queue: deque[Ticket] = deque()
        self._mean_s = _FIRST_GUESS_S
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def active(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def take(self, count: int) -> list[Ticket]:
        """All tickets or none. Raises ResourceExhausted QUEUE_FULL with the time to come back."""
        room = self.slots - self.active + self._waiting_max - self.waiting
        if count > room:
            raise ResourceExhausted(
                "QUEUE_FULL",
                f"all {self.slots} slots are taken and {self.waiting} sequences wait; try again later",
                retry_after_s=self._mean_s * (self.waiting + count) / self.slots,
            )
        tickets = [Ticket(self) for _ in range(count)]
        self._queue.extend(tickets)
        self._empty.clear()
        self._grant()
        return tickets

    def give_back(self, ticket: Ticket) -> None:
        if ticket in self._running:
            self._running.remove(ticket)
        elif ticket in self._queue:
            self._queue.remove(ticket)
            ticket.granted.cancel()
        self._grant()
        if not self._running:
            self._empty.set()

    def observe(self, duration_s: float) -> None:
        """How long a slot was held."""
        self._mean_s += _WEIGHT * (duration_s - self._mean_s)

    async def empty(self) -> None:
        """Return when nothing runs or waits."""
        await self._empty.wait()

    def _grant(self) -> None:
        while self._queue and self.active < self.slots:
            ticket = self._queue.popleft()
            self._running.add(ticket)
            if not ticket.granted.done():
                ticket.granted.set_result(None)
