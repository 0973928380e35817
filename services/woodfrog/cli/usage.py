"""What `woodfrog usage` prints: who used what, and what models that never sleep would have held."""

import asyncio
import csv
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from operator import add

from woodfrog.catalog import Catalog
from woodfrog.cli.cluster import Cluster
from woodfrog.cli.commands import describe
from woodfrog.cli.show import table
from woodfrog.clients.usages import UsagesClient
from woodfrog.clock import SystemClock
from woodfrog.coordination import Session
from woodfrog.errors import InvalidArgument, Unavailable, WoodfrogError
from woodfrog.metering import GIB_H, HOUR_S, Row, Usage, bucket, hours_in
from woodfrog.metering.split import Key, Line, Standing, grouped, lines
from woodfrog.model.spec import ModelSpec

LAST_HOURS = 24
_TIMEOUT_S = 10.0
_NOBODY = "-"
BY = ("tenant", "model", "hour")


@dataclass(frozen=True, slots=True)
class Span:
    """Whole hours since the epoch, of long ago whole days: from the first up to, not including, the second."""

    since_hour: int
    until_hour: int

    @staticmethod
    def of(since: float | None, until: float | None, last_hours: int, now: float) -> "Span":
        """In seconds since the epoch. Raises InvalidArgument."""
        end = now if until is None else min(until, now)
        begin = end - last_hours * HOUR_S if since is None else since
        if begin >= end:
            raise InvalidArgument(
                "BAD_SPAN", "the span ends before it begins; give --since a time before --until"
            )
        now_hour, last = int(now // HOUR_S), int(-(-end // HOUR_S)) - 1
        first = bucket(max(0, int(begin // HOUR_S)), now_hour)
        return Span(first, bucket(last, now_hour) + hours_in(last, now_hour))


async def usage(cluster: Cluster, span: Span, by: str | None, as_csv: bool) -> None:
    """Raises Unavailable USAGE_INCOMPLETE, after all was printed that there is."""
    now = SystemClock().wall()
    places = [("the router", _ask_first([*map(cluster.operators, cluster.routers)], span))]
    places += [(f"node {node.name}", _ask(node.agent, span)) for node in cluster.nodes]
    asked = await asyncio.gather(*(asking for _, asking in places), return_exceptions=True)
    rows: list[Row] = []
    missing: list[str] = []
    for (name, _), answer in zip(places, asked, strict=True):
        if isinstance(answer, WoodfrogError):
            missing.append(f"{name} does not tell its part ({answer.message})")
        elif isinstance(answer, BaseException):
            raise answer
        else:
            rows += answer
    try:
        standing = await _standing(cluster)
    except (WoodfrogError, TimeoutError) as error:
        told = error.message if isinstance(error, WoodfrogError) else "no answer came"
        missing.append(f"what always-on would have held is not known ({told})")
        standing = []
    now_hour = int(now // HOUR_S)
    found = lines(rows, standing, span.since_hour, min(now, span.until_hour * HOUR_S), now_hour)
    _print(found, by, now_hour, as_csv)
    if missing:
        raise Unavailable(
            "USAGE_INCOMPLETE", f"usage is not complete: {'; '.join(missing)}; see woodfrog ps"
        )


async def _ask_first(addresses: Sequence[str], span: Span) -> list[Row]:
    """Of the first that answers: any router tells what all of them recorded."""
    *others, last = addresses
    for address in others:
        with suppress(WoodfrogError):
            return await _ask(address, span)
    return await _ask(last, span)


async def _ask(address: str, span: Span) -> list[Row]:
    async with UsagesClient(address) as usages:
        return await usages.list(span.since_hour, span.until_hour)


async def _standing(cluster: Cluster) -> list[Standing]:
    """Of each model that there is, one replica. On a GPU with most memory, so that too little is said to be saved."""
    async with asyncio.timeout(_TIMEOUT_S):
        async with Session([cluster.address("etcd")], SystemClock()) as session:
            specs = await Catalog(session).list_models()
        gpu_bytes = 0
        if any(spec.gpu_bytes for spec in specs):
            nodes = (await describe(cluster)).nodes
            gpu_bytes = max((gpu.memory_bytes for node in nodes for gpu in node.gpus), default=0)
    return [_standing_of(spec, gpu_bytes) for spec in specs]


def _standing_of(spec: ModelSpec, gpu_bytes: int) -> Standing:
    share = 0.0
    if spec.gpu_bytes and gpu_bytes:
        share = (spec.gpu_bytes + spec.weights_bytes) / gpu_bytes
    return Standing(spec.tenant, spec.name, spec.create_time, share, spec.memory_bytes)


def _print(found: dict[Key, Line], by: str | None, now_hour: int, as_csv: bool) -> None:
    names: dict[str, Callable[[Key], str]] = {
        "tenant": lambda key: key[1] or _NOBODY,
        "model": lambda key: key[2],
        "hour": lambda key: _moment(key[0], now_hour),
    }
    columns = ("tenant", "model") if by is None else (by,)
    sums = grouped(found, lambda key: tuple(names[column](key) for column in columns))
    if as_csv:
        _csv(columns, sums)
    else:
        print(usage_table(columns, sums))


def usage_table(columns: Sequence[str], sums: dict[tuple[str, ...], Line]) -> str:
    """`saved` is by how much less was held than always-on would have; less than nothing where several replicas ran.

    What models held that are gone is in no `saved`.
    """
    header = [column.upper() for column in columns]
    header += ["REQUESTS", "FAILED", "WAKES", "TOKENS IN", "TOKENS OUT"]
    header += ["GPU-S", "GPU-S SAVED", "HOST GIB-H", "HOST GIB-H SAVED"]
    rows = [(*group, *_cells(line)) for group, line in sums.items()]
    if len(rows) > 1:
        whole = reduce(add, sums.values())
        rows.append(("total", *[""] * (len(columns) - 1), *_cells(whole)))
    return table(header, rows)


def _cells(line: Line) -> tuple[str, ...]:
    used, never, beside = line.usage, line.always_on, line.beside
    counts = used.requests, used.failed, used.wakes, used.prompt_tokens, used.completion_tokens
    return (
        *(f"{count:,}" for count in counts),
        f"{used.gpu_s:,.2f}",
        _saved(beside.gpu_s, never.gpu_s),
        f"{used.host_byte_s / GIB_H:,.2f}",
        _saved(beside.host_byte_s / GIB_H, never.host_byte_s / GIB_H),
    )


def _saved(held: float, never: float) -> str:
    return f"{never - held:,.2f} of {never:,.2f} ({1 - held / never:.1%})" if never else "-"


def _csv(columns: Iterable[str], sums: dict[tuple[str, ...], Line]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*columns, *Usage.__slots__, "always_on_gpu_s", "always_on_host_byte_s"])
    for group, line in sums.items():
        writer.writerow(
            [*group, *line.usage.counters, line.always_on.gpu_s, line.always_on.host_byte_s]
        )


def _moment(hour: int, now_hour: int) -> str:
    """In UTC; a day of which the hours are not known any more is only a date."""
    moment = datetime.fromtimestamp(hour * HOUR_S, UTC)
    return f"{moment:%Y-%m-%d}" if hours_in(hour, now_hour) > 1 else f"{moment:%Y-%m-%d %H:00}"
