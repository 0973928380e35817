"""One key that exists for as long as this process lives."""

import asyncio
import logging

from woodfrog.coordination.connection import PAUSE_MAX_S, PAUSE_MIN_S
from woodfrog.coordination.lease import Lease
from woodfrog.coordination.session import Session
from woodfrog.errors import WoodfrogError

log = logging.getLogger(__name__)


class Registration:
    """`async with Registration(...)`: entering puts the key, leaving deletes it; in between it comes back by itself.

    It takes the key over from a predecessor whose lease still runs. Entering raises Unavailable when etcd cannot be
    reached; later that only means another try.
    """

    def __init__(self, session: Session, key: str, value: bytes, ttl_s: int) -> None:
        self._session = session
        self._key = key
        self._value = value
        self._ttl_s = ttl_s
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Registration":
        lease = await self._hold()
        self._task = asyncio.create_task(self._keep(lease))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task
        self._task.cancel()
        (outcome,) = await asyncio.gather(self._task, return_exceptions=True)
        if outcome and not isinstance(outcome, (asyncio.CancelledError, WoodfrogError)):
            raise outcome

    async def _keep(self, lease: Lease) -> None:
        try:
            while True:
                await lease.lost.wait()
                await lease.aclose()
                lease = await self._hold_again()
                log.info("registered again", extra={"key": self._key})
        finally:
            await lease.aclose()

    async def _hold(self) -> Lease:
        lease = await self._session.grant(self._ttl_s)
        try:
            await self._session.put(self._key, self._value, lease.id)
        except BaseException:
            await lease.aclose()
            raise
        return lease

    async def _hold_again(self) -> Lease:
        """Tries for as long as the session is open."""
        pause_s = PAUSE_MIN_S
        while True:
            try:
                return await self._hold()
            except WoodfrogError:
                if self._session.connection.closed:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)
