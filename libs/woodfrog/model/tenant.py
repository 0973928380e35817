"""Who may ask, and how much: tenants, and the keys by which their requests are known. Pure."""

import hashlib
import hmac
import json
import re
import secrets
from dataclasses import asdict, dataclass
from types import NoneType
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LABEL = re.compile(r"[ -~]{0,100}")
_KEY = re.compile(r"wf-([0-9a-f]{16})-([A-Za-z0-9_-]{43})")
_KEY_ID = re.compile(r"[0-9a-f]{16}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NUMBER_MAX = 1 << 62
FORMAT = 1
SHARE_MIN, SHARE_MAX = 0.01, 100.0
CONCURRENCY_MAX = 1_000_000
A_MINUTE_MAX = 1_000_000_000
LIMITS = {  #: fields of a tenant, and their greatest values
    "concurrency_max": CONCURRENCY_MAX, "requests_per_minute": A_MINUTE_MAX, "tokens_per_minute": A_MINUTE_MAX,
    "tokens_per_month": _NUMBER_MAX, "gpu_seconds_per_month": _NUMBER_MAX, "host_gib_hours_per_month": _NUMBER_MAX,
}  # fmt: skip
_TENANT_TYPES: dict[str, type | tuple[type, ...]] = {
    "name": str, "share": (int, float), "create_time": (int, float), **dict.fromkeys(LIMITS, (int, NoneType)),
}  # fmt: skip
_KEY_TYPES: dict[str, type | tuple[type, ...]] = {
    "key_id": str, "tenant": str, "sha256": str, "label": str, "create_time": (int, float),
}  # fmt: skip


def check_name(name: str) -> str:
    """Itself. Raises ValueError with one sentence."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"tenant {name[:80]!r} is not a name: 1 to 64 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return name


@dataclass(frozen=True, slots=True)
class Tenant:
    """Limits are of each router; None: there is none."""

    name: str
    #: Of the turns, against other tenants', where several wait for one model.
    share: float = 1.0
    concurrency_max: int | None = None  # requests at once
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # of prompts and answers
    tokens_per_month: int | None = None  # a budget, of a calendar month in UTC
    gpu_seconds_per_month: int | None = None  # another, of what its models hold
    host_gib_hours_per_month: int | None = None
    create_time: float = 0.0  # seconds since the epoch

    @property
    def budgets_held(self) -> bool:
        """Whether it has a budget of what models hold."""
        return self.gpu_seconds_per_month is not None or self.host_gib_hours_per_month is not None

    def encode(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True).encode()

    @staticmethod
    def decode(data: bytes) -> "Tenant":
        """Raises ValueError with one sentence."""
        return Tenant(**_fields(data, "tenant", _TENANT_TYPES)).checked()

    def checked(self) -> "Tenant":
        """Itself. Raises ValueError with one sentence."""
        check_name(self.name)
        if not SHARE_MIN <= self.share <= SHARE_MAX:
            raise ValueError(
                f"share is {self.share:g}, it must be {SHARE_MIN:g} to {SHARE_MAX:g} of other tenants'"
            )
        for limit, most in LIMITS.items():
            value = getattr(self, limit)
            if value is not None and not 1 <= value <= most:
                raise ValueError(
                    f"{limit} is {value}, it must be 1 to {most}; leave it out for no limit"
                )
        return self


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is kept of a key: enough to know it, too little to use it."""

    key_id: str  # 16 hex digits, part of the key, safe to show
    tenant: str
    sha256: str  # of the whole key; it has 256 random bits, so no slow hash is needed
    label: str = ""  # for people, printable ASCII
    create_time: float = 0.0  # seconds since the epoch

    def is_of(self, key: str) -> bool:
        """In a time that tells nothing."""
        return hmac.compare_digest(self.sha256, _sha256(key))

    def encode(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True).encode()

    @staticmethod
    def decode(data: bytes) -> "ApiKey":
        """Raises ValueError with one sentence."""
        return ApiKey(**_fields(data, "API key", _KEY_TYPES)).checked()

    def checked(self) -> "ApiKey":
        """Itself. Raises ValueError with one sentence."""
        check_name(self.tenant)
        if not _KEY_ID.fullmatch(self.key_id) or not _SHA256.fullmatch(self.sha256):
            raise ValueError(
                f"API key {self.key_id[:80]!r} is malformed; revoke it and make another"
            )
        if not _LABEL.fullmatch(self.label):
            raise ValueError(
                f"label {self.label[:80]!r} must be at most 100 printable ASCII characters"
            )
        return self


def new_key(tenant: str, label: str, now: float) -> tuple[str, ApiKey]:
    """The key, which is shown once, and what is kept of it. Raises ValueError with one sentence."""
    key = f"wf-{secrets.token_hex(8)}-{secrets.token_urlsafe(32)}"
    return key, ApiKey(key[3:19], tenant, _sha256(key), label, now).checked()


def key_id(key: str) -> str | None:
    """None for what is no key of ours."""
    found = _KEY.fullmatch(key)
    return found[1] if found else None


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()


def _fields(data: bytes, what: str, types: dict[str, Any]) -> dict[str, Any]:
    try:
        value = dict(json.loads(data))
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"{what} is malformed: {data[:200]!r}") from None
    if value.pop("format", None) != FORMAT:
        raise ValueError(f"{what} has another format than this version knows")
    for name, found in value.items():
        if name not in types or not isinstance(found, types[name]) or isinstance(found, bool):
            raise ValueError(f"{what}'s {name[:80]} is {found!r:.80}, which does not belong there")
        if isinstance(found, int | float) and not abs(found) <= _NUMBER_MAX:
            raise ValueError(
                f"{what}'s {name} is {found!r:.80}, it must be finite and fit into 64 bits"
            )
    if missing := {"name", "key_id", "tenant", "sha256"} & types.keys() - value.keys():
        raise ValueError(f"{what} lacks {', '.join(sorted(missing))}")
    return value
