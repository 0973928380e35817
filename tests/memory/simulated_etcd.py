"""A simulated etcd that misbehaves as no real one can be made to: it counts calls, refuses them, and forgets watches."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
from etcd3.etcdrpc import kv_pb2, rpc_pb2, rpc_pb2_grpc


class SimulatedEtcd(rpc_pb2_grpc.KVServicer, rpc_pb2_grpc.WatchServicer):  # type: ignore[misc]
    """Empty. `async with SimulatedEtcd() as etcd`."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()  #: by method
        self.broken = False  #: every call on keys ends with UNAVAILABLE
        self.watches_forgotten = (
            0  #: the first so many watches never say more than that they were created
        )
        self.progress_asked = 0
        self.progress_revision = (
            0  #: when set, told to who asks for progress, before the event at revision 2
        )
        self.endpoint = ""
        self._server: Any = None

    async def __aenter__(self) -> "SimulatedEtcd":
        self._server = grpc.aio.server()
        rpc_pb2_grpc.add_KVServicer_to_server(self, self._server)
        rpc_pb2_grpc.add_WatchServicer_to_server(self, self._server)
        self.endpoint = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    async def Range(self, request: Any, context: Any) -> Any:
        await self._count("Range", context)
        return rpc_pb2.RangeResponse(header=rpc_pb2.ResponseHeader(revision=1))

    async def Put(self, request: Any, context: Any) -> Any:
        await self._count("Put", context)
        return rpc_pb2.PutResponse()

    async def DeleteRange(self, request: Any, context: Any) -> Any:
        await self._count("DeleteRange", context)
        return rpc_pb2.DeleteRangeResponse()

    async def Txn(self, request: Any, context: Any) -> Any:
        await self._count("Txn", context)
        return rpc_pb2.TxnResponse(succeeded=True)

    async def Watch(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        self.calls["Watch"] += 1
        forgotten = self.calls["Watch"] <= self.watches_forgotten
        header = rpc_pb2.ResponseHeader(revision=1)
        async for request in requests:
            asked = not request.HasField("create_request")
            self.progress_asked += asked
            if not asked:
                yield rpc_pb2.WatchResponse(header=header, created=True)
            elif not forgotten:
                told = rpc_pb2.ResponseHeader(revision=self.progress_revision or 1)
                yield rpc_pb2.WatchResponse(header=told, watch_id=-1)
            if forgotten or (self.progress_revision and not asked):
                continue
            put = kv_pb2.KeyValue(key=b"a", create_revision=2, mod_revision=2, version=1)
            yield rpc_pb2.WatchResponse(header=header, events=[kv_pb2.Event(kv=put)])
            await asyncio.Event().wait()

    async def _count(self, method: str, context: Any) -> None:
        self.calls[method] += 1
        if self.broken:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "simulated")
