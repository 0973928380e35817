"""What tenants' models have held this calendar month, in UTC, as nodes tell it: asked again and again, for budgets."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from woodfrog import catalog
from woodfrog.clients.usages import UsagesClient
from woodfrog.clock import Clock
from woodfrog.errors import WoodfrogError
from woodfrog.metering import HOUR_S, Paged, Row, Usage, month_of
from woodfrog.metering.split import slots_of, split

log = logging.getLogger(__name__)
EVERY_S = 10.0  # as often as nodes write
_TIMEOUT_S = 5.0
_FINAL_HOURS = 2  # the last ones, in which a node may still charge
_PAGE_HOURS = 24  # asked for at once


@dataclass(slots=True)
class _Node:
    address: str
    next_hour: int = 0  # those before are in `final`
    final: dict[str, Usage] = field(default_factory=lambda: defaultdict(Usage))  # by tenant
    latest: Mapping[str, Usage] = field(default_factory=dict)
    silent: bool = False


class Held:
    """A node that went stays counted until the month ends, or the router does; one that does not answer, as it last told.

    What nobody's replicas held is split by the slots that tenants had, as `ledger` has them.
    """

    def __init__(self, ledger: Paged, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._nodes: dict[str, _Node] = {}
        self._there: set[str] = set()
        self._month = 0  # its first hour
        self._sum: Mapping[str, Usage] = {}

    def hear(self, event: catalog.CatalogEvent) -> None:
        match event:
            case catalog.CatalogSnapshot():
                self._there = set()
                for record in event.nodes:
                    self._put(record)
            case catalog.NodePut(record):
                self._put(record)
            case catalog.NodeGone(record):
                self._there.discard(record.name)

    def of(self, tenant: str) -> Usage:
        """Its GPU and host seconds only."""
        return self._sum.get(tenant, Usage())

    async def run(self, wanted: Callable[[], bool]) -> None:
        """Asks while somebody's budget wants it."""
        while True:
            if wanted():
                await self.ask()
            await asyncio.sleep(EVERY_S)

    async def ask(self) -> None:
        """All nodes that are there, once."""
        month = month_of(self._clock.wall()).start
        if month != self._month:
            self._month = month
            self._nodes = {name: _Node(self._nodes[name].address, month) for name in self._there}
        there = [(name, self._nodes[name]) for name in self._there]
        await asyncio.gather(*(self._ask(name, node) for name, node in there))
        found: dict[str, Usage] = defaultdict(Usage)
        for node in self._nodes.values():
            for told in (node.final, node.latest):
                for tenant, usage in told.items():
                    found[tenant] += usage
        self._sum = found

    def _put(self, record: catalog.NodeRecord) -> None:
        self._there.add(record.name)
        node = self._nodes.setdefault(record.name, _Node(record.address, self._month))
        node.address = record.address

    async def _ask(self, name: str, node: _Node) -> None:
        now_hour = int(self._clock.wall() // HOUR_S)
        final = now_hour + 1 - _FINAL_HOURS
        try:
            async with UsagesClient(node.address) as usages:
                while node.next_hour < final:
                    until = min(node.next_hour + _PAGE_HOURS, final)
                    rows = await usages.list(node.next_hour, until, _TIMEOUT_S)
                    for tenant, usage in self._split(rows, node.next_hour, until).items():
                        node.final[tenant] += usage
                    node.next_hour = until
                rows = await usages.list(node.next_hour, now_hour + 1, _TIMEOUT_S)
                node.latest = self._split(rows, node.next_hour, now_hour + 1)
        except WoodfrogError as error:
            if not node.silent:
                extra = {"node": name, "error": error.message}
                log.warning("budgets count what a node last told", extra=extra)
            node.silent = True
        else:
            node.silent = False

    def _split(self, rows: list[Row], since_hour: int, until_hour: int) -> dict[str, Usage]:
        """By tenant. Raises Unavailable LEDGER_UNREADABLE."""
        held = {(row.hour, row.tenant, row.model): row.usage for row in rows}
        used = self._ledger.rows(since_hour, until_hour) if held else ()
        slots = slots_of(((row.hour, row.tenant, row.model), row.usage) for row in used)
        found: dict[str, Usage] = defaultdict(Usage)
        for (_, tenant, _), usage in split(held, slots).items():
            found[tenant] += usage
        return found
