"""One channel to etcd: its stubs, deadlines, retries, and the border where grpc's errors become ours."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from etcd3.etcdrpc import rpc_pb2_grpc

from woodfrog.clock import Clock
from woodfrog.coordination.values import target
from woodfrog.errors import (
    Internal,
    NotFound,
    ResourceExhausted,
    Unavailable,
    WoodfrogError,
    cancellation,
)

CALL_TIMEOUT_S = 5.0
TRY_TIMEOUT_S = 1.5  # of one try of a call that may be repeated: another member may answer
PAUSE_MIN_S, PAUSE_MAX_S = 0.05, 1.0
HAS_LEADER = (("hasleader", "true"),)  # a member cut off from its leader ends the stream

OPTIONS = (
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 6000),  # etcd refuses less than 5 s
    ("grpc.keepalive_permit_without_calls", 0),  # 1 is answered with GOAWAY
    ("grpc.http2.ping_timeout_ms", 2000),  # without it a stopped peer is unseen for 25 s and more
    ("grpc.keepalive_timeout_ms", 2000),  # also TCP's time-out of what is sent and not acknowledged
    ("grpc.min_reconnect_backoff_ms", 1500),  # the time-out of a connect, too
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", 48 << 20),  # a page of a list: 500 values of 64 KiB
)

_UNREACHABLE = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,  # a member that is stopping
        grpc.StatusCode.INTERNAL,  # a connection reset in the middle of an answer
    }
)


class Connection:
    """Lives from `open` to `close` on one event loop."""

    def __init__(self, endpoints: Sequence[str], clock: Clock, silence_s: float) -> None:
        self.name = ",".join(endpoints)  # for people
        self.clock = clock
        self.silence_s = silence_s  # of a watch, until it must show that it lives
        self.closed = False
        self._target = target(endpoints)
        self._channel: grpc.aio.Channel | None = None

    def open(self) -> None:
        self._channel = grpc.aio.insecure_channel(self._target, options=OPTIONS)
        self.kv = rpc_pb2_grpc.KVStub(self._channel)
        self.leases = rpc_pb2_grpc.LeaseStub(self._channel)
        self.watches = rpc_pb2_grpc.WatchStub(self._channel)

    async def close(self) -> None:
        """Every stream still open raises Unavailable with reason SESSION_CLOSED."""
        self.closed = True
        if self._channel is not None:
            await self._channel.close(None)

    async def call(
        self, method: Callable[..., Any], request: Any, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> Any:
        """One try: it may have been applied even when this raises."""
        with self.border():
            return await method(request, timeout=timeout_s, wait_for_ready=True)

    async def call_again(self, method: Callable[..., Any], request: Any) -> tuple[Any, bool]:
        """Tries until the deadline. Only for what is harmless twice: reads and guarded transactions.

        Also says whether an earlier try may have been applied.
        """
        deadline = self.clock.now() + CALL_TIMEOUT_S
        pause_s = PAUSE_MIN_S
        uncertain = False
        while True:
            left_s = deadline - self.clock.now()
            try:
                timeout_s = max(0.001, min(TRY_TIMEOUT_S, left_s))
                return await self.call(method, request, timeout_s=timeout_s), uncertain
            except Unavailable:
                if self.closed or self.clock.now() + pause_s >= deadline:
                    raise
            uncertain = True
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    @contextmanager
    def border(self) -> Iterator[None]:
        try:
            with cancellation.kept():
                yield
        except grpc.aio.AioRpcError as error:
            raise self._translate(error) from None
        except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
            raise self._unreachable(str(error)) from None
        except TimeoutError:
            raise self._unreachable("no answer in time") from None
        except asyncio.CancelledError:
            # grpc also raises this in whoever reads from a channel that somebody else closes.
            task = asyncio.current_task()
            if self.closed and not (task and task.cancelling()):
                raise self._unreachable("closed") from None
            raise

    def _translate(self, error: grpc.aio.AioRpcError) -> WoodfrogError:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return self._unreachable("no answer in time")
        if code in _UNREACHABLE:
            return self._unreachable(details or code.name)
        message = f"etcd at {self.name} refused: {details}"
        if code is grpc.StatusCode.NOT_FOUND:
            return NotFound("LEASE_NOT_FOUND", message)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return ResourceExhausted("ETCD_FULL", message, retry_after_s=1.0)
        return Internal(f"ETCD_{code.name}", message)

    def _unreachable(self, details: str) -> Unavailable:
        if self.closed:
            return Unavailable("SESSION_CLOSED", f"the session with etcd at {self.name} is closed")
        return Unavailable(
            "ETCD_UNREACHABLE",
            f"etcd at {self.name} does not answer ({details}); check that it runs there",
            endpoints=self.name,
        )
