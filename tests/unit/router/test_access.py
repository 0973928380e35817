"""Whose request it is."""

import pytest

from woodfrog.catalog import CatalogSnapshot, KeyPut, KeyRevoked, TenantPut, TenantRemoved
from woodfrog.errors import Unauthenticated
from woodfrog.model.tenant import Tenant, new_key
from woodfrog.router.access import Access

ACME = Tenant("acme")
KEY, KEPT = new_key("acme", "", 0.0)


def known() -> Access:
    access = Access(required=True)
    access.hear(CatalogSnapshot((), (), (), (ACME,), (KEPT,)))
    return access


def refused(access: Access, authorization: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        access.tenant(authorization)
    return caught.value.reason


def test_a_key_opens_for_its_tenant() -> None:
    assert known().tenant(f"Bearer {KEY}") == ACME
    assert known().tenant(f"bearer  {KEY} ") == ACME


def test_no_key_and_a_wrong_one_are_told_apart() -> None:
    for said in ("", "Bearer", "Bearer ", "Basic abc", KEY):
        assert refused(known(), said) == "MISSING_API_KEY"
    for said in ("none", KEY[:-1] + "!", KEY.replace("wf-", "sk-"), new_key("acme", "", 0.0)[0]):
        assert refused(known(), f"Bearer {said}") == "INVALID_API_KEY"
    forged = KEY[:20] + "A" * 43
    assert refused(known(), f"Bearer {forged}") == "INVALID_API_KEY", "the id alone is no key"


def test_changes_hold_at_once() -> None:
    access = known()
    larger = Tenant("acme", share=2.0)
    access.hear(TenantPut(larger))
    assert access.tenant(f"Bearer {KEY}") == larger
    access.hear(KeyRevoked(KEPT))
    assert refused(access, f"Bearer {KEY}") == "INVALID_API_KEY"
    access.hear(KeyPut(KEPT))
    access.hear(TenantRemoved(larger))
    assert refused(access, f"Bearer {KEY}") == "INVALID_API_KEY"


def test_where_no_keys_are_asked_for_all_are_nobodys() -> None:
    access = Access(required=False)
    assert access.tenant("") is None
    assert access.tenant("Bearer whatever") is None
