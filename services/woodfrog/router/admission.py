"""What decides whether a request is let in: its tenant, what that may ask, and how much."""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from woodfrog.model.placement import TenantUse
from woodfrog.model.tenant import Tenant
from woodfrog.router.access import Access
from woodfrog.router.budgets import Budgets
from woodfrog.router.model_list import ModelList
from woodfrog.router.quotas import Quotas

_LOOK_S, _LOOKS = 0.01, 20  # 0.2 s, in which an end at another router is told


@dataclass(frozen=True, slots=True)
class Admission:
    models: ModelList
    access: Access
    quotas: Quotas
    budgets: Budgets

    async def told(self, tenant: Tenant | None) -> None:
        """Before `entered`: what keeps a tenant's request out may have ended at another router, and not be told yet."""
        for _ in range(_LOOKS):
            if tenant is None or not self.quotas.crowded_out(tenant):
                return
            await asyncio.sleep(_LOOK_S)

    @contextmanager
    def entered(self, tenant: Tenant | None, who: str) -> Iterator[None]:
        """While one of its requests is read and served. Raises ResourceExhausted."""
        if tenant is not None:
            self.budgets.check(tenant)
        with self.quotas.entered(tenant, who):
            yield

    def charge(self, tenant: str, tokens: int) -> None:
        """One of its answers took so many. Nothing where there is no such tenant, or no more."""
        known = self.access.named(tenant)
        if known is not None:
            self.quotas.charge(known, tokens)
            self.budgets.charge(tenant, tokens)

    # --- other routers: `schedulers.TenantUses` ---

    def running(self) -> Iterable[TenantUse]:
        return self.quotas.running()

    def report(self) -> Iterable[TenantUse]:
        return self.quotas.report()

    def hear(self, elsewhere: Iterable[TenantUse], *, full: bool) -> None:
        if full:
            self.quotas.clear_elsewhere()
            self.budgets.doubt()
        for use in elsewhere:
            known = self.access.named(use.tenant)
            self.quotas.hear(known, use)
            if known is not None:
                self.budgets.charge(use.tenant, use.tokens)
