"""What decides whether a request is let in: its tenant, what that may ask, and how much."""

from dataclasses import dataclass

from woodfrog.router.access import Access
from woodfrog.router.model_list import ModelList
from woodfrog.router.quotas import Quotas


@dataclass(frozen=True, slots=True)
class Admission:
    models: ModelList
    access: Access
    quotas: Quotas

    def charge(self, tenant: str, tokens: int) -> None:
        """One of its answers took so many. Nothing where there is no such tenant, or no more."""
        known = self.access.named(tenant)
        if known is not None:
            self.quotas.charge(known, tokens)
