"""Usage of all processes that keep their ledgers in one folder, read as one: also of those that run no more."""

import os
import re
import sqlite3
from contextlib import suppress
from itertools import chain
from operator import add
from pathlib import Path
from typing import Any

from woodfrog.errors import Unavailable
from woodfrog.metering.ledger import FORMAT, PAGE_ROWS, Found, Ledger, read
from woodfrog.metering.paged import Paged
from woodfrog.metering.usage import Row, Usage

_BUSY_S = 0.05  # only while its process starts or ends; the caller's loop waits


class Ledgers(Paged):
    """A process's own ledger and those beside it. Not for several threads.

    Of `usage.db`, and of `usage-2.db` too, these are `usage.db` and `usage-<number>.db`, up to 99, in its folder; they may
    come and go. Each ledger folds its old hours as it is written, one that nobody writes not at all: so who reads hours
    that are old enough for it sums them by `bucket`, and asks for whole days.
    """

    def __init__(self, own: Ledger) -> None:
        self.own = own
        self._siblings: dict[str, _Sibling] = {}
        # Who opens a ledger that kill -9 left reads its whole log, 0.02 s of 16 MiB: once, and before anybody waits.
        with suppress(Unavailable):
            self.page(0, 0)

    def page(self, since_hour: int, until_hour: int, after: Row | None = None) -> list[Row]:
        """As `Ledger.page`, rows of the same hour, tenant and model summed. It reads PAGE_ROWS in all, so that it takes no
        longer than of one ledger, and may be shorter where more follows; only an empty one is the last. Raises
        Unavailable LEDGER_UNREADABLE also for a sibling.
        """
        siblings = self._look()
        rows_max = max(1, PAGE_ROWS // (1 + len(siblings)))
        parts = [self.own.read(since_hour, until_hour, after, rows_max)]
        parts += [each.read(since_hour, until_hour, after, rows_max) for each in siblings]
        # A ledger whose part is full may have more behind it, which must not be passed by.
        last = min((part[-1][:3] for part in parts if len(part) == rows_max), default=None)
        # Counters only: a Usage for each row would take longer than all else.
        sums: dict[tuple[int, str, str], list[Any]] = {}
        for hour, tenant, model, *counters in chain(*parts):
            key = hour, tenant, model
            if last is None or key <= last:
                sums[key] = list(map(add, sums[key], counters)) if key in sums else counters
        return [Row(*key, Usage(*sums[key])) for key in sorted(sums)]

    def close(self) -> None:
        """The own one too."""
        for sibling in self._siblings.values():
            sibling.close()
        self._siblings.clear()
        self.own.close()

    def _look(self) -> list["_Sibling"]:
        """Those that are there now, by name."""
        if self.own.path is None:
            return []
        folder, found = self.own.path.parent, _beside(self.own.path)
        for name, sibling in list(self._siblings.items()):
            if found.get(name) != sibling.inode:  # it went, or another has its name
                sibling.close()
                del self._siblings[name]
        for name in sorted(found.keys() - self._siblings.keys()):
            self._siblings[name] = _Sibling(folder / name, found[name])
        return [self._siblings[name] for name in sorted(found)]


class _Sibling:
    """Another process's ledger. At most `-wal` and `-shm` are created beside it, without which SQLite reads none."""

    def __init__(self, path: Path, inode: int) -> None:
        self.inode = inode
        self._path = path
        self._database: sqlite3.Connection | None = None

    def read(
        self, since_hour: int, until_hour: int, after: Row | None, rows_max: int
    ) -> list[Found]:
        """As `Ledger.read`."""
        try:
            if self._database is None:
                # Not `immutable`: that passes its log by.
                uri = f"{self._path.absolute().as_uri()}?mode=ro"
                self._database = sqlite3.connect(
                    uri, uri=True, timeout=_BUSY_S, isolation_level=None
                )
            ((found,),) = self._database.execute("PRAGMA user_version").fetchall()
            if found == 0:  # its process has only just created it
                return []
            if found <= FORMAT:
                return read(self._database, since_hour, until_hour, after, rows_max)
            why = "it is of a newer woodfrog"
        except sqlite3.Error as error:
            self.close()
            if not self._path.exists():  # it went since the folder was looked at
                return []
            why = str(error)
        raise Unavailable(
            "LEDGER_UNREADABLE",
            f"the usage ledger {self._path} cannot be read: {why}; look at its disk, or move it away, and its part is told"
            " no more",
        )

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


def _beside(own: Path) -> dict[str, int]:
    """Inodes of its siblings, by name. Raises Unavailable LEDGER_UNREADABLE."""
    base = re.sub(r"-[0-9]+$", "", own.stem)
    family = re.compile(rf"{re.escape(base)}(-[1-9][0-9]?)?{re.escape(own.suffix)}")
    try:
        with os.scandir(own.parent) as entries:
            return {
                entry.name: entry.inode()
                for entry in entries
                if entry.name != own.name and family.fullmatch(entry.name) and entry.is_file()
            }
    except OSError as error:
        raise Unavailable(
            "LEDGER_UNREADABLE",
            f"the folder of the usage ledger {own} cannot be read: {error}; look at its disk",
        ) from None
