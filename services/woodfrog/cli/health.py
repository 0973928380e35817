"""What a child says of its own health."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from woodfrog.errors import cancellation

SERVING: int = health_pb2.HealthCheckResponse.SERVING


async def ask(address: str, timeout_s: float) -> int | None:
    """A status of grpc.health.v1; None when there was no answer in time."""
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            with cancellation.kept():
                reply = await health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(), timeout=timeout_s
                )
        except grpc.aio.AioRpcError:
            return None
    return int(reply.status)
