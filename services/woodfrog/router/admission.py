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
