"""Usage on disk: one row for each hour, tenant and model, added to. Survives kill -9 of its process at any point.

SQLite in WAL mode, synchronous NORMAL: what `add` has returned from is with the kernel. A crash of the machine may take
the last seconds.
"""

import fcntl
import logging
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from woodfrog.errors import DataLoss, FailedPrecondition, Unavailable
from woodfrog.metering.paged import Paged
from woodfrog.metering.usage import Row, Usage, fold_before

log = logging.getLogger(__name__)
FORMAT = 1
_CHECKPOINT_ADDS = 4096  # by a thread, since it waits for the disk: 0.1 s were seen
_CHECKPOINT_PAGES = 1 << 16  # 256 MiB of log, where adds never pause: then `add` does it itself
_BUSY_S = 0.5  # nobody else writes; one who looks by hand may be in the way
_UNWRITTEN_MAX = 10_000  # rows; above it an hour of a full disk is lost to the oldest

_COUNTERS = tuple(field.name for field in fields(Usage))
_COLUMNS = ", ".join(
    f"{field.name} {'REAL' if field.name.endswith('_s') else 'INTEGER'} NOT NULL"
    for field in fields(Usage)
)
_SCHEMA = (
    f"CREATE TABLE usage (hour INTEGER NOT NULL, tenant TEXT NOT NULL, model TEXT NOT NULL, {_COLUMNS},"
    " PRIMARY KEY (hour, tenant, model)) WITHOUT ROWID"
)
_ONTO = " ON CONFLICT (hour, tenant, model) DO UPDATE SET " + ", ".join(
    f"{name} = {name} + excluded.{name}" for name in _COUNTERS
)
_ADD = f"INSERT INTO usage VALUES ({', '.join('?' * (3 + len(_COUNTERS)))}){_ONTO}"
_FOLD = (
    "INSERT INTO usage SELECT hour - hour % 24, tenant, model, "
    + ", ".join(f"sum({name})" for name in _COUNTERS)
    + f" FROM usage WHERE hour < ? AND hour % 24 != 0 GROUP BY 1, 2, 3{_ONTO}"
)
_FOLDED = "DELETE FROM usage WHERE hour < ? AND hour % 24 != 0"
_PAGE = (
    "SELECT * FROM usage WHERE hour < ? AND (hour, tenant, model) > (?, ?, ?)"
    " ORDER BY hour, tenant, model LIMIT ?"
)
PAGE_ROWS = 1000  # some milliseconds

_Key = tuple[int, str, str]
Found = tuple[Any, ...]  # hour, tenant, model and the counters


class Ledger(Paged):
    """One process has it open to write. Not for several threads."""

    def __init__(self, path: Path | None) -> None:
        """None keeps it in memory. Raises DataLoss LEDGER_DAMAGED, FailedPrecondition LEDGER_NEWER, LEDGER_IN_USE and
        LEDGER_UNUSABLE.
        """
        self.path = path
        self._lock = -1
        self._unwritten: dict[_Key, Usage] = {}
        self._folded_before = 0
        self._added = 0  # since the last checkpoint
        self._checkpoint: threading.Thread | None = None
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._lock = _locked(path)
            self._database = sqlite3.connect(
                ":memory:" if path is None else path, timeout=_BUSY_S, isolation_level=None
            )
            self._open()
        except FailedPrecondition:
            self._unlock()
            raise
        except (OSError, sqlite3.OperationalError) as error:
            self._unlock()
            raise FailedPrecondition(
                "LEDGER_UNUSABLE",
                f"the usage ledger {path} cannot be opened: {error}; look whether its disk is full, or who has it open",
            ) from None
        except sqlite3.Error as error:
            self._unlock()
            raise DataLoss(
                "LEDGER_DAMAGED",
                f"the usage ledger {path} cannot be read: {error}; move it away to begin a new one",
            ) from None

    def _open(self) -> None:
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        with self._transaction():
            (found,) = self._database.execute("PRAGMA user_version").fetchone()
            if found > FORMAT:
                raise FailedPrecondition(
                    "LEDGER_NEWER",
                    f"the usage ledger {self.path} is of a newer woodfrog; use that, or move it away",
                )
            if found == 0:
                self._database.execute(_SCHEMA)
                self._database.execute(f"PRAGMA user_version = {FORMAT}")

    def add(self, rows: Iterable[Row]) -> None:
        """In one transaction. What the disk does not take is kept, and written with the next."""
        for row in rows:
            key = row.hour, row.tenant, row.model
            before = self._unwritten.get(key)
            self._unwritten[key] = row.usage if before is None else before + row.usage
        if not self._unwritten:
            return
        try:
            with self._transaction():
                for key, usage in self._unwritten.items():
                    self._database.execute(_ADD, (*key, *usage.counters))
                self._fold(max(hour for hour, _, _ in self._unwritten))
        except sqlite3.Error as error:
            log.error("usage not written", extra={"path": str(self.path), "error": str(error)})
            while len(self._unwritten) > _UNWRITTEN_MAX:
                self._unwritten.pop(next(iter(self._unwritten)))
            return
        self._unwritten.clear()
        self._added += 1
        if self._added >= _CHECKPOINT_ADDS and self.path is not None:
            self._begin_checkpoint(self.path)

    def page(self, since_hour: int, until_hour: int, after: Row | None = None) -> list[Row]:
        """At most PAGE_ROWS of the hours from the first up to, not including, the second; `after` the last row of the
        page before, sorted by hour, tenant and model. Raises Unavailable LEDGER_UNREADABLE.
        """
        found = self.read(since_hour, until_hour, after, PAGE_ROWS)
        return [
            Row(hour, tenant, model, Usage(*counters)) for hour, tenant, model, *counters in found
        ]

    def read(
        self, since_hour: int, until_hour: int, after: Row | None, rows_max: int
    ) -> list[Found]:
        """As `page`."""
        try:
            return read(self._database, since_hour, until_hour, after, rows_max)
        except sqlite3.Error as error:
            raise Unavailable(
                "LEDGER_UNREADABLE",
                f"the usage ledger {self.path} cannot be read: {error}; look at its disk",
            ) from None

    def close(self) -> None:
        if self._checkpoint is not None:
            self._checkpoint.join()
        self._database.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _begin_checkpoint(self, path: Path) -> None:
        if self._checkpoint is None or not self._checkpoint.is_alive():
            self._added = 0
            self._checkpoint = threading.Thread(target=_move_log, args=(path,), daemon=True)
            self._checkpoint.start()

    def _fold(self, now_hour: int) -> None:
        """Old hours into their days, once a day."""
        before = fold_before(now_hour)
        if before > self._folded_before:
            self._database.execute(_FOLD, (before,))
            self._database.execute(_FOLDED, (before,))
            self._folded_before = before

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise


def read(
    database: sqlite3.Connection, since_hour: int, until_hour: int, after: Row | None, rows_max: int
) -> list[Found]:
    """As `Ledger.page`. Raises sqlite3.Error."""
    # No model's name is empty, so that nothing sorts before this.
    begin = (since_hour, "", "") if after is None else (after.hour, after.tenant, after.model)
    return database.execute(_PAGE, (until_hour, *begin, rows_max)).fetchall()


def _locked(path: Path) -> int:
    """A descriptor that keeps others out: what two processes add to one ledger would be told, and paid, twice."""
    lock = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise FailedPrecondition(
            "LEDGER_IN_USE",
            f"another process counts in the usage ledger {path}; give each its own, or stop the other",
        ) from None
    return lock


def _move_log(path: Path) -> None:
    """Into the database's file, beside whoever writes. What fails is done by a later one."""
    try:
        with closing(sqlite3.connect(path, timeout=_BUSY_S)) as database:
            database.execute("PRAGMA wal_checkpoint(PASSIVE)")
    except sqlite3.Error as error:
        log.warning("usage log not moved", extra={"path": str(path), "error": str(error)})
