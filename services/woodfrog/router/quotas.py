"""How much each tenant may ask: at once, and a minute. Pure.

Of a minute's allowance each second gives a sixtieth; a whole minute's may be spent at once. Tokens are known when an answer
ends: a request is let in while some are left, and what it took beyond them is made up for before the next. So it is with
what other routers let in meanwhile: they tell of it within some tenths of a second.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from woodfrog.clock import Clock
from woodfrog.errors import ResourceExhausted
from woodfrog.model.placement import TenantUse
from woodfrog.model.tenant import Tenant
from woodfrog.router.shares import Shares

_MINUTE_S = 60.0
_RETRY_S = 1.0  # where others must end first


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float  # on the clock

    def fill(self, per_minute: int, now: float) -> None:
        gained = (now - self.at) * per_minute / _MINUTE_S
        self.left, self.at = min(float(per_minute), self.left + gained), now

    def wait_s(self, wanted: float, per_minute: int) -> float:
        return max(0.0, wanted - self.left) * _MINUTE_S / per_minute


@dataclass(slots=True)
class _Use:
    active: int  # here
    requests: _Bucket
    tokens: _Bucket


class Quotas:
    """Of one router, which counts what others tell too. A tenant that asks nothing for a minute is forgotten."""

    def __init__(
        self, clock: Clock, requests_max: int, changed: Callable[[], None] = lambda: None
    ) -> None:
        """`requests_max` at once, of which each tenant has its share; where there are no tenants, each peer. `changed` is
        called when there is something to `report`.
        """
        self._clock = clock
        self._changed = changed
        self._untold: set[str] = set()  # tenants whose use differs from the last report
        self._begun: Counter[str] = Counter()  # since then, as the next
        self._charged: Counter[str] = Counter()
        self._shares = Shares(requests_max)
        self._uses: dict[str, _Use] = {}
        self._elsewhere: dict[str, int] = {}  # under way at other routers, as last told; never 0
        self._swept = clock.now()

    @contextmanager
    def entered(self, tenant: Tenant | None, who: str) -> Iterator[None]:
        """While one of its requests is served; `who` has the share. Raises ResourceExhausted."""
        use = self._checked(tenant) if tenant is not None else None
        if not self._shares.take(who):
            raise ResourceExhausted(
                "ROUTER_FULL",
                f"{self._shares.of(who)} requests of yours are under way, as many as are left for all others;"
                " ask again soon",
                retry_after_s=_RETRY_S,
            )
        if tenant is None or use is None:
            try:
                yield
            finally:
                self._shares.give(who)
            return
        if tenant.requests_per_minute is not None:
            use.requests.left -= 1
        use.active += 1
        self._begun[tenant.name] += 1
        self._tell_of(tenant.name)
        try:
            yield
        finally:
            self._shares.give(who)
            use.active -= 1
            self._tell_of(tenant.name)

    def charge(self, tenant: Tenant, tokens: int) -> None:
        """Its answer took so many, the prompt's among them."""
        self._take(tenant, 0, tokens)
        self._charged[tenant.name] += tokens
        self._tell_of(tenant.name)

    # --- other routers ---

    def running(self) -> list[TenantUse]:
        """What is under way here."""
        return [TenantUse(name, use.active) for name, use in self._uses.items() if use.active]

    def report(self) -> list[TenantUse]:
        """What changed here since the last report; it counts as sent."""
        uses = [
            TenantUse(name, self._active(name), self._begun[name], self._charged[name])
            for name in sorted(self._untold)
        ]
        for counts in (self._untold, self._begun, self._charged):
            counts.clear()
        return uses

    def clear_elsewhere(self) -> None:
        """Nothing is under way at other routers."""
        self._elsewhere.clear()

    def hear(self, tenant: Tenant | None, use: TenantUse) -> None:
        """What it asked of other routers. None: it is not known (yet, or any more), but that it runs there is kept."""
        self._elsewhere[use.tenant] = use.active
        if use.active <= 0:
            del self._elsewhere[use.tenant]
        if tenant is not None:
            self._take(tenant, use.requests, use.tokens)

    def crowded_out(self, tenant: Tenant) -> bool:
        """Whether it may ask no more at once only because of what runs at other routers."""
        most, active = tenant.concurrency_max, self._active(tenant.name)
        elsewhere = self._elsewhere.get(tenant.name, 0)
        return most is not None and active < most <= active + elsewhere

    def _take(self, tenant: Tenant, requests: int, tokens: int) -> None:
        use, now = self._use(tenant), self._clock.now()
        for taken, per_minute, bucket in (
            (requests, tenant.requests_per_minute, use.requests),
            (tokens, tenant.tokens_per_minute, use.tokens),
        ):
            if taken and per_minute is not None:
                bucket.fill(per_minute, now)
                bucket.left -= taken

    def _tell_of(self, name: str) -> None:
        self._untold.add(name)
        self._changed()

    def _active(self, name: str) -> int:
        use = self._uses.get(name)
        return 0 if use is None else use.active

    # --- limits ---

    def headers(self, tenant: Tenant | None) -> list[tuple[bytes, bytes]]:
        """What is left, in OpenAI's headers."""
        if tenant is None:
            return []
        use, found = self._use(tenant), []
        for name, per_minute, bucket in (
            (b"requests", tenant.requests_per_minute, use.requests),
            (b"tokens", tenant.tokens_per_minute, use.tokens),
        ):
            if per_minute is not None:
                bucket.fill(per_minute, self._clock.now())
                reset_ms = math.ceil(bucket.wait_s(per_minute, per_minute) * 1e3)
                found += [
                    (b"x-ratelimit-limit-" + name, b"%d" % per_minute),
                    (b"x-ratelimit-remaining-" + name, b"%d" % max(0, bucket.left)),
                    (b"x-ratelimit-reset-" + name, b"%dms" % reset_ms),
                ]
        return found

    def _checked(self, tenant: Tenant) -> _Use:
        """Raises ResourceExhausted."""
        now = self._clock.now()
        self._sweep(now)
        use = self._use(tenant)
        most = tenant.concurrency_max
        active = use.active + self._elsewhere.get(tenant.name, 0)
        if most is not None and active >= most:
            raise ResourceExhausted(
                "CONCURRENCY_EXCEEDED",
                f"tenant {tenant.name!r} has {active} requests under way, its limit; ask again when one ended",
                retry_after_s=_RETRY_S,
            )
        for what, per_minute, bucket in (
            ("requests", tenant.requests_per_minute, use.requests),
            ("tokens", tenant.tokens_per_minute, use.tokens),
        ):
            if per_minute is None:
                continue
            bucket.fill(per_minute, now)
            if wait_s := bucket.wait_s(1.0, per_minute):
                raise ResourceExhausted(
                    "RATE_LIMIT_EXCEEDED",
                    f"tenant {tenant.name!r} has used its {per_minute} {what} a minute; ask again in {wait_s:.1f} s",
                    retry_after_s=wait_s,
                    limit=what,
                )
        return use

    def _use(self, tenant: Tenant) -> _Use:
        use = self._uses.get(tenant.name)
        if use is None:
            now = self._clock.now()
            full = math.inf  # until a limit says how much that is
            use = self._uses[tenant.name] = _Use(0, _Bucket(full, now), _Bucket(full, now))
        return use

    def _sweep(self, now: float) -> None:
        if now - self._swept < _MINUTE_S:
            return
        self._swept = now
        # A full bucket is as good as none; debts are kept.
        for name, use in [*self._uses.items()]:
            old = max(use.requests.at, use.tokens.at) < now - _MINUTE_S
            debt = min(use.tokens.left, use.requests.left) < 0
            if not (use.active or debt) and old:
                del self._uses[name]
