"""Model specs, snapshot pointers and the nodes that are there, in etcd."""

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from woodfrog.catalog import entries
from woodfrog.catalog.entries import Entry, NodeRecord
from woodfrog.catalog.events import CatalogEvent, View
from woodfrog.coordination import Election, Item, Registration, Session, operations
from woodfrog.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from woodfrog.model.snapshot import SnapshotPointer
from woodfrog.model.spec import ModelSpec

log = logging.getLogger(__name__)

TRIES_MAX = 5
WARNED_MAX = 1000


class Catalog:
    """Its calls raise what `Session` raises, and what they name themselves.

    An entry that this version cannot read is passed over with one warning.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._warned: set[tuple[str, int]] = set()

    async def add_model(self, spec: ModelSpec) -> None:
        """Raises AlreadyExists MODEL_EXISTS, InvalidArgument."""
        try:
            spec.checked()
        except ValueError as error:
            raise InvalidArgument("MODEL_SPEC_INVALID", str(error), model=spec.name) from None
        try:
            await self._session.create(entries.model_key(spec.name), spec.encode())
        except AlreadyExists:
            raise AlreadyExists(
                "MODEL_EXISTS",
                f"model {spec.name!r} exists already; remove it first or choose another name",
                model=spec.name,
            ) from None

    async def get_model(self, name: str) -> ModelSpec:
        """Raises NotFound MODEL_NOT_FOUND, FailedPrecondition MODEL_UNREADABLE."""
        item = await self._session.get(entries.model_key(name))
        if item is None:
            raise _unknown(name)
        entry = self._read(item)
        if not isinstance(entry, ModelSpec):
            raise FailedPrecondition(
                "MODEL_UNREADABLE",
                f"model {name!r} is stored in a form that this version cannot read; remove it and add it again",
                model=name,
            )
        return entry

    async def list_models(self) -> tuple[ModelSpec, ...]:
        found = await self._list(entries.MODELS)
        return tuple(entry for entry in found if isinstance(entry, ModelSpec))

    async def remove_model(self, name: str) -> tuple[SnapshotPointer, ...]:
        """Its snapshot pointers, removed in the same step. Raises NotFound MODEL_NOT_FOUND."""
        key, prefix = entries.model_key(name), entries.snapshots_prefix(name)
        before = await self._session.list(prefix)
        result = await self._session.txn(
            [operations.exists(key)], [operations.remove_prefix(prefix), operations.remove(key)]
        )
        if not result.succeeded and not result.uncertain:
            raise _unknown(name)
        # When the answer that said what was removed is lost, the list before it is as good as it gets.
        items = result.items[0] if result.succeeded else before.items
        found = (self._read(item) for item in items)
        return tuple(entry for entry in found if isinstance(entry, SnapshotPointer))

    async def put_snapshot(self, pointer: SnapshotPointer) -> SnapshotPointer | None:
        """The other pointer of the same fingerprint whose place it took. Raises NotFound MODEL_NOT_FOUND, Aborted."""
        key, model_key = entries.key_of(pointer), entries.model_key(pointer.model)
        value = pointer.encode()
        for _ in range(TRIES_MAX):
            before = await self._session.get(key)
            guards = [
                operations.exists(model_key),
                operations.unchanged(key, before.mod_revision if before else 0),
            ]
            then = [operations.write(key, value)]
            otherwise = [operations.read(key), operations.read(model_key)]
            result = await self._session.txn(guards, then, otherwise)
            found = result.first
            if result.succeeded or (result.uncertain and found and found.value == value):
                replaced = self._read(before) if before else None
                if isinstance(replaced, SnapshotPointer) and replaced != pointer:
                    return replaced
                return None
            if not result.items[1]:
                raise _unknown(pointer.model)
        raise Aborted(
            "SNAPSHOT_CONTENDED",
            f"the snapshot of model {pointer.model!r} was replaced {TRIES_MAX} times meanwhile; try again",
            model=pointer.model,
        )

    async def list_snapshots(self, model: str | None = None) -> tuple[SnapshotPointer, ...]:
        prefix = entries.SNAPSHOTS if model is None else entries.snapshots_prefix(model)
        found = await self._list(prefix)
        return tuple(entry for entry in found if isinstance(entry, SnapshotPointer))

    async def remove_snapshot(self, pointer: SnapshotPointer) -> bool:
        """False when it was gone already or another had taken its place, which stays. Of many callers one gets True."""
        key = entries.key_of(pointer)
        item = await self._session.get(key)
        if item is None or self._read(item) != pointer:
            return False
        try:
            return await self._session.delete(key, item.mod_revision)
        except Aborted:
            return False

    async def list_nodes(self) -> tuple[NodeRecord, ...]:
        found = await self._list(entries.NODES)
        return tuple(entry for entry in found if isinstance(entry, NodeRecord))

    def register_node(self, record: NodeRecord, ttl_s: int) -> Registration:
        """`async with` it: the node is listed from entering to leaving, and until `ttl_s` after a crash."""
        return Registration(self._session, entries.key_of(record), record.encode(), ttl_s)

    def candidate(self, scheduler: str, ttl_s: int) -> Election:
        """For the leadership of all schedulers; `run` it."""
        return Election(self._session, entries.LEADER, scheduler.encode(), ttl_s)

    async def follow(self) -> AsyncGenerator[CatalogEvent, None]:
        """A CatalogSnapshot, then each change. Use it in `contextlib.aclosing`; `Session.follow` says how it ends."""
        view = View(self._read)
        async with aclosing(self._session.follow(entries.ROOT)) as changes:
            async for change in changes:
                event = view.handle(change)
                if event is not None:
                    yield event

    async def _list(self, prefix: str) -> list[Entry]:
        listing = await self._session.list(prefix)
        found = (self._read(item) for item in listing.items)
        return [entry for entry in found if entry is not None]

    def _read(self, item: Item) -> Entry | None:
        try:
            return entries.decode(item.key, item.value)
        except ValueError as error:
            version = (item.key, item.mod_revision)
            if version not in self._warned:
                if len(self._warned) >= WARNED_MAX:
                    self._warned.clear()
                self._warned.add(version)
                extra = {"key": item.key, "reason": str(error)}
                log.warning("catalog entry cannot be read", extra=extra)
            return None


def _unknown(name: str) -> NotFound:
    return NotFound(
        "MODEL_NOT_FOUND",
        f"model {name!r} is not known; `woodfrog models list` shows those that are",
        model=name,
    )
