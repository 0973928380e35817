"""Tenants and their API keys, in etcd. A tenant goes with all its keys in one step, so that no key can open a later one."""

from dataclasses import replace

from woodfrog.catalog import entries
from woodfrog.coordination import Session, operations
from woodfrog.errors import AlreadyExists, InvalidArgument, NotFound
from woodfrog.model import tenant as values
from woodfrog.model.tenant import ApiKey, Tenant


class Tenants:
    """Its calls raise what `Session` raises, and what they name themselves. What this version cannot read is passed over."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def create(self, tenant: Tenant) -> None:
        """Raises AlreadyExists TENANT_EXISTS, InvalidArgument TENANT_INVALID."""
        try:
            await self._session.create(entries.key_of(_checked(tenant)), tenant.encode())
        except AlreadyExists:
            raise AlreadyExists(
                "TENANT_EXISTS",
                f"tenant {tenant.name!r} exists already; change it with `woodfrog tenants set`",
                tenant=tenant.name,
            ) from None

    async def change(self, tenant: Tenant) -> None:
        """All but the time at which it was created. Raises NotFound TENANT_NOT_FOUND, Aborted, InvalidArgument."""
        key = entries.key_of(_checked(tenant))
        item = await self._session.get(key)
        before = entries.decode(key, item.value) if item is not None else None
        if item is None or not isinstance(before, Tenant):
            raise _unknown(tenant.name)
        value = replace(tenant, create_time=before.create_time).encode()
        await self._session.replace(key, value, item.mod_revision)

    async def get(self, name: str) -> Tenant:
        """Raises NotFound TENANT_NOT_FOUND, InvalidArgument."""
        key = entries.key_of(_checked(Tenant(name)))
        item = await self._session.get(key)
        found = entries.decode(key, item.value) if item is not None else None
        if not isinstance(found, Tenant):
            raise _unknown(name)
        return found

    async def remove(self, name: str) -> int:
        """How many keys went with it. Raises NotFound TENANT_NOT_FOUND, InvalidArgument."""
        key, prefix = entries.key_of(_checked(Tenant(name))), entries.keys_prefix(name)
        before = await self._session.list(prefix)
        result = await self._session.txn(
            [operations.exists(key)], [operations.remove_prefix(prefix), operations.remove(key)]
        )
        if not result.succeeded and not result.uncertain:
            raise _unknown(name)
        return len(result.items[0] if result.succeeded else before.items)

    async def all(self) -> tuple[Tenant, ...]:
        """By name."""
        return tuple(
            each for each in await self._entries(entries.TENANTS) if isinstance(each, Tenant)
        )

    async def create_key(self, tenant: str, label: str, now: float) -> tuple[str, ApiKey]:
        """The key, which is kept nowhere, and what is kept of it. Raises NotFound TENANT_NOT_FOUND, InvalidArgument."""
        try:
            key, kept = values.new_key(tenant, label, now)
        except ValueError as error:
            raise InvalidArgument("KEY_INVALID", str(error)) from None
        guard = operations.exists(entries.key_of(Tenant(tenant)))
        written = operations.write(entries.key_of(kept), kept.encode())
        result = await self._session.txn([guard], [written])
        if not result.succeeded:
            raise _unknown(tenant)
        return key, kept

    async def revoke_key(self, key_id: str) -> ApiKey:
        """As it was. A whole key will do, and is in no error. Raises NotFound KEY_NOT_FOUND."""
        key_id = values.key_id(key_id) or key_id
        for key in await self.list_keys():
            if key.key_id == key_id and await self._session.delete(entries.key_of(key)):
                return key
        raise NotFound(
            "KEY_NOT_FOUND",
            f"no API key has the id {key_id[:80]!r}; `woodfrog keys list` shows those there are",
        )

    async def list_keys(self, tenant: str = "") -> tuple[ApiKey, ...]:
        """Of one tenant, or all. Raises InvalidArgument."""
        prefix = entries.KEYS
        if tenant:
            prefix = entries.keys_prefix(_checked(Tenant(tenant)).name)
        return tuple(each for each in await self._entries(prefix) if isinstance(each, ApiKey))

    async def _entries(self, prefix: str) -> list[entries.Entry]:
        found = []
        for item in (await self._session.list(prefix)).items:
            try:
                entry = entries.decode(item.key, item.value)
            except ValueError:
                continue
            if entry is not None:
                found.append(entry)
        return found


def _checked(tenant: Tenant) -> Tenant:
    try:
        return tenant.checked()
    except ValueError as error:
        raise InvalidArgument("TENANT_INVALID", str(error)) from None


def _unknown(name: str) -> NotFound:
    return NotFound(
        "TENANT_NOT_FOUND",
        f"tenant {name!r} is not known; `woodfrog tenants list` shows those that are",
        tenant=name,
    )
