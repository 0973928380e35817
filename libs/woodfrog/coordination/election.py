"""One of many leads: by a key under a lease, and each of its writes proves that it still does."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from woodfrog.coordination import operations
from woodfrog.coordination.connection import PAUSE_MAX_S, PAUSE_MIN_S
from woodfrog.coordination.lease import Lease
from woodfrog.coordination.operations import Guard
from woodfrog.coordination.session import Session
from woodfrog.coordination.values import Delete, Item, Listing, Put
from woodfrog.errors import Aborted, AlreadyExists, Unavailable, WoodfrogError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Leader:
    value: bytes  # who it is, as it says itself
    token: int


async def leaders(session: Session, key: str) -> AsyncGenerator[Leader | None, None]:
    """Who leads, None for nobody, and again at each change. Like `Session.follow`; use it in `contextlib.aclosing`."""
    async with aclosing(session.follow(key)) as changes:
        async for change in changes:
            item: Item | None
            match change:
                case Listing(items):
                    item = next((item for item in items if item.key == key), None)
                case Put(item) if item.key == key:
                    pass
                case Delete(name) if name == key:
                    item = None
                case _:  # of a longer key
                    continue
            yield Leader(item.value, item.create_revision) if item else None


class Term:
    """From one election to the loss of leadership."""

    def __init__(self, session: Session, key: str, token: int, lease: Lease) -> None:
        self.token = token  #: create_revision of the key: grows from term to term
        self.lost = asyncio.Event()  #: never cleared
        self._session = session
        self._key = key
        self._lease = lease

    @property
    def leads(self) -> bool:
        """By the clock: false before another can be elected, though this process stood still meanwhile."""
        return not self.lost.is_set() and self._lease.held

    @property
    def guards(self) -> tuple[Guard, Guard]:
        """They hold in etcd as long as this term does. For every transaction that is a leader's alone.

        The lease's id is random; the token alone may come again in an etcd that lost its data.
        """
        return (
            operations.created_at(self._key, self.token),
            operations.under(self._key, self._lease.id),
        )

    async def write(self, key: str, value: bytes, mod_revision: int) -> int:
        """Replaces what `key` has at `mod_revision`, 0 for nothing. Returns the new mod_revision.

        Raises Aborted when nothing was written: LEADERSHIP_LOST, or KEY_CHANGED when `mod_revision` is not current.
        Raises Unavailable when it may have been.
        """
        if not self.leads:
            raise self._over()
        result = await self._session.txn(
            [*self.guards, operations.unchanged(key, mod_revision)],
            [operations.write(key, value, None if mod_revision else 0)],
            [operations.read(self._key), operations.read(key)],
        )
        if result.succeeded:
            return result.revision
        leader, found = (items[0] if items else None for items in result.items)
        mine = (self.token, self._lease.id)
        stands = leader is not None and (leader.create_revision, leader.lease) == mine
        if not stands:
            self.lost.set()
        if not result.uncertain:
            raise _changed(key, mod_revision) if stands else self._over()
        if stands and found and found.value == value:
            return found.mod_revision
        raise Unavailable(
            "WRITE_UNCERTAIN",
            f"an answer of etcd was lost, so {key!r} may have been written; read it again",
            key=key,
        )

    def _over(self) -> Aborted:
        return Aborted(
            "LEADERSHIP_LOST",
            f"the term {self.token} of {self._key!r} is over; leave this to the next leader",
            key=self._key,
        )


class Election:
    """A candidate. It leads while its key is there under its lease; see `docs/adr/0018-election.md`.

    An etcd that is away for less than nine tenths of `ttl_s` costs nothing; one that is away longer, cannot be reached
    from here or lost its data ends the term, and the campaign goes on.
    """

    def __init__(self, session: Session, key: str, value: bytes, ttl_s: int) -> None:
        self._session = session
        self._key = key
        self._value = value
        self._ttl_s = ttl_s
        self._term: Term | None = None
        self._won = asyncio.Event()

    @property
    def term(self) -> Term | None:
        """The term that stands now."""
        return self._term if self._term is not None and self._term.leads else None

    async def won(self) -> Term:
        """Waits for the next term, or returns the present one, which may end at any moment."""
        while self._term is None:
            await self._won.wait()
        return self._term

    async def run(self) -> None:
        """Campaigns until it is cancelled, which resigns. Raises Unavailable when the session closes."""
        pause_s = PAUSE_MIN_S
        while True:
            try:
                await self._vacant()
                await self._stand()
                pause_s = PAUSE_MIN_S
                continue
            except WoodfrogError as error:
                if self._session.connection.closed:
                    raise
                extra = {"key": self._key, "reason": error.message}
                log.warning("campaign interrupted", extra=extra)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    async def _vacant(self) -> None:
        async with aclosing(leaders(self._session, self._key)) as seen:
            async for leader in seen:
                if leader is None:
                    return

    async def _stand(self) -> None:
        """Returns when another was faster, or when the term is over."""
        lease = await self._session.grant(self._ttl_s)
        try:
            token = await self._session.create(self._key, self._value, lease.id)
            await self._lead(Term(self._session, self._key, token, lease), lease)
        except AlreadyExists:
            pass
        finally:
            await lease.aclose()  # the key goes with it

    async def _lead(self, term: Term, lease: Lease) -> None:
        extra = {"key": self._key, "token": term.token}
        log.info("leadership won", extra=extra)
        self._term = term
        self._won.set()
        try:
            await self._until_over(term, lease)
        finally:
            term.lost.set()  # before the lease is given back
            self._term = None
            self._won.clear()
            log.info("leadership ended", extra=extra)

    async def _until_over(self, term: Term, lease: Lease) -> None:
        ends = (lease.lost.wait(), term.lost.wait(), self._replaced(term.token))
        waits = [asyncio.ensure_future(end) for end in ends]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        for wait in done:
            wait.result()

    async def _replaced(self, token: int) -> None:
        """Until the key is not ours: deleted by hand, or gone with etcd's data."""
        async with aclosing(leaders(self._session, self._key)) as seen:
            async for leader in seen:
                if leader is None or leader.token != token:
                    return


def _changed(key: str, mod_revision: int) -> Aborted:
    return Aborted(
        "KEY_CHANGED", f"key {key!r} is not at revision {mod_revision}; read it again", key=key
    )
