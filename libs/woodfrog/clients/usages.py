"""Usage records of one process: asked for, and served beside what else it serves."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import asdict, fields
from typing import Any

import grpc

from woodfrog import rpc
from woodfrog.api.metering.v1 import usages_pb2 as pb
from woodfrog.api.metering.v1 import usages_pb2_grpc as pb_grpc
from woodfrog.errors import InvalidArgument, Unavailable
from woodfrog.metering import Paged, Row, Usage

SERVICE = pb.DESCRIPTOR.services_by_name["Usages"].full_name
_TIMEOUT_S = 30.0
_EVER_HOURS = 1 << 40

Context = grpc.aio.ServicerContext[Any, Any]


class UsagesClient:
    """`async with UsagesClient("127.0.0.1:7010") as usages`, of a router or a node agent."""

    def __init__(self, target: str) -> None:
        self._channel = rpc.open_channel(target)
        self._stub = pb_grpc.UsagesStub(self._channel)  # type: ignore[no-untyped-call]

    async def __aenter__(self) -> "UsagesClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close(None)

    async def list(
        self, since_hour: int, until_hour: int, timeout_s: float = _TIMEOUT_S
    ) -> list[Row]:
        """Hours from the first up to, not including, the second. Raises woodfrog.errors classes."""
        request = pb.ListRequest(since_hour=since_hour, until_hour=until_hour)
        rows: list[Row] = []
        try:
            async with (
                asyncio.timeout(timeout_s),
                aclosing(rpc.stream(self._stub.List, request)) as pages,
            ):
                async for page in pages:
                    rows += map(row_from_pb, page.usages)
        except TimeoutError:
            raise Unavailable(
                "USAGE_SLOW", f"its usage did not come within {timeout_s:g} s; ask again"
            ) from None
        return rows


class UsagesServicer(pb_grpc.UsagesServicer):
    def __init__(
        self,
        ledger: Paged,
        settle: Callable[[], None] = lambda: None,
        whose: Callable[[Context], str | None] = lambda context: None,
    ) -> None:
        """`settle` brings the ledger up to now; `whose` is the tenant that a caller may see, None for all of them."""
        self._ledger = ledger
        self._settle = settle
        self._whose = whose

    async def List(
        self, request: pb.ListRequest, context: Context
    ) -> AsyncIterator[pb.ListResponse]:
        tenant = self._whose(context)
        until_hour = request.until_hour or _EVER_HOURS
        if not 0 <= request.since_hour <= until_hour:
            raise InvalidArgument(
                "BAD_SPAN", "the span must not begin before 1970, nor end before it begins"
            )
        self._settle()
        last: Row | None = None
        while page := self._ledger.page(request.since_hour, until_hour, last):
            seen = (row for row in page if tenant is None or row.tenant == tenant)
            yield pb.ListResponse(usages=map(row_to_pb, seen))
            last = page[-1]


def row_to_pb(row: Row) -> pb.Usage:
    return pb.Usage(hour=row.hour, tenant=row.tenant, model=row.model, **asdict(row.usage))


def row_from_pb(message: pb.Usage) -> Row:
    counters = {field.name: getattr(message, field.name) for field in fields(Usage)}
    return Row(message.hour, message.tenant, message.model, Usage(**counters))
