"""Each class survives the way over gRPC, by a real server and a real channel."""

from collections.abc import AsyncIterator

import pytest

from woodfrog import errors, rpc
from woodfrog.api.node_agent.v1 import replicas_pb2, replicas_pb2_grpc

CLASSES = [
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and cls is not errors.WoodfrogError
]


class Raises(replicas_pb2_grpc.ReplicasServicer):
    error: Exception = ValueError("a secret")

    async def Descend(self, request: object, context: object) -> replicas_pb2.DescendResponse:
        raise self.error

    async def Watch(
        self, request: object, context: object
    ) -> AsyncIterator[replicas_pb2.WatchResponse]:
        yield replicas_pb2.WatchResponse(full=True)
        raise self.error


@pytest.fixture
async def stub() -> AsyncIterator[tuple[replicas_pb2_grpc.ReplicasStub, Raises]]:
    servicer = Raises()
    async with rpc.Server("127.0.0.1:0") as server:
        add = replicas_pb2_grpc.add_ReplicasServicer_to_server
        add(servicer, server.grpc)  # type: ignore[no-untyped-call]
        await server.start()
        async with rpc.open_channel(f"127.0.0.1:{server.port}") as channel:
            stub = replicas_pb2_grpc.ReplicasStub(channel)  # type: ignore[no-untyped-call]
            yield stub, servicer


@pytest.mark.parametrize("cls", CLASSES)
async def test_an_error_arrives_as_the_class_that_was_raised(
    cls: type[errors.WoodfrogError], stub: tuple[replicas_pb2_grpc.ReplicasStub, Raises]
) -> None:
    call, servicer = stub
    servicer.error = cls("SOME_REASON", "it failed because of x; do y", retry_after_s=1.5, name="x")
    with pytest.raises(cls) as caught:
        await rpc.call(call.Descend, replicas_pb2.DescendRequest(), timeout_s=5)
    assert caught.value.reason == "SOME_REASON"
    assert caught.value.message == "it failed because of x; do y"
    assert caught.value.metadata == {"name": "x"}
    assert caught.value.retry_after_s == 1.5


async def test_an_error_in_a_stream_comes_after_what_was_sent(
    stub: tuple[replicas_pb2_grpc.ReplicasStub, Raises],
) -> None:
    call, servicer = stub
    servicer.error = errors.NotFound("GONE", "it is gone")
    messages = rpc.stream(call.Watch, replicas_pb2.WatchRequest())
    assert (await anext(messages)).full
    with pytest.raises(errors.NotFound):
        await anext(messages)


async def test_an_unforeseen_exception_keeps_its_text_to_the_log(
    stub: tuple[replicas_pb2_grpc.ReplicasStub, Raises],
) -> None:
    call, _ = stub
    with pytest.raises(errors.Internal) as caught:
        await rpc.call(call.Descend, replicas_pb2.DescendRequest(), timeout_s=5)
    assert "secret" not in str(caught.value)
    assert "log" in caught.value.message


async def test_a_dead_server_is_unavailable() -> None:
    async with rpc.open_channel("127.0.0.1:1") as channel:
        stub = replicas_pb2_grpc.ReplicasStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(errors.Unavailable, match="the node_agent does not answer") as caught:
            await rpc.call(stub.Descend, replicas_pb2.DescendRequest(), timeout_s=5)
        assert "ipv4" not in caught.value.message
