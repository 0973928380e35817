"""The ledger: sums, pages, days, and nothing lost or twice when its process is killed."""

import logging
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.metering.counting_process import MODELS, row

from woodfrog.errors import DataLoss, FailedPrecondition
from woodfrog.metering import Ledger, Row, Usage, bucket, hours_in
from woodfrog.metering import ledger as ledgers

HOUR = 500_000
ROWS = st.builds(
    Row,
    hour=st.sampled_from([HOUR, HOUR + 1, HOUR + 24 * 100, HOUR + 24 * 200 + 5]),
    tenant=st.sampled_from(["", "a", "b"]),
    model=st.sampled_from(["m", "org/m"]),
    usage=st.builds(
        Usage,
        requests=st.integers(0, 1 << 40),
        wakes=st.integers(0, 9),
        completion_tokens=st.integers(0, 1 << 30),
        gpu_s=st.integers(0, 1 << 20).map(float),
        host_byte_s=st.integers(0, 1 << 50).map(float),
    ),
)


def everything(ledger: Ledger) -> list[Row]:
    rows: list[Row] = []
    while page := ledger.page(0, 1 << 40, rows[-1] if rows else None):
        rows += page
    return rows


@given(st.lists(st.lists(ROWS, max_size=4), max_size=12))
@settings(max_examples=60, deadline=None)
def test_it_has_the_sum_of_what_was_added_by_hour_or_day(adds: list[list[Row]]) -> None:
    ledger = Ledger(None)
    expected: dict[tuple[int, str, str], Usage] = {}
    for rows in adds:
        ledger.add(rows)
    latest = max((each.hour for rows in adds for each in rows), default=0)
    for each in (each for rows in adds for each in rows):
        key = bucket(each.hour, latest), each.tenant, each.model
        expected[key] = expected.get(key, Usage()) + each.usage
    found = everything(ledger)
    # An hour that is added late stays an hour until the next day's fold: whoever reads buckets again.
    again: dict[tuple[int, str, str], Usage] = {}
    for each in found:
        key = bucket(each.hour, latest), each.tenant, each.model
        again[key] = again.get(key, Usage()) + each.usage
    assert again == expected
    assert [(each.hour, each.tenant, each.model) for each in found] == sorted(
        (each.hour, each.tenant, each.model) for each in found
    )


def test_old_hours_become_days_and_hours_count_them() -> None:
    ledger = Ledger(None)
    first = 24 * 20_000
    ledger.add([Row(first + hour, "", "m", Usage(requests=1)) for hour in (1, 5, 23, 24, 30)])
    now = first + 24 * 60
    ledger.add([Row(now, "", "m", Usage())])
    assert [each.hour - first for each in everything(ledger)][:5] == [1, 5, 23, 24, 30]
    now += 24
    ledger.add([Row(now, "", "m", Usage())])
    found = [(each.hour - first, each.usage.requests) for each in everything(ledger)]
    assert found[:3] == [(0, 3), (24, 1), (30, 1)]
    assert (hours_in(first, now), hours_in(first + 24, now)) == (24, 1)


def test_pages_have_each_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "PAGE_ROWS", 3)
    ledger = Ledger(None)
    rows = [Row(HOUR + n // 4, f"t{n % 2}", f"m{n % 4}", Usage(requests=n)) for n in range(17)]
    ledger.add(rows)
    assert everything(ledger) == sorted(rows, key=lambda r: (r.hour, r.tenant, r.model))
    assert [each.hour for each in ledger.page(HOUR + 1, HOUR + 2)] == [HOUR + 1] * 3


def test_killed_at_any_moment_each_add_is_there_once(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """An add is one row twice in one transaction: never half of it. The last one may be there or not."""
    path = tmp_path / "usage.db"
    command = [sys.executable, "-m", "tests.unit.metering.counting_process", str(path)]
    chance = random.Random(7)
    before: Counter[str] = Counter()
    for _ in range(6):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=pytestconfig.rootpath
        )
        assert process.stdout is not None
        said = [process.stdout.readline()]
        time.sleep(chance.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        said += process.stdout.readlines()
        process.stdout.close()
        process.wait()
        told = len([line for line in said if line.endswith("\n")])
        ledger = Ledger(path)
        found: Counter[str] = Counter()
        for each in everything(ledger):
            found[each.model] += each.usage.requests
            assert each.usage.slot_s == each.usage.requests / 4
        ledger.close()
        added = (found - before).total()
        assert added % 2 == 0
        assert told <= added // 2 <= told + 1
        expected = Counter(row(number).model for number in range(added // 2))
        assert found - before == Counter({model: 2 * n for model, n in expected.items()})
        assert len(found) <= MODELS
        before = found


def test_what_the_disk_does_not_take_is_written_with_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "usage.db"
    monkeypatch.setattr(ledgers, "_BUSY_S", 0.01)
    ledger = Ledger(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with caplog.at_level(logging.ERROR):
        ledger.add([Row(HOUR, "a", "m", Usage(requests=1))])
        ledger.add([Row(HOUR, "a", "m", Usage(requests=1)), Row(HOUR, "b", "m", Usage(wakes=1))])
    assert [record.message for record in caplog.records] == ["usage not written"] * 2
    assert everything(ledger) == []
    other.execute("ROLLBACK")
    ledger.add([Row(HOUR, "a", "m", Usage(requests=1))])
    assert everything(ledger) == [
        Row(HOUR, "a", "m", Usage(requests=3)),
        Row(HOUR, "b", "m", Usage(wakes=1)),
    ]


def test_its_log_goes_into_the_database_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgers, "_CHECKPOINT_ADDS", 50)
    path = tmp_path / "usage.db"
    ledger = Ledger(path)
    sizes = []
    for number in range(500):
        ledger.add([Row(HOUR, "", f"m{number % 5}", Usage(requests=1))])
        if (
            ledger._checkpoint is not None and number % 50 == 49
        ):  # it has begun; a pause of the adds
            ledger._checkpoint.join()
        sizes.append((tmp_path / "usage.db-wal").stat().st_size)
    assert max(sizes) < 120 * 5000
    assert sum(each.usage.requests for each in everything(ledger)) == 500
    ledger.close()
    again = Ledger(path)
    assert sum(each.usage.requests for each in everything(again)) == 500


def test_a_ledger_that_cannot_be_used_is_told_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    path.write_bytes(b"frog" * 2000)
    with pytest.raises(DataLoss, match="move it away to begin a new one"):
        Ledger(path)
    assert path.read_bytes() == b"frog" * 2000
    with pytest.raises(FailedPrecondition, match="look whether its disk is full"):
        Ledger(tmp_path / "usage.db" / "in no folder")
    newer = tmp_path / "newer.db"
    with sqlite3.connect(newer) as database:
        database.execute("PRAGMA user_version = 2")
    with pytest.raises(FailedPrecondition, match="newer woodfrog"):
        Ledger(newer)


def test_a_ledger_is_one_processs(tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    ledger = Ledger(path)
    with pytest.raises(FailedPrecondition, match="another process counts in the usage ledger"):
        Ledger(path)
    ledger.add([Row(HOUR, "a", "m", Usage(requests=1))])
    ledger.close()
    with pytest.MonkeyPatch.context() as patch:  # who looks at it by hand is no damage
        patch.setattr(ledgers, "_BUSY_S", 0.01)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(FailedPrecondition, match="is locked"):
            Ledger(path)
        other.close()
    again = Ledger(path)
    assert len(everything(again)) == 1
    again.close()
