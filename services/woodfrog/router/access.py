"""Whose request it is, by its key."""

from collections.abc import Iterable

from woodfrog import catalog
from woodfrog.errors import Unauthenticated
from woodfrog.model.placement import ANYONE, Caller
from woodfrog.model.tenant import ApiKey, Tenant, key_id

_SCHEME = "bearer "
_MAKE = "`woodfrog keys create TENANT` makes one"


def asker(tenant: Tenant | None, peer: str) -> str:
    """Who has a share of what the router has: the tenant, or where there is none the peer."""
    return peer if tenant is None else tenant.name


def caller_of(tenant: Tenant | None) -> Caller:
    return ANYONE if tenant is None else Caller(tenant.name, tenant.share)


class Access:
    """Tenants and keys as the catalog last said. A key without its tenant opens nothing."""

    def __init__(self, *, required: bool) -> None:
        """Not `required`: keys are not looked at, and requests are nobody's."""
        self.required = required
        self._tenants: dict[str, Tenant] = {}
        self._keys: dict[str, ApiKey] = {}

    def replace(self, tenants: Iterable[Tenant], keys: Iterable[ApiKey]) -> None:
        self._tenants = {tenant.name: tenant for tenant in tenants}
        self._keys = {key.key_id: key for key in keys}

    def hear(self, event: catalog.CatalogEvent) -> None:
        match event:
            case catalog.CatalogSnapshot():
                self.replace(event.tenants, event.keys)
            case catalog.TenantPut(tenant):
                self._tenants[tenant.name] = tenant
            case catalog.TenantRemoved(tenant):
                self._tenants.pop(tenant.name, None)
            case catalog.KeyPut(key):
                self._keys[key.key_id] = key
            case catalog.KeyRevoked(key):
                self._keys.pop(key.key_id, None)

    def tenant(self, authorization: str) -> Tenant | None:
        """None where keys are not looked at. `authorization` is "Bearer KEY". Raises Unauthenticated."""
        if not self.required:
            return None
        scheme, key = authorization[: len(_SCHEME)].lower(), authorization[len(_SCHEME) :].strip()
        if scheme != _SCHEME or not key:
            raise Unauthenticated(
                "MISSING_API_KEY",
                f"the request has no API key: send it as the header Authorization: Bearer KEY; {_MAKE}",
            )
        named = key_id(key)
        found = self._keys.get(named) if named is not None else None
        if found is None or not found.is_of(key) or found.tenant not in self._tenants:
            raise Unauthenticated(
                "INVALID_API_KEY", f"the API key is not known, or was revoked; {_MAKE}"
            )
        return self._tenants[found.tenant]

    @property
    def budgets_held(self) -> bool:
        """Whether anybody has a budget of what models hold."""
        return self.required and any(tenant.budgets_held for tenant in self._tenants.values())

    def named(self, name: str) -> Tenant | None:
        return self._tenants.get(name)

    def label(self, name: str) -> str:
        """`name` for a metric; empty when it is no tenant of ours."""
        return name if name in self._tenants else ""
