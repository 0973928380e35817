"""The catalog on a real etcd."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import pytest
from tests.capabilities import need
from tests.service.etcd import EtcdServer

from woodfrog.catalog import (
    Catalog,
    CatalogEvent,
    CatalogSnapshot,
    ModelPut,
    ModelRemoved,
    NodeGone,
    NodePut,
    NodeRecord,
    SnapshotPut,
    SnapshotRemoved,
    entries,
)
from woodfrog.coordination import Session
from woodfrog.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from woodfrog.model import digest
from woodfrog.model.snapshot import Fingerprint, SnapshotPointer
from woodfrog.model.spec import ModelSpec

pytestmark = need("etcd")
WAIT_S = 60.0
WEIGHTS = digest.of_bytes(b"weights")
SPEC = ModelSpec("org/m", WEIGHTS, 7, engine_args={"dtype": "bfloat16", "threads": [1, 2]})


def _pointer(model: str, node: str, content: bytes) -> SnapshotPointer:
    fingerprint = Fingerprint({"cpu": node}, {"engine": "transformers"}, WEIGHTS)
    return SnapshotPointer(model, digest.of_bytes(content), fingerprint, 7, 1.25)


POINTER = _pointer("org/m", "a", b"first")


@pytest.fixture
def catalog(session: Session) -> Catalog:
    return Catalog(session)


async def test_models(catalog: Catalog) -> None:
    await catalog.add_model(SPEC)
    assert await catalog.get_model("org/m") == SPEC
    with pytest.raises(AlreadyExists) as exists:
        await catalog.add_model(replace(SPEC, slots=1))
    assert exists.value.reason == "MODEL_EXISTS"
    with pytest.raises(InvalidArgument):
        await catalog.add_model(replace(SPEC, name="../x"))
    await catalog.add_model(replace(SPEC, name="b"))
    assert [spec.name for spec in await catalog.list_models()] == ["b", "org/m"]
    with pytest.raises(NotFound) as unknown:
        await catalog.get_model("org")
    assert unknown.value.reason == "MODEL_NOT_FOUND"


async def test_removing_a_model_removes_its_snapshots_and_no_others(catalog: Catalog) -> None:
    for name in ("org", "org/m"):
        await catalog.add_model(replace(SPEC, name=name))
    mine = [_pointer("org", node, b"x") for node in "ab"]
    other = _pointer("org/m", "a", b"x")
    for pointer in (*mine, other):
        assert await catalog.put_snapshot(pointer) is None
    removed = await catalog.remove_model("org")
    assert sorted(removed, key=repr) == sorted(mine, key=repr)
    assert await catalog.list_snapshots() == (other,)
    assert [spec.name for spec in await catalog.list_models()] == ["org/m"]
    with pytest.raises(NotFound):
        await catalog.remove_model("org")


async def test_a_model_has_one_snapshot_per_fingerprint(catalog: Catalog) -> None:
    await catalog.add_model(SPEC)
    assert await catalog.put_snapshot(POINTER) is None
    assert await catalog.put_snapshot(POINTER) is None
    newer = _pointer("org/m", "a", b"second")
    assert await catalog.put_snapshot(newer) == POINTER
    other = _pointer("org/m", "b", b"third")
    await catalog.put_snapshot(other)
    assert {*(p.manifest for p in await catalog.list_snapshots("org/m"))} == {
        newer.manifest,
        other.manifest,
    }


async def test_a_snapshot_of_an_unknown_model_is_refused(catalog: Catalog) -> None:
    """As when the model is removed while its checkpoint is made."""
    with pytest.raises(NotFound) as unknown:
        await catalog.put_snapshot(POINTER)
    assert unknown.value.reason == "MODEL_NOT_FOUND"
    assert await catalog.list_snapshots() == ()


async def test_snapshots_put_at_once_leave_one_and_name_all_others(catalog: Catalog) -> None:
    await catalog.add_model(SPEC)
    pointers = [_pointer("org/m", "a", bytes([i])) for i in range(4)]
    replaced = await asyncio.gather(*(catalog.put_snapshot(pointer) for pointer in pointers))
    left = await catalog.list_snapshots()
    assert len(left) == 1
    named = {pointer.manifest for pointer in (*replaced, *left) if pointer}
    assert named == {pointer.manifest for pointer in pointers}


async def test_a_damaged_snapshot_is_removed_once_and_never_its_successor(
    catalog: Catalog,
) -> None:
    await catalog.add_model(SPEC)
    await catalog.put_snapshot(POINTER)
    removed = await asyncio.gather(*(catalog.remove_snapshot(POINTER) for _ in range(5)))
    assert sorted(removed) == [False] * 4 + [True]
    newer = _pointer("org/m", "a", b"second")
    await catalog.put_snapshot(newer)
    assert not await catalog.remove_snapshot(POINTER)
    assert await catalog.list_snapshots() == (newer,)


async def test_follow_tells_all_in_order(catalog: Catalog) -> None:
    await catalog.add_model(SPEC)
    node = NodeRecord("node-1", "127.0.0.1:1")
    async with aclosing(catalog.follow()) as events:
        assert await _next(events) == CatalogSnapshot((SPEC,), (), ())
        async with catalog.register_node(node, ttl_s=2):
            assert await _next(events) == NodePut(node)
            assert await catalog.list_nodes() == (node,)
            await catalog.put_snapshot(POINTER)
            assert await _next(events) == SnapshotPut(POINTER)
            await catalog.remove_model("org/m")
            gone = [await _next(events), await _next(events)]
            assert sorted(gone, key=repr) == [ModelRemoved(SPEC), SnapshotRemoved(POINTER)]
            await catalog.add_model(SPEC)
            assert await _next(events) == ModelPut(SPEC)
        assert await _next(events) == NodeGone(node)
        assert await catalog.list_nodes() == ()


async def test_follow_goes_on_after_a_restart_of_etcd(etcd: EtcdServer, catalog: Catalog) -> None:
    async with aclosing(catalog.follow()) as events:
        await _next(events)
        etcd.kill9()
        await etcd.start()
        await catalog.add_model(SPEC)
        assert await _next(events) == ModelPut(SPEC)
    assert await catalog.get_model("org/m") == SPEC


async def test_what_cannot_be_read_is_passed_over_with_one_warning(
    session: Session, catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    await catalog.add_model(SPEC)
    await session.put(entries.model_key("newer"), b'{"format": 2, "name": "newer"}')
    await session.put("/woodfrog/nodes/garbage", b"\xff")
    for _ in range(2):
        assert await catalog.list_models() == (SPEC,)
    async with aclosing(catalog.follow()) as events:
        assert await _next(events) == CatalogSnapshot((SPEC,), (), ())
        await session.put("/woodfrog/nodes/garbage", b"")
        await session.delete("/woodfrog/nodes/garbage")
        await catalog.add_model(replace(SPEC, name="b"))
        assert await _next(events) == ModelPut(replace(SPEC, name="b"))
    with pytest.raises(FailedPrecondition) as unreadable:
        await catalog.get_model("newer")
    assert unreadable.value.reason == "MODEL_UNREADABLE"
    warned = [r.key for r in caplog.records if r.message == "catalog entry cannot be read"]  # type: ignore[attr-defined]
    assert warned == [
        "/woodfrog/models/newer",
        "/woodfrog/nodes/garbage",
        "/woodfrog/nodes/garbage",
    ]
    assert await catalog.remove_model("newer") == ()


async def _next(events: AsyncIterator[CatalogEvent]) -> CatalogEvent:
    return await asyncio.wait_for(anext(events), WAIT_S)
