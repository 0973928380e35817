"""Tenants and keys: in a real etcd, over gRPC, and at both faces of a router before simulated engines."""

import asyncio
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from tests.capabilities import need
from tests.memory.simulated_scheduler import Climb
from tests.service.etcd import EtcdServer
from tests.service.router_bench import Bench, spec

from woodfrog import rpc
from woodfrog.api.metering.v1 import usages_pb2, usages_pb2_grpc
from woodfrog.api.router.v1 import chats_pb2, chats_pb2_grpc, models_pb2, models_pb2_grpc
from woodfrog.api.scheduler.v1 import tenants_pb2 as pb
from woodfrog.api.scheduler.v1 import tenants_pb2_grpc
from woodfrog.catalog import Catalog, CatalogSnapshot, KeyRevoked, TenantPut
from woodfrog.catalog.tenants import Tenants
from woodfrog.cli import commands
from woodfrog.cli.cluster import Cluster
from woodfrog.cli.tenants import list_keys
from woodfrog.clock import SystemClock
from woodfrog.coordination import Session
from woodfrog.errors import AlreadyExists, InvalidArgument, NotFound
from woodfrog.model.tenant import Tenant, new_key
from woodfrog.scheduler.tenants_service import TenantsServicer

ACME, GLOBEX = Tenant("acme", concurrency_max=2), Tenant("globex", requests_per_minute=2)
(ACME_KEY, ACME_KEPT), (GLOBEX_KEY, GLOBEX_KEPT) = (new_key(t, "", 0.0) for t in ("acme", "globex"))


@need("etcd")
async def test_a_tenant_goes_with_its_keys(session: Session) -> None:
    tenants = Tenants(session)
    await tenants.create(Tenant("acme", create_time=5.0))
    with pytest.raises(AlreadyExists):
        await tenants.create(Tenant("acme"))
    await tenants.change(Tenant("acme", share=3.0, create_time=9.0))
    assert await tenants.all() == (Tenant("acme", share=3.0, create_time=5.0),)
    key, kept = await tenants.create_key("acme", "laptop", 1.0)
    assert await tenants.list_keys() == (kept,)
    assert await tenants.list_keys("acme") == (kept,)
    assert await tenants.list_keys("acm") == (), "a name that begins alike is another"
    other, _ = await tenants.create_key("acme", "", 1.0)
    assert (await tenants.revoke_key(other)).tenant == "acme", "who has the key has its id"
    with pytest.raises(NotFound) as unknown:
        await tenants.revoke_key(other)
    assert other[20:] not in unknown.value.message
    stored = await session.list("/woodfrog/keys/")
    assert all(key[-20:].encode() not in item.value for item in stored.items)
    assert await tenants.remove("acme") == 1
    await tenants.create(Tenant("acme"))
    assert await tenants.list_keys() == (), "an old key opens no later tenant"


@need("etcd")
async def test_what_is_not_there_and_what_is_wrong(session: Session) -> None:
    tenants = Tenants(session)
    for call in (
        tenants.change(Tenant("nobody")),
        tenants.remove("nobody"),
        tenants.get("nobody"),
        tenants.create_key("nobody", "", 0.0),
        tenants.revoke_key("0" * 16),
    ):
        with pytest.raises(NotFound):
            await call
    for wrong in (
        tenants.create(Tenant("a/b")),
        tenants.create(Tenant("a", share=0.0)),
        tenants.remove(""),
        tenants.create_key("a\n", "", 0.0),
    ):
        with pytest.raises(InvalidArgument):
            await wrong


@need("etcd")
async def test_a_tenant_that_is_not_there_has_no_model_and_no_list_of_keys(
    session: Session, etcd: EtcdServer, tmp_path: Path
) -> None:
    await Tenants(session).create(Tenant("acme"))
    cluster = Cluster.open(tmp_path / "home")
    port = int(etcd.endpoint.rpartition(":")[2])
    cluster = replace(cluster, ports={**cluster.ports, "etcd": port})
    with pytest.raises(NotFound, match="tenant 'acmee' is not known"):
        await commands.models_add(cluster, replace(spec("own"), tenant="acmee"), tmp_path)
    with pytest.raises(NotFound, match="tenant 'acmee' is not known"):
        await list_keys(cluster, "acmee")
    await list_keys(cluster, "acme")
    with pytest.raises(InvalidArgument, match=r"no .safetensors file"):
        await commands.models_add(cluster, replace(spec("own"), tenant="acme"), tmp_path)


@need("etcd")
async def test_over_grpc_a_key_is_told_once(session: Session, tmp_path: Path) -> None:
    """At a socket that is its user's alone."""
    folder = tmp_path / "operators"
    async with rpc.Server(f"unix:{folder}/s.sock") as server:
        servicer = TenantsServicer(Tenants(session), SystemClock())
        tenants_pb2_grpc.add_TenantsServicer_to_server(servicer, server.grpc)  # type: ignore[no-untyped-call]
        await server.start("woodfrog.api.scheduler.v1.Tenants")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        async with grpc.aio.insecure_channel(f"unix:{folder}/s.sock") as channel:
            stub: Any = tenants_pb2_grpc.TenantsStub(channel)  # type: ignore[no-untyped-call]
            wanted = pb.Tenant(name="acme", concurrency_max=3)
            await stub.CreateTenant(pb.CreateTenantRequest(tenant=wanted))
            await stub.UpdateTenant(
                pb.UpdateTenantRequest(tenant=pb.Tenant(name="acme", tokens_per_minute=7))
            )
            (told,) = (await stub.ListTenants(pb.ListTenantsRequest())).tenants
            assert (told.name, told.share, told.tokens_per_minute) == ("acme", 1.0, 7)
            assert not told.HasField("concurrency_max"), "an update replaces all limits"
            made = await stub.CreateKey(pb.CreateKeyRequest(tenant="acme", label="x"))
            listed = await stub.ListKeys(pb.ListKeysRequest())
            assert made.key.startswith(f"wf-{made.api_key.key_id}-")
            assert made.key[20:] not in str(listed)
            gone = await stub.RevokeKey(pb.RevokeKeyRequest(key_id=made.api_key.key_id))
            assert gone.api_key == made.api_key
            await stub.DeleteTenant(pb.DeleteTenantRequest(name="acme"))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.CreateKey(pb.CreateKeyRequest(tenant="acme"))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@need("etcd")
async def test_a_router_hears_of_tenants(session: Session, etcd: EtcdServer) -> None:
    tenants = Tenants(session)
    await tenants.create(Tenant("acme"))
    events = Catalog(session).follow()
    first = await anext(events)
    assert isinstance(first, CatalogSnapshot)
    assert first.tenants == (Tenant("acme"),)
    _, kept = await tenants.create_key("acme", "", 0.0)
    await anext(events)
    await tenants.revoke_key(kept.key_id)
    async with asyncio.timeout(60):
        assert await anext(events) == KeyRevoked(kept)
    await events.aclose()


# --- the router ---


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Asks for keys; model `m` is everybody's, `acme-m` acme's."""
    async with Bench.open(tmp_path, auth="keys") as bench:
        own = spec("acme-m", tenant="acme")
        told = CatalogSnapshot((spec("m"), own), (), (), (ACME, GLOBEX), (ACME_KEPT, GLOBEX_KEPT))
        bench.catalog.events.put_nowait(told)
        await bench.until(lambda: bench.catalog.events.empty())
        await bench.ready("a")
        yield bench


def with_key(bench: Bench, key: str) -> openai.AsyncOpenAI:
    return bench.client.with_options(api_key=key)


async def ask(client: openai.AsyncOpenAI, model: str = "m", **more: Any) -> Any:
    message: Any = {"role": "user", "content": "hi"}
    return await client.chat.completions.create(model=model, messages=[message], **more)


async def test_without_a_key_nothing_is_answered(bench: Bench) -> None:
    for key in ("none", ACME_KEY[:-2], new_key("acme", "", 0.0)[0]):
        with pytest.raises(openai.AuthenticationError) as refused:
            await ask(with_key(bench, key))
        assert refused.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            await with_key(bench, key).models.list()
    head, _ = await bench.raw(b"GET /v1/models HTTP/1.1\r\nconnection: close\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401")
    assert not bench.engines["a"].requests
    await ask(with_key(bench, ACME_KEY))


async def test_a_tenants_models_are_its_own(bench: Bench) -> None:
    assert [m.id async for m in with_key(bench, ACME_KEY).models.list()] == ["acme-m", "m"]
    assert [m.id async for m in with_key(bench, GLOBEX_KEY).models.list()] == ["m"]
    with pytest.raises(openai.NotFoundError) as refused:
        await ask(with_key(bench, GLOBEX_KEY), "acme-m")
    assert refused.value.code == "model_not_found", "it does not even tell that it is there"
    with pytest.raises(openai.NotFoundError):
        await with_key(bench, GLOBEX_KEY).models.retrieve("acme-m")


async def test_a_revoked_key_is_refused_at_once(bench: Bench) -> None:
    client = with_key(bench, ACME_KEY)
    stream = await ask(client, stream=True)
    bench.catalog.events.put_nowait(KeyRevoked(ACME_KEPT))
    await bench.until(lambda: bench.catalog.events.empty())
    with pytest.raises(openai.AuthenticationError):
        await ask(client)
    assert [chunk async for chunk in stream], "what is under way goes on"


async def test_limits_are_told_as_openai_tells_them(bench: Bench) -> None:
    client = with_key(bench, GLOBEX_KEY)
    message: Any = {"role": "user", "content": "hi"}
    raw = await client.chat.completions.with_raw_response.create(model="m", messages=[message])
    assert raw.headers["x-ratelimit-limit-requests"] == "2"
    assert raw.headers["x-ratelimit-remaining-requests"] == "1"
    await ask(client)
    with pytest.raises(openai.RateLimitError) as refused:
        await ask(client)
    assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "requests")
    assert 0 < int(refused.value.response.headers["retry-after-ms"]) <= 30_000
    await ask(with_key(bench, ACME_KEY))


async def test_requests_at_once_are_bounded_and_leave_no_trace(bench: Bench) -> None:
    client = with_key(bench, ACME_KEY)
    bench.scheduler.climbs["acme-m"] = climb = Climb()
    waiting = [asyncio.create_task(ask(client, "acme-m")) for _ in range(2)]
    await bench.scheduler.until(lambda s: s.waiting == 2)
    assert {each.tenant for each in bench.scheduler.acquires} == {"acme"}
    with pytest.raises(openai.RateLimitError) as refused:
        await ask(client)
    assert refused.value.code == "concurrency_exceeded"
    await ask(with_key(bench, GLOBEX_KEY))
    for each in waiting:
        each.cancel()
    await asyncio.wait(waiting)
    await bench.scheduler.until(lambda s: s.waiting == 0)
    climb.finish.set()
    await ask(client)


async def test_grpc_asks_for_the_same_key(bench: Bench) -> None:
    request = chats_pb2.CreateRequest()
    request.chat.model = "m"
    request.chat.messages.add(role="user", content="hi")
    async with grpc.aio.insecure_channel(bench.grpc) as channel:
        chats: Any = chats_pb2_grpc.ChatsStub(channel)  # type: ignore[no-untyped-call]
        models: Any = models_pb2_grpc.ModelsStub(channel)  # type: ignore[no-untyped-call]
        for call, message in (
            (chats.Create, request),
            (models.ListModels, models_pb2.ListModelsRequest()),
            (models.GetModel, models_pb2.GetModelRequest(model="m")),
        ):
            for metadata in ((), (("authorization", "Bearer none"),)):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call(message, metadata=metadata)
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            await call(message, metadata=(("authorization", f"Bearer {ACME_KEY}"),))


async def test_usage_is_the_tenants_and_counts_against_its_limit(bench: Bench) -> None:
    poor = replace(GLOBEX, requests_per_minute=None, tokens_per_minute=10)
    bench.catalog.events.put_nowait(TenantPut(poor))
    await bench.until(lambda: bench.catalog.events.empty())
    async with with_key(bench, GLOBEX_KEY) as globex, with_key(bench, ACME_KEY) as acme:
        await ask(globex)  # 13 tokens
        with pytest.raises(
            openai.RateLimitError, match="has used its 10 tokens a minute"
        ) as refused:
            await ask(globex)
        assert refused.value.type == "tokens"
        await ask(acme)
        async with grpc.aio.insecure_channel(bench.grpc) as channel:
            stub: Any = usages_pb2_grpc.UsagesStub(channel)  # type: ignore[no-untyped-call]
            request = usages_pb2.ListRequest()  # all there is
            metadata = (("authorization", f"Bearer {GLOBEX_KEY}"),)
            pages = [page async for page in stub.List(request, metadata=metadata)]
            (row,) = [row for page in pages for row in page.usages]
            assert (row.tenant, row.requests) == ("globex", 1)
            assert row.prompt_tokens + row.completion_tokens == 13
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anext(aiter(stub.List(request)))
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
