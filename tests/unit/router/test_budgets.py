"""A month's tokens."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from woodfrog.clock import FakeClock
from woodfrog.errors import ResourceExhausted
from woodfrog.metering import HOUR_S, Ledger, Row, Usage
from woodfrog.model.tenant import Tenant
from woodfrog.router.budgets import Budgets
from woodfrog.router.held import Held

ACME = Tenant("acme", tokens_per_month=100)
LAST_DAY = datetime(2026, 1, 31, 23, tzinfo=UTC).timestamp()


def used(ledger: Ledger, clock: FakeClock, budgets: Budgets, tokens: int) -> None:
    hour = int(clock.wall() // HOUR_S)
    ledger.add([Row(hour, "acme", "m", Usage(prompt_tokens=tokens - 1, completion_tokens=1))])
    budgets.charge("acme", tokens)


def refused(budgets: Budgets) -> bool:
    try:
        budgets.check(ACME)
    except ResourceExhausted as error:
        return error.reason == "INSUFFICIENT_QUOTA"
    return False


def test_a_months_tokens_are_counted_once_over_restarts_and_anew_each_month(tmp_path: Path) -> None:
    clock, ledger = FakeClock(wall=LAST_DAY), Ledger(tmp_path / "usage")
    budgets = Budgets(ledger, Held(ledger, clock), clock)
    used(ledger, clock, budgets, 60)
    used(ledger, clock, budgets, 39)
    assert not refused(budgets)
    assert not refused(Budgets(ledger, Held(ledger, clock), clock))
    used(ledger, clock, budgets, 1)
    assert refused(budgets)
    assert refused(Budgets(ledger, Held(ledger, clock), clock)), "a restart forgets nothing"
    budgets.check(Tenant("acme"))
    budgets.check(Tenant("other", tokens_per_month=1))
    clock.advance(2 * 3600.0)
    assert not refused(budgets), "February began"
    used(ledger, clock, budgets, 100)
    assert refused(budgets)
    ledger.close()


def test_a_clock_that_was_ahead_charges_no_month_twice() -> None:
    clock, ledger = FakeClock(wall=LAST_DAY), Ledger(None)
    budgets = Budgets(ledger, Held(ledger, clock), clock)
    used(ledger, clock, budgets, 40)
    clock.advance(2 * 3600.0)
    used(ledger, clock, budgets, 70)
    assert not refused(Budgets(ledger, Held(ledger, clock), FakeClock(wall=LAST_DAY))), (
        "January has 40"
    )
    ahead = Budgets(ledger, Held(ledger, clock), clock)
    used(ledger, clock, ahead, 30)
    assert refused(ahead), "February has 100"


def test_a_ledger_that_cannot_be_read_refuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    from woodfrog.errors import Unavailable

    clock, ledger = FakeClock(wall=LAST_DAY), Ledger(None)
    budgets = Budgets(ledger, Held(ledger, clock), clock)

    def broken(*_: object) -> list[Row]:
        raise Unavailable("LEDGER_UNREADABLE", "its disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "page", broken)
        budgets.charge("acme", 1000)
        assert not refused(budgets)
    used(ledger, clock, budgets, 100)
    assert not refused(budgets), "it is not read at each request"
    clock.advance(1.0)
    assert refused(budgets)


def test_what_others_did_not_tell_is_found_in_their_ledgers() -> None:
    clock, ledger = FakeClock(wall=LAST_DAY), Ledger(None)
    budgets = Budgets(ledger, Held(ledger, clock), clock)
    assert not refused(budgets)
    hour = int(clock.wall() // HOUR_S)
    ledger.add([Row(hour, "acme", "m", Usage(prompt_tokens=100))])
    assert not refused(budgets)
    budgets.doubt()
    assert not refused(budgets), "it was read this very minute"
    clock.advance(60.0)
    assert refused(budgets)


def test_what_routers_of_other_machines_told_stays_counted() -> None:
    clock, ledger = FakeClock(wall=LAST_DAY), Ledger(None)
    budgets = Budgets(ledger, Held(ledger, clock), clock)
    assert not refused(budgets)
    budgets.charge("acme", 100)
    budgets.doubt()
    clock.advance(60.0)
    assert refused(budgets)
