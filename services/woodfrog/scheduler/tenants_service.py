"""Tenants and keys over gRPC: between messages and the catalog."""

import grpc

from woodfrog.api.scheduler.v1 import tenants_pb2 as pb
from woodfrog.api.scheduler.v1 import tenants_pb2_grpc
from woodfrog.catalog.tenants import Tenants
from woodfrog.clock import Clock
from woodfrog.model.tenant import LIMITS, ApiKey, Tenant

Context = grpc.aio.ServicerContext[object, object]


class TenantsServicer(tenants_pb2_grpc.TenantsServicer):
    def __init__(self, tenants: Tenants, clock: Clock) -> None:
        self._tenants = tenants
        self._clock = clock

    async def CreateTenant(
        self, request: pb.CreateTenantRequest, context: Context
    ) -> pb.CreateTenantResponse:
        await self._tenants.create(_tenant(request.tenant, self._clock.wall()))
        return pb.CreateTenantResponse()

    async def UpdateTenant(
        self, request: pb.UpdateTenantRequest, context: Context
    ) -> pb.UpdateTenantResponse:
        await self._tenants.change(_tenant(request.tenant, self._clock.wall()))
        return pb.UpdateTenantResponse()

    async def DeleteTenant(
        self, request: pb.DeleteTenantRequest, context: Context
    ) -> pb.DeleteTenantResponse:
        return pb.DeleteTenantResponse(keys=await self._tenants.remove(request.name))

    async def ListTenants(
        self, request: pb.ListTenantsRequest, context: Context
    ) -> pb.ListTenantsResponse:
        return pb.ListTenantsResponse(tenants=map(_tenant_to_pb, await self._tenants.all()))

    async def CreateKey(
        self, request: pb.CreateKeyRequest, context: Context
    ) -> pb.CreateKeyResponse:
        now = self._clock.wall()
        key, kept = await self._tenants.create_key(request.tenant, request.label, now)
        return pb.CreateKeyResponse(key=key, api_key=_key_to_pb(kept))

    async def RevokeKey(
        self, request: pb.RevokeKeyRequest, context: Context
    ) -> pb.RevokeKeyResponse:
        return pb.RevokeKeyResponse(
            api_key=_key_to_pb(await self._tenants.revoke_key(request.key_id))
        )

    async def ListKeys(self, request: pb.ListKeysRequest, context: Context) -> pb.ListKeysResponse:
        return pb.ListKeysResponse(
            keys=map(_key_to_pb, await self._tenants.list_keys(request.tenant))
        )


def _tenant(message: pb.Tenant, now: float) -> Tenant:
    limits = {name: getattr(message, name) for name in LIMITS if message.HasField(name)}
    share = message.share if message.HasField("share") else 1.0
    return Tenant(message.name, share, **limits, create_time=now)


def _tenant_to_pb(tenant: Tenant) -> pb.Tenant:
    limits = {name: getattr(tenant, name) for name in LIMITS}
    return pb.Tenant(name=tenant.name, share=tenant.share, **limits, create_time=tenant.create_time)


def _key_to_pb(key: ApiKey) -> pb.ApiKey:
    return pb.ApiKey(
        key_id=key.key_id, tenant=key.tenant, label=key.label, create_time=key.create_time
    )
