"""A gRPC server asked as grpcurl asks it: by what it tells of itself. These block: call them in a thread."""

from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

_WAIT_S = 60.0


def services(address: str) -> set[str]:
    """Our own, that it lists."""
    with grpc.insecure_channel(address) as channel:
        listed = ProtoReflectionDescriptorDatabase(channel).get_services()
    return {name for name in listed if name.startswith("woodfrog.")}


def serves(address: str, service: str) -> bool:
    """By its health. Raises grpc.RpcError, NOT_FOUND for what it does not know."""
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=_WAIT_S)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def ask(address: str, service: str, method: str, asked: dict[str, Any]) -> dict[str, Any]:
    """A unary call, JSON in and out. Raises grpc.RpcError."""
    with grpc.insecure_channel(address) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        found = pool.FindServiceByName(service).FindMethodByName(method)
        request = ParseDict(asked, GetMessageClass(found.input_type)(), descriptor_pool=pool)
        call = channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(found.output_type).FromString,
        )
        return dict(MessageToDict(call(request, timeout=_WAIT_S)))
