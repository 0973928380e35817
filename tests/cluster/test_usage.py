"""What a real cluster records is what was asked and held, over kills of those who record it."""

import asyncio
import stat
import time

import grpc

from tests.cluster.conftest import NAME, Running, wait
from tests.cluster.test_faults import QUESTION, _woodfrog
from woodfrog.api.scheduler.v1 import tenants_pb2, tenants_pb2_grpc
from woodfrog.clients.usages import UsagesClient
from woodfrog.metering import Usage
from woodfrog.model.spec import ModelSpec

MEMORY_BYTES = ModelSpec(NAME, "", 0).memory_bytes  # as the fixture leaves it


def used(running: Running, model: str = NAME) -> Usage:
    """Of all times, by the router and the node; the node's up to now."""

    async def work() -> Usage:
        found = Usage()
        cluster = running.cluster
        for address in (cluster.operators("router"), cluster.address("node_agent")):
            async with UsagesClient(address) as usages:
                rows = await usages.list(0, 1 << 40)
            found = sum((row.usage for row in rows if row.model == model), found)
        return found

    return asyncio.run(work())


def test_each_request_is_counted_once_and_a_replica_for_as_long_as_it_was_there(
    frog: Running,
) -> None:
    frog.freeze()
    before = used(frog)
    earliest = time.monotonic()
    raw = frog.client.chat.completions.with_raw_response.create(
        model=NAME, messages=[{"role": "user", "content": QUESTION}], max_tokens=4
    )
    told = raw.parse().usage
    assert told is not None
    there = time.monotonic()
    stream = frog.client.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": QUESTION}], max_tokens=4, stream=True
    )
    assert list(stream)
    begun = time.monotonic()
    first = used(frog)
    latest = time.monotonic()
    assert first.requests - before.requests == 2
    assert first.wakes - before.wakes == 1
    assert first.prompt_tokens - before.prompt_tokens == 2 * told.prompt_tokens
    assert first.completion_tokens - before.completion_tokens == 2 * told.completion_tokens
    held_s = (first.host_byte_s - before.host_byte_s) / MEMORY_BYTES
    assert begun - there <= held_s <= latest - earliest

    frog.kill9("router")
    frog.kill9("node_agent")  # its replicas end with it
    wait(lambda: not frog.replicas(), "no replica")
    gone = time.monotonic()
    second = used(frog)
    assert second.requests == first.requests
    assert second.completion_tokens == first.completion_tokens
    held_s = (second.host_byte_s - first.host_byte_s) / MEMORY_BYTES
    assert 0 <= held_s <= gone - begun

    frog.ask(QUESTION)
    third = used(frog)
    assert third.requests - second.requests == 1
    assert third.wakes - second.wakes == 1
    assert third.host_byte_s > second.host_byte_s
    shown = _woodfrog(frog, "usage", "--by", "model")
    assert shown.returncode == 0, shown.stderr
    assert NAME in shown.stdout
    lines = _woodfrog(frog, "usage", "--csv").stdout.splitlines()
    assert lines[0].startswith("tenant,model,requests,failed,wakes,")
    (line,) = [line for line in lines if line.startswith(f"-,{NAME},")]
    assert int(line.split(",")[2]) == third.requests


def test_keys_are_made_where_only_operators_get(frog: Running) -> None:
    cluster = frog.cluster
    sockets = [*cluster.operators_dir.iterdir()]
    assert {each.name for each in sockets} == {"router.sock", "scheduler.sock"}
    assert stat.S_IMODE(cluster.operators_dir.stat().st_mode) == 0o700
    for address, code in (
        (cluster.operators("scheduler"), grpc.StatusCode.OK),
        (cluster.address("scheduler"), grpc.StatusCode.UNIMPLEMENTED),
        (cluster.address("router"), grpc.StatusCode.UNIMPLEMENTED),
    ):
        with grpc.insecure_channel(address) as channel:
            stub = tenants_pb2_grpc.TenantsStub(channel)  # type: ignore[no-untyped-call]
            call = stub.ListTenants.future(tenants_pb2.ListTenantsRequest(), timeout=30)
            assert call.code() is code, address
