"""Tenants and keys as values."""

import json
from dataclasses import replace

import pytest

from woodfrog.model.tenant import ApiKey, Tenant, key_id, new_key


def test_they_come_back_as_they_were() -> None:
    tenant = Tenant("acme", 2.5, 7, 60, 10_000, 1 << 40, 3600, 24, 1.5)
    assert Tenant.decode(tenant.encode()) == tenant
    assert Tenant.decode(b'{"format": 1, "name": "acme"}') == Tenant("acme")
    _, key = new_key("acme", "laptop of A.", 3.0)
    assert ApiKey.decode(key.encode()) == key


def test_a_key_is_known_by_its_text_alone_and_its_text_is_not_kept() -> None:
    key, kept = new_key("acme", "", 0.0)
    assert key_id(key) == kept.key_id
    assert kept.is_of(key)
    secret = key[20:]  # itself it may have dashes
    assert secret.encode() not in kept.encode()
    other, _ = new_key("acme", "", 0.0)
    assert other != key
    for wrong in (other, key[:-1], key + "x", key.upper(), "", "none", "wf-", "é" * 100):
        assert not kept.is_of(wrong)
    for wrong in ("none", "wf-12-x", key + "\n", key[:-1], "sk-" + key):
        assert key_id(wrong) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": ""}, "is not a name"),
        ({"name": "a/b"}, "is not a name"),
        ({"name": "x" * 65}, "is not a name"),
        ({"share": 0.0}, "share is 0"),
        ({"share": float("nan")}, "share is nan"),
        ({"concurrency_max": 0}, "concurrency_max is 0"),
        ({"requests_per_minute": -1}, "requests_per_minute is -1"),
        ({"tokens_per_month": 1 << 63}, "tokens_per_month is"),
    ],
)
def test_wrong_limits_are_refused_in_a_sentence(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(Tenant("acme"), **change).checked()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [
        [], "x", None, {}, {"format": 2, "name": "a"}, {"format": 1}, {"format": 1, "name": 3},
        {"format": 1, "name": "a", "share": True}, {"format": 1, "name": "a", "share": 1e400},
        {"format": 1, "name": "a", "more": 1},
    ],
)  # fmt: skip
def test_what_is_no_tenant_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="tenant"):
        Tenant.decode(json.dumps(value).encode())


def test_labels_are_short_and_printable() -> None:
    for label in ("x" * 101, "a\nb", "é"):
        with pytest.raises(ValueError, match="label"):
            new_key("acme", label, 0.0)
