"""How much a tenant may ask."""

from contextlib import ExitStack

import pytest

from woodfrog.clock import FakeClock
from woodfrog.errors import ResourceExhausted
from woodfrog.model.placement import TenantUse
from woodfrog.model.tenant import Tenant
from woodfrog.router.quotas import Quotas


def refused(quotas: Quotas, tenant: Tenant) -> ResourceExhausted:
    with pytest.raises(ResourceExhausted) as caught, quotas.entered(tenant, tenant.name):
        pass
    return caught.value


def test_requests_at_once() -> None:
    quotas, acme = Quotas(FakeClock(), 100), Tenant("acme", concurrency_max=2)
    with quotas.entered(acme, "acme"), quotas.entered(acme, "acme"):
        assert refused(quotas, acme).reason == "CONCURRENCY_EXCEEDED"
        with quotas.entered(Tenant("other", concurrency_max=2), "other"):
            pass
    with quotas.entered(acme, "acme"):
        pass


def test_what_other_routers_let_in_counts() -> None:
    clock = FakeClock()
    quotas = Quotas(clock, 100)
    acme = Tenant("acme", concurrency_max=3, requests_per_minute=60, tokens_per_minute=600)
    quotas.hear(acme, TenantUse("acme", active=2, requests=2, tokens=0))
    with quotas.entered(acme, "acme"):
        assert "3 requests under way" in refused(quotas, acme).message
        quotas.clear_elsewhere()
        with quotas.entered(acme, "acme"):
            pass
    quotas.hear(acme, TenantUse("acme", active=0, requests=60))
    error = refused(quotas, acme)  # 4 too many, and one more
    assert error.retry_after_s == pytest.approx(5.0)
    assert error.metadata["limit"] == "requests"
    clock.advance(5.0)
    with quotas.entered(acme, "acme"):
        pass
    clock.advance(60.0)
    quotas.hear(acme, TenantUse("acme", active=0, tokens=700))
    error = refused(quotas, acme)
    assert error.retry_after_s == pytest.approx(10.1)
    assert error.metadata["limit"] == "tokens"


def test_who_is_crowded_out_by_other_routers() -> None:
    quotas, acme = Quotas(FakeClock(), 100), Tenant("acme", concurrency_max=2)
    assert not quotas.crowded_out(acme)
    quotas.hear(acme, TenantUse("acme", active=1))
    assert not quotas.crowded_out(acme)
    with quotas.entered(acme, "acme"):
        assert quotas.crowded_out(acme)
        assert not quotas.crowded_out(Tenant("acme")), "there is no limit"
        assert not quotas.crowded_out(Tenant("acme", concurrency_max=1)), "it would not help"


def test_what_runs_elsewhere_is_known_of_tenants_that_are_not() -> None:
    """A router may hear of a tenant's requests before it hears of the tenant, and of their end when it was removed."""
    quotas, acme = Quotas(FakeClock(), 100), Tenant("acme", concurrency_max=1)
    quotas.hear(None, TenantUse("acme", active=1, requests=1))
    assert refused(quotas, acme).reason == "CONCURRENCY_EXCEEDED"
    quotas.hear(None, TenantUse("acme", active=0))
    with quotas.entered(acme, "acme"):
        pass


def test_other_routers_are_told_what_was_let_in_here() -> None:
    calls: list[None] = []
    quotas, acme = Quotas(FakeClock(), 100, lambda: calls.append(None)), Tenant("acme")
    with quotas.entered(acme, "acme"):
        assert quotas.report() == [TenantUse("acme", 1, 1)]
        assert quotas.report() == []
        with quotas.entered(acme, "acme"):
            quotas.charge(acme, 7)
            assert quotas.running() == [TenantUse("acme", 2)]
    assert quotas.report() == [TenantUse("acme", 0, 1, 7)]
    assert quotas.running() == []
    assert len(calls) == 5
    with quotas.entered(None, "a peer"):
        pass
    assert quotas.report() == [], "that is nobody's"


def test_a_debt_to_other_routers_is_not_forgotten() -> None:
    clock = FakeClock()
    quotas, acme = Quotas(clock, 100), Tenant("acme", requests_per_minute=60)
    quotas.hear(acme, TenantUse("acme", active=0, requests=1000))
    clock.advance(200.0)
    with quotas.entered(Tenant("other"), "other"):
        pass  # sweeps
    assert refused(quotas, acme).retry_after_s == pytest.approx(741.0)


def test_requests_a_minute_come_back_as_time_goes() -> None:
    clock = FakeClock()
    quotas, acme = Quotas(clock, 100), Tenant("acme", requests_per_minute=30)
    for _ in range(30):
        with quotas.entered(acme, "acme"):
            pass
    error = refused(quotas, acme)
    assert error.reason == "RATE_LIMIT_EXCEEDED"
    assert error.retry_after_s == pytest.approx(2.0)
    clock.advance(2.0)
    with quotas.entered(acme, "acme"):
        pass
    refused(quotas, acme)
    clock.advance(3600.0)
    for _ in range(30):
        with quotas.entered(acme, "acme"):
            pass
    refused(quotas, acme)


def test_tokens_are_paid_after_and_debts_are_worked_off() -> None:
    clock = FakeClock()
    quotas, acme = Quotas(clock, 100), Tenant("acme", tokens_per_minute=600)
    with quotas.entered(acme, "acme"):
        quotas.charge(acme, 900)
    error = refused(quotas, acme)
    assert error.retry_after_s == pytest.approx(30.1)
    clock.advance(30.2)
    with quotas.entered(acme, "acme"):
        pass
    quotas.charge(acme, 600_000)
    clock.advance(200.0)
    with quotas.entered(Tenant("other"), "other"):
        pass
    refused(quotas, acme)


def test_one_tenant_leaves_half_of_the_router_to_others() -> None:
    quotas, flood, other = Quotas(FakeClock(), 8), Tenant("flood"), Tenant("other")
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(quotas.entered(flood, "flood"))
        assert refused(quotas, flood).reason == "ROUTER_FULL"
        for _ in range(2):
            stack.enter_context(quotas.entered(other, "other"))
        refused(quotas, other)


def test_without_tenants_each_peer_has_its_share() -> None:
    quotas = Quotas(FakeClock(), 8)
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(quotas.entered(None, "192.0.2.1"))
        with pytest.raises(ResourceExhausted, match="4 requests of yours"):
            stack.enter_context(quotas.entered(None, "192.0.2.1"))
        for _ in range(2):
            stack.enter_context(quotas.entered(None, "192.0.2.2"))
    for _ in range(100):
        with quotas.entered(None, "192.0.2.1"):
            pass


def test_what_is_left_is_told_in_openais_headers() -> None:
    clock = FakeClock()
    quotas, acme = Quotas(clock, 8), Tenant("acme", requests_per_minute=60)
    with quotas.entered(acme, "acme"):
        assert dict(quotas.headers(acme)) == {
            b"x-ratelimit-limit-requests": b"60",
            b"x-ratelimit-remaining-requests": b"59",
            b"x-ratelimit-reset-requests": b"1000ms",
        }
    assert quotas.headers(Tenant("other")) == []
    assert quotas.headers(None) == []


def test_other_limits_hold_from_the_next_request_on() -> None:
    quotas = Quotas(FakeClock(), 8)
    with quotas.entered(Tenant("acme"), "acme"):
        pass
    with quotas.entered(Tenant("acme", requests_per_minute=1), "acme"):
        pass
    refused(quotas, Tenant("acme", requests_per_minute=1))


def test_what_was_asked_without_a_limit_is_no_debt_to_one_that_comes_back() -> None:
    quotas = Quotas(FakeClock(), 8)
    limited, free = Tenant("acme", requests_per_minute=2), Tenant("acme")
    with quotas.entered(limited, "acme"):
        pass
    for _ in range(100):
        with quotas.entered(free, "acme"):
            pass
    with quotas.entered(limited, "acme"):
        pass
    assert refused(quotas, limited).retry_after_s == pytest.approx(30.0)
