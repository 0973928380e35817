"""What a transaction is made of, in etcd's own messages. The stubs carry no types, hence Any."""

from dataclasses import dataclass
from typing import Any

from etcd3.etcdrpc import kv_pb2, rpc_pb2

from woodfrog.coordination.values import Delete, Item, Put, prefix_end
from woodfrog.errors import InvalidArgument

VALUE_BYTES_MAX = 64 << 10  # facts, not data

Guard = Any
Operation = Any


@dataclass(frozen=True, slots=True)
class TxnResult:
    succeeded: bool  # whether all guards held
    revision: int  # of the store afterwards; that of the writes when there were any
    items: tuple[tuple[Item, ...], ...]  # for each operation run: what it read or removed
    uncertain: bool  # an earlier try got no answer and may have been applied

    @property
    def first(self) -> Item | None:
        """What the first operation read or removed, if anything."""
        return self.items[0][0] if self.items and self.items[0] else None


def exists(key: str) -> Guard:
    return rpc_pb2.Compare(
        key=key.encode(),
        target=rpc_pb2.Compare.CREATE,
        result=rpc_pb2.Compare.GREATER,
        create_revision=0,
    )


def unchanged(key: str, mod_revision: int) -> Guard:
    """0 means that the key is not there."""
    return rpc_pb2.Compare(
        key=key.encode(),
        target=rpc_pb2.Compare.MOD,
        result=rpc_pb2.Compare.EQUAL,
        mod_revision=mod_revision,
    )


def created_at(key: str, create_revision: int) -> Guard:
    """Whether it was changed since or not."""
    return rpc_pb2.Compare(
        key=key.encode(),
        target=rpc_pb2.Compare.CREATE,
        result=rpc_pb2.Compare.EQUAL,
        create_revision=create_revision,
    )


def under(key: str, lease: int) -> Guard:
    return rpc_pb2.Compare(
        key=key.encode(),
        target=rpc_pb2.Compare.LEASE,
        result=rpc_pb2.Compare.EQUAL,
        lease=lease,
    )


def write(key: str, value: bytes, lease: int | None = 0) -> Operation:
    """Under `lease`, 0 for none; None keeps the one that the key has."""
    if len(value) > VALUE_BYTES_MAX:
        raise InvalidArgument(
            "VALUE_TOO_LARGE",
            f"value of {key!r} is {len(value)} bytes, the limit is {VALUE_BYTES_MAX}",
            key=key,
        )
    request = rpc_pb2.PutRequest(
        key=key.encode(), value=value, lease=lease or 0, ignore_lease=lease is None
    )
    return rpc_pb2.RequestOp(request_put=request)


def remove(key: str) -> Operation:
    request = rpc_pb2.DeleteRangeRequest(key=key.encode(), prev_kv=True)
    return rpc_pb2.RequestOp(request_delete_range=request)


def remove_prefix(prefix: str) -> Operation:
    assert prefix, "an empty prefix would remove everything"
    start = prefix.encode()
    request = rpc_pb2.DeleteRangeRequest(key=start, range_end=prefix_end(start), prev_kv=True)
    return rpc_pb2.RequestOp(request_delete_range=request)


def read(key: str) -> Operation:
    return rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key.encode()))


def txn_result(response: Any, uncertain: bool) -> TxnResult:
    items = tuple(_touched(answer) for answer in response.responses)
    return TxnResult(response.succeeded, response.header.revision, items, uncertain)


def item(kv: Any) -> Item:
    return Item(kv.key.decode(), kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def change(event: Any) -> Put | Delete:
    if event.type == kv_pb2.Event.DELETE:
        return Delete(event.kv.key.decode(), event.kv.mod_revision)
    return Put(item(event.kv))


def _touched(answer: Any) -> tuple[Item, ...]:
    kvs = [*answer.response_range.kvs, *answer.response_delete_range.prev_kvs]
    return tuple(item(kv) for kv in kvs)
