"""Ledgers of several processes as one: sums and pages, which files they are, and nothing lost of one that was killed."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from woodfrog.errors import Unavailable
from woodfrog.metering import Ledger, Ledgers, Row, Usage, bucket
from woodfrog.metering import ledger as ledger_module
from woodfrog.metering import ledgers as module
from woodfrog.metering.ledger import PAGE_ROWS

HOUR = 500_000
ROW = Row(HOUR, "a", "m", Usage(requests=1))
ROWS = st.builds(
    Row,
    hour=st.integers(HOUR, HOUR + 3),
    tenant=st.sampled_from(["", "a", "b"]),
    model=st.sampled_from(["m", "org/m"]),
    usage=st.builds(Usage, requests=st.integers(0, 99), slot_s=st.integers(0, 99).map(float)),
)


def key(row: Row) -> tuple[int, str, str]:
    return row.hour, row.tenant, row.model


def summed(rows: Sequence[Row]) -> list[Row]:
    sums: dict[tuple[int, str, str], Usage] = {}
    for row in rows:
        sums[key(row)] = sums.get(key(row), Usage()) + row.usage
    return [Row(*each, sums[each]) for each in sorted(sums)]


def requests(ledgers: Ledgers) -> int:
    return sum(row.usage.requests for row in ledgers.rows(0, 1 << 40))


@contextmanager
def family(*parts: Sequence[Row]) -> Iterator[Ledgers]:
    """The second is the own one."""
    with tempfile.TemporaryDirectory() as folder:
        each = [Ledger(Path(folder) / f"usage{n}.db") for n in ("", "-2", "-3")[: len(parts)]]
        for ledger, rows in zip(each, parts, strict=True):
            ledger.add(rows)
        with closing(Ledgers(each.pop(1))) as ledgers:
            yield ledgers
        for ledger in each:
            ledger.close()


@pytest.fixture
def ledgers(tmp_path: Path) -> Iterator[Ledgers]:
    with closing(Ledgers(Ledger(tmp_path / "usage.db"))) as ledgers:
        ledgers.own.add([ROW])
        yield ledgers


@contextmanager
def counting(path: Path, root: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that adds to a ledger until it is killed, and has begun."""
    command = [sys.executable, "-m", "tests.unit.metering.counting_process", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    assert process.stdout is not None
    try:
        assert process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


@given(st.tuples(*[st.lists(ROWS, max_size=24)] * 3), st.integers(1, 9), st.integers(0, 4))
@settings(max_examples=30, deadline=None)
def test_pages_have_the_sum_of_all_ledgers_once(
    parts: tuple[list[Row], list[Row], list[Row]], page_rows: int, hours: int
) -> None:
    with pytest.MonkeyPatch.context() as patch, family(*parts) as ledgers:
        patch.setattr(ledger_module, "PAGE_ROWS", page_rows)
        patch.setattr(module, "PAGE_ROWS", page_rows)
        found: list[Row] = []
        while page := ledgers.page(HOUR + 1, HOUR + hours, found[-1] if found else None):
            assert len(page) <= max(page_rows, len(parts))
            found += page
        everything = [row for rows in parts for row in rows]
        assert found == summed([row for row in everything if HOUR < row.hour < HOUR + hours])
        assert list(ledgers.rows(0, 1 << 40)) == summed(everything)


@given(st.randoms(use_true_random=False))
@settings(max_examples=3, deadline=None)
def test_pages_of_their_true_size(chance: random.Random) -> None:
    names = [f"t{n}" for n in range(3 * PAGE_ROWS)]
    parts = [
        [
            Row(HOUR, name, "m", Usage(requests=chance.randrange(9)))
            for name in chance.sample(names, chance.choice([0, 3, PAGE_ROWS, 2 * PAGE_ROWS + 1]))
        ]
        for _ in range(3)
    ]
    with family(*parts) as ledgers:
        found: list[Row] = []
        while page := ledgers.page(0, 1 << 40, found[-1] if found else None):
            assert len(page) <= PAGE_ROWS
            found += page
        assert found == summed([row for rows in parts for row in rows])


@pytest.mark.parametrize("own", ["usage.db", "usage-2.db"])
def test_only_names_of_the_family_are_read(tmp_path: Path, own: str) -> None:
    siblings = {"usage.db", "usage-2.db", "usage-3.db", "usage-12.db"}
    strangers = [
        "usage-backup.db",
        "usage-20261126.db",
        "usage-02.db",
        "usage-2-3.db",
        "usage-.db",
        "usage-2.db.old",
        "usages.db",
    ]
    strangers += ["my-usage.db", "usage-2x.db", "usage2.db", "usage-2.sqlite", "usage--2.db"]
    for name in (*siblings, *strangers):
        with closing(Ledger(tmp_path / name)) as ledger:
            ledger.add([Row(HOUR, name, "m", Usage(requests=1))])
    (tmp_path / "usage-4.db").mkdir()
    with closing(Ledgers(Ledger(tmp_path / own))) as ledgers:
        found = list(ledgers.rows(0, 1 << 40))
    assert {row.tenant for row in found} == siblings
    assert {row.usage.requests for row in found} == {1}


def test_a_ledger_in_memory_has_no_siblings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("usage-2.db", "None", ":memory:"):
        with closing(Ledger(tmp_path / name)) as ledger:
            ledger.add([ROW])
    with closing(Ledgers(Ledger(None))) as ledgers:
        assert requests(ledgers) == 0


def test_siblings_come_and_go_and_nothing_of_them_stays_open(
    tmp_path: Path, ledgers: Ledgers
) -> None:
    path = tmp_path / "usage-2.db"
    path.touch()
    assert requests(ledgers) == 1, "one that its process has only just created"
    for count in (1, 2):
        other = Ledger(path)
        other.add([ROW])
        assert requests(ledgers) == 1 + count
        other.close()
    assert requests(ledgers) == 3
    path.rename(tmp_path / "moved.db")
    with closing(Ledger(path)) as anew:
        assert requests(ledgers) == 1
        anew.add([ROW, ROW])
        assert requests(ledgers) == 3
    for file in tmp_path.glob("usage-2.db*"):
        file.unlink()
    assert requests(ledgers) == 1
    with closing(Ledger(path)) as last:
        last.add([ROW])
    assert requests(ledgers) == 2
    ledgers.close()
    opened = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    assert not [file for file in opened if file.startswith(str(tmp_path))]


def test_one_that_goes_while_the_folder_is_looked_at_has_no_rows(tmp_path: Path) -> None:
    gone = module._Sibling(tmp_path / "usage-2.db", 1)
    assert gone.read(0, 1 << 40, None, 1) == []
    assert not list(tmp_path.iterdir())


def test_reading_one_that_was_closed_changes_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "usage ?#%41-2.db"
    with closing(Ledger(path)) as ledger:
        ledger.add([ROW])
    assert not list(tmp_path.glob("*-wal"))
    before = path.read_bytes(), path.stat().st_mtime_ns
    with closing(Ledgers(Ledger(tmp_path / "usage ?#%41.db"))) as reader:
        assert requests(reader) == 1
        with closing(Ledger(path)) as again:
            assert len(again.page(0, 1 << 40)) == 1
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_of_one_that_was_killed_each_add_is_there(
    tmp_path: Path, ledgers: Ledgers, pytestconfig: pytest.Config
) -> None:
    """By who read it before, by who opens it afterwards, and by its next process while both read."""
    path = tmp_path / "usage-2.db"
    chance = random.Random(7)
    before = 0
    for _ in range(5):
        with counting(path, pytestconfig.rootpath) as process:
            time.sleep(chance.uniform(0, 0.1))
            during = requests(ledgers) - 1
            process.send_signal(signal.SIGKILL)
            assert process.stdout is not None
            told = 1 + len([line for line in process.stdout if line.endswith("\n")])
        added = requests(ledgers) - 1
        assert added % 2 == 0
        assert before < during <= added
        assert told <= (added - before) // 2 <= told + 1
        with closing(Ledgers(Ledger(tmp_path / "usage-3.db"))) as later:
            assert requests(later) == 1 + added
            with closing(Ledger(path)) as again:
                assert sum(row.usage.requests for row in again.rows(0, 1 << 40)) == added
        before = added


def test_of_one_that_is_written_all_is_read_soon(
    tmp_path: Path, ledgers: Ledgers, pytestconfig: pytest.Config
) -> None:
    """An add is one row twice in one transaction: half of it is never seen."""
    before = 1
    with counting(tmp_path / "usage-2.db", pytestconfig.rootpath) as process:
        for _ in range(200):
            begun = time.perf_counter()
            found = requests(ledgers)
            assert time.perf_counter() - begun < 10.0
            assert found >= before
            assert found % 2 == 1
            before = found
            assert process.stdout is not None
            assert process.stdout.readline(), "the one who writes is not held up"
    assert before > 200


def test_who_reads_does_not_keep_a_log_from_its_database(
    tmp_path: Path, ledgers: Ledgers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "_CHECKPOINT_ADDS", 50)
    sizes = []
    with closing(Ledger(tmp_path / "usage-2.db")) as other:
        for number in range(500):
            other.add([Row(HOUR, "", f"m{number % 5}", Usage(requests=1))])
            if other._checkpoint is not None and number % 50 == 49:  # it has begun
                other._checkpoint.join()
            assert requests(ledgers) == 2 + number
            sizes.append((tmp_path / "usage-2.db-wal").stat().st_size)
    assert max(sizes) < 120 * 5000


def test_one_that_cannot_be_read_is_named(tmp_path: Path, ledgers: Ledgers) -> None:
    damaged, newer = tmp_path / "usage-2.db", tmp_path / "usage-3.db"
    damaged.write_bytes(b"frog" * 2000)
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"usage-2\.db cannot be read: file is not") as error:
            ledgers.page(0, 1 << 40)
        assert error.value.reason == "LEDGER_UNREADABLE"
    assert damaged.read_bytes() == b"frog" * 2000
    with closing(Ledgers(Ledger(tmp_path / "usage-4.db"))) as later:  # its own process begins
        assert later.own.page(0, 1 << 40) == []
    damaged.unlink()
    with closing(sqlite3.connect(newer)) as database:
        database.execute("PRAGMA user_version = 2")
    with pytest.raises(Unavailable, match=r"usage-3\.db cannot be read: it is of a newer woodfrog"):
        ledgers.page(0, 1 << 40)
    newer.unlink()
    assert requests(ledgers) == 1


def test_one_that_is_busy_is_not_waited_for(tmp_path: Path, ledgers: Ledgers) -> None:
    path = tmp_path / "usage-2.db"
    with closing(Ledger(path)) as ledger:
        ledger.add([ROW])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        begun = time.perf_counter()
        with pytest.raises(Unavailable, match=r"usage-2\.db cannot be read: database is locked"):
            ledgers.page(0, 1 << 40)
        assert time.perf_counter() - begun < 4.0  # SQLite itself would wait for five
    assert requests(ledgers) == 2


def test_days_of_one_and_hours_of_another_have_the_right_sum(
    tmp_path: Path, ledgers: Ledgers
) -> None:
    now = HOUR + 24 * 100
    with closing(Ledger(tmp_path / "usage-2.db")) as other:
        other.add([ROW, Row(HOUR + 1, "a", "m", Usage(requests=1))])
        ledgers.own.add([Row(now, "a", "m", Usage())])
        found = list(ledgers.rows(0, now))
    assert [row.hour for row in found] == [bucket(HOUR, now), HOUR, HOUR + 1]
    assert {bucket(row.hour, now) for row in found} == {bucket(HOUR, now)}
    assert sum(row.usage.requests for row in found) == 3
