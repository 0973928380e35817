"""A lease that is kept alive, and known to be lost before etcd gives it up."""

import asyncio
import logging
import secrets
from dataclasses import dataclass

from etcd3.etcdrpc import rpc_pb2

from woodfrog.coordination.connection import (
    HAS_LEADER,
    PAUSE_MIN_S,
    TRY_TIMEOUT_S,
    Connection,
)
from woodfrog.errors import WoodfrogError

log = logging.getLogger(__name__)

MARGIN = 0.1  # share of the ttl left to whoever must stop when the lease is lost
REVOKE_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class LeaseTimer:
    """Pure. etcd counts from when a request arrives, this from before it was sent, so it is always the earlier."""

    ttl_s: float
    sent: float  # when the last request that was answered was sent

    @property
    def due(self) -> float:
        return self.sent + self.ttl_s / 3

    @property
    def deadline(self) -> float:
        return self.sent + self.ttl_s * (1 - MARGIN)

    @property
    def try_s(self) -> float:
        """Three find room before the deadline: where a member is silent, the next try asks another."""
        return min(TRY_TIMEOUT_S, self.ttl_s / 6)


class Lease:
    """Made by `grant`, ended by `aclose`, which deletes its keys at once if etcd can be reached."""

    def __init__(self, connection: Connection, lease_id: int, timer: LeaseTimer) -> None:
        self.id = lease_id
        self.lost = (
            asyncio.Event()
        )  #: set before etcd deletes the keys of this lease; never cleared
        self._connection = connection
        self._timer = timer
        self._task = asyncio.create_task(self._keep())

    @staticmethod
    async def grant(connection: Connection, ttl_s: int) -> "Lease":
        assert ttl_s >= 1
        lease_id = secrets.randbits(62) + 1  # ours, so that a grant may be repeated
        request = rpc_pb2.LeaseGrantRequest(TTL=ttl_s, ID=lease_id)
        sent = connection.clock.now()
        try:
            response, _ = await connection.call_again(connection.leases.LeaseGrant, request)
            ttl_s = response.TTL
        except WoodfrogError as error:
            # Only an earlier try of ours can have taken the id.
            if error.reason != "ETCD_FAILED_PRECONDITION":
                raise
        return Lease(connection, lease_id, LeaseTimer(ttl_s, sent))

    @property
    def held(self) -> bool:
        """Like `lost`, but by the clock: right also when nothing of this process ran for a while."""
        return not self.lost.is_set() and self._connection.clock.now() < self._timer.deadline

    async def aclose(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self.lost.is_set():
            return
        request = rpc_pb2.LeaseRevokeRequest(ID=self.id)
        try:
            method = self._connection.leases.LeaseRevoke
            await self._connection.call(method, request, timeout_s=REVOKE_TIMEOUT_S)
        except WoodfrogError as error:
            log.info("lease left to expire", extra={"lease": self.id, "reason": error.message})

    async def _keep(self) -> None:
        while await self._renewed():
            pass
        self.lost.set()
        log.warning("lease lost", extra={"lease": self.id, "ttl_s": self._timer.ttl_s})

    async def _renewed(self) -> bool:
        """Waits until it is time, then tries until the deadline. False when the lease is lost."""
        clock, deadline = self._connection.clock, self._timer.deadline
        await asyncio.sleep(max(0.0, self._timer.due - clock.now()))
        while (sent := clock.now()) < deadline and not self._connection.closed:
            try:
                ttl_s = await self._renew(min(self._timer.try_s, deadline - sent))
            except WoodfrogError:
                await asyncio.sleep(max(0.0, min(PAUSE_MIN_S, deadline - clock.now())))
                continue
            self._timer = LeaseTimer(ttl_s, sent)
            return ttl_s > 0
        return False

    async def _renew(self, timeout_s: float) -> int:
        """What etcd answers: the ttl, 0 when it does not know the lease."""
        request = rpc_pb2.LeaseKeepAliveRequest(ID=self.id)
        with self._connection.border():
            call = self._connection.leases.LeaseKeepAlive(
                iter([request]), timeout=timeout_s, metadata=HAS_LEADER, wait_for_ready=True
            )
            try:
                response = await call.read()
            finally:
                call.cancel()
        return int(response.TTL) if response else 0  # no answer: the end of the stream
