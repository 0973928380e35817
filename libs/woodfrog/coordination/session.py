"""The session: reads, guarded writes, watches and leases of one process."""

from collections.abc import AsyncGenerator, Sequence

from etcd3.etcdrpc import rpc_pb2

from woodfrog.clock import Clock, SystemClock
from woodfrog.coordination import operations, watch
from woodfrog.coordination.connection import Connection
from woodfrog.coordination.lease import Lease
from woodfrog.coordination.operations import Guard, Operation, TxnResult
from woodfrog.coordination.values import Change, Item, Listing, prefix_end
from woodfrog.errors import Aborted, AlreadyExists, WoodfrogError

PAGE_ITEMS = 500
LIST_TRIES_MAX = 3
SILENCE_S = 10.0  # one small message a watch


class Session:
    """`async with Session(["127.0.0.1:2379"]) as session`.

    Entering waits for etcd and raises Unavailable when it does not answer in time. So does every call. A write that
    raised Unavailable may have been applied. A watch without news for `silence_s` asks whether it lives, and is made
    anew when it hears nothing for as long again.
    """

    def __init__(
        self, endpoints: Sequence[str], clock: Clock | None = None, silence_s: float = SILENCE_S
    ) -> None:
        self.connection = Connection(endpoints, clock or SystemClock(), silence_s)

    async def __aenter__(self) -> "Session":
        self.connection.open()
        try:
            await self.get("woodfrog")  # a linearizable read: there is a quorum
        except BaseException:
            await self.connection.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.connection.close()

    async def get(self, key: str) -> Item | None:
        request = rpc_pb2.RangeRequest(key=key.encode())
        response, _ = await self.connection.call_again(self.connection.kv.Range, request)
        return operations.item(response.kvs[0]) if response.kvs else None

    async def list(self, prefix: str) -> Listing:
        """Read in pages, all at one revision."""
        for _ in range(LIST_TRIES_MAX):
            listing = await self._list_pages(prefix)
            if listing is not None:
                return listing
        raise Aborted(
            "LISTING_COMPACTED",
            f"the list of {prefix!r} was overtaken by compaction {LIST_TRIES_MAX} times; try again",
        )

    async def _list_pages(self, prefix: str) -> Listing | None:
        """None when the revision of the first page was compacted before the last was read."""
        items: list[Item] = []
        revision = 0  # the newest, then pinned
        while True:
            request = rpc_pb2.RangeRequest(
                key=items[-1].key.encode() + b"\0" if items else prefix.encode() or b"\0",
                range_end=prefix_end(prefix.encode()),
                revision=revision,
                limit=PAGE_ITEMS,
            )
            try:
                response, _ = await self.connection.call_again(self.connection.kv.Range, request)
            except WoodfrogError as error:
                if error.reason == "ETCD_OUT_OF_RANGE":
                    return None
                raise
            revision = revision or response.header.revision
            items.extend(operations.item(kv) for kv in response.kvs)
            if not response.more:
                return Listing(tuple(items), revision)

    async def put(self, key: str, value: bytes, lease: int = 0) -> int:
        """Whatever was there before. Returns the mod_revision; tried once."""
        request = operations.write(key, value, lease).request_put
        response = await self.connection.call(self.connection.kv.Put, request)
        revision: int = response.header.revision
        return revision

    async def create(self, key: str, value: bytes, lease: int = 0) -> int:
        """Returns the mod_revision. Raises AlreadyExists.

        If an answer is lost and the key then holds this very value, it counts as created here. The lost try may still
        come, after a cut of any length, and make the key again if it was deleted meanwhile; where that must not be,
        keep the key and use `replace`, whose revision never comes again, or a lease.
        """
        result = await self.txn(
            [operations.unchanged(key, 0)],
            [operations.write(key, value, lease)],
            [operations.read(key)],
        )
        if result.succeeded:
            return result.revision
        found = result.first
        if result.uncertain and found and (found.value, found.lease) == (value, lease):
            return found.mod_revision
        raise AlreadyExists("KEY_EXISTS", f"key {key!r} exists already", key=key)

    async def replace(self, key: str, value: bytes, mod_revision: int) -> int:
        """Returns the new mod_revision; the key keeps its lease. Raises Aborted when `mod_revision` is not current."""
        write = operations.write(key, value, lease=None)
        result = await self.txn(
            [operations.unchanged(key, mod_revision)], [write], [operations.read(key)]
        )
        if result.succeeded:
            return result.revision
        found = result.first
        if result.uncertain and found and found.value == value:
            return found.mod_revision
        raise _lost(key, mod_revision, found)

    async def delete(self, key: str, mod_revision: int | None = None) -> bool:
        """Whether it was there. With `mod_revision` raises Aborted when that is not current; without, tried once."""
        if mod_revision is None:
            request = operations.remove(key).request_delete_range
            response = await self.connection.call(self.connection.kv.DeleteRange, request)
            return bool(response.deleted)
        result = await self.txn(
            [operations.unchanged(key, mod_revision)],
            [operations.remove(key)],
            [operations.read(key)],
        )
        if result.succeeded or (result.uncertain and result.first is None):
            return True
        if result.first is None:
            return False
        raise _lost(key, mod_revision, result.first)

    async def txn(
        self,
        guards: Sequence[Guard],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
    ) -> TxnResult:
        """`then` if all guards hold, else `otherwise`, in one step.

        Repeated when an answer is lost, so the guards must fail once `then` was applied, or `then` be harmless twice.
        """
        assert guards, "an unguarded transaction cannot be repeated"
        request = rpc_pb2.TxnRequest(compare=guards, success=then, failure=otherwise)
        response, uncertain = await self.connection.call_again(self.connection.kv.Txn, request)
        return operations.txn_result(response, uncertain)

    def watch(self, prefix: str, start_revision: int) -> AsyncGenerator[Change, None]:
        """Each change under `prefix` from `start_revision` on, once and in order, across breaks of any length.

        Where history was compacted, a Listing takes the place of what is missing. Ends only by raising Unavailable
        when the session closes. Use it in `contextlib.aclosing`.
        """
        assert start_revision > 0
        return watch.changes(self, prefix, start_revision)

    def follow(self, prefix: str) -> AsyncGenerator[Change, None]:
        """A Listing, then each change after it. Like `watch`; waits for an etcd that is away."""
        return watch.changes(self, prefix, None)

    async def grant(self, ttl_s: int) -> Lease:
        """A lease that is kept alive until `aclose`."""
        return await Lease.grant(self.connection, ttl_s)


def _lost(key: str, mod_revision: int, found: Item | None) -> Aborted:
    state = f"is at revision {found.mod_revision}" if found else "is gone"
    return Aborted("KEY_CHANGED", f"key {key!r} {state}, not at revision {mod_revision}", key=key)
