"""How much each tenant may ask: at once, and a minute. Pure.

Of a minute's allowance each second gives a sixtieth; a whole minute's may be spent at once. Tokens are known when an answer
ends: a request is let in while some are left, and what it took beyond them is made up for before the next.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from woodfrog.clock import Clock
from woodfrog.errors import ResourceExhausted
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
    active: int
    requests: _Bucket
    tokens: _Bucket


class Quotas:
    """Of one router. A tenant that asks nothing for a minute is forgotten."""

    def __init__(self, clock: Clock, requests_max: int) -> None:
        """`requests_max` at once, of which each tenant has its share; where there are no tenants, each peer."""
        self._clock = clock
        self._shares = Shares(requests_max)
        self._uses: dict[str, _Use] = {}
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
        if use is not None:
            use.requests.left -= 1
            use.active += 1
        try:
            yield
        finally:
            self._shares.give(who)
            if use is not None:
                use.active -= 1

    def charge(self, tenant: Tenant, tokens: int) -> None:
        """Its answer took so many, the prompt's among them."""
        if tenant.tokens_per_minute is not None:
            use = self._use(tenant)
            use.tokens.fill(tenant.tokens_per_minute, self._clock.now())
            use.tokens.left -= tokens

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
        if most is not None and use.active >= most:
            raise ResourceExhausted(
                "CONCURRENCY_EXCEEDED",
                f"tenant {tenant.name!r} has {use.active} requests under way, its limit; ask again when one ended",
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
            if not use.active and old and use.tokens.left >= 0:
                del self._uses[name]
