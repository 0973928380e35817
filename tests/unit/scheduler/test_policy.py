"""Where a climb goes, and whom it may lower."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.scheduler.cell import (
    GIB,
    OTHER_PRINT,
    PRINT,
    facts,
    pointer,
    replica,
    resident,
    spec,
)

from woodfrog.model.node import NodeFacts, ReplicaState
from woodfrog.model.rung import Rung
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler.estimates import Estimates
from woodfrog.scheduler.forecasts import Placement, PlaceRequest
from woodfrog.scheduler.policy import Eviction, NoCapacity, find, make_room, place
from woodfrog.scheduler.rates import Rates
from woodfrog.scheduler.view import ClusterView, ModelRecord, NodeRecord, fingerprint_key

FROG = spec()
RATES = Rates()
ESTIMATES = Estimates(RATES)
SNAPSHOT = pointer(FROG)
SNAPSHOTS = {fingerprint_key(PRINT): SNAPSHOT}


def view(*told: NodeFacts) -> ClusterView:
    built = ClusterView()
    built.models = {"frog": ModelRecord(FROG)}
    for each in told:
        built.put_node(each.node, NodeRecord(each, fingerprint_key(each.fingerprint)))
    return built


def lies(cluster: ClusterView, node: str, page_cache: float = 1.0, disk: float = 1.0) -> None:
    """Weights and snapshot, in that measure."""
    for manifest, size in (
        (FROG.weights, FROG.weights_bytes),
        (SNAPSHOT.manifest, SNAPSHOT.size_bytes),
    ):
        cluster.put_residents(node, [resident(manifest, size, disk, page_cache)])


def placed(request: PlaceRequest, cluster: ClusterView) -> Placement:
    found = place(request, cluster, ESTIMATES)
    assert isinstance(found, Placement), found
    return found


def test_the_warmer_node_wins() -> None:
    cluster = view(facts("a"), facts("b"), facts("c"))
    lies(cluster, "b", page_cache=0.0)
    lies(cluster, "c")
    assert placed(PlaceRequest(FROG, SNAPSHOTS), cluster).node == "c"
    cluster.nodes["c"].silent = True
    found = placed(PlaceRequest(FROG, SNAPSHOTS), cluster)
    assert (found.node, found.rung, found.snapshot) == ("b", Rung.FROZEN, SNAPSHOT)
    cluster.nodes["b"].silent = True
    assert placed(PlaceRequest(FROG, SNAPSHOTS), cluster).rung is Rung.STORED


def test_a_restore_tells_between_which_nodes_it_was_decided() -> None:
    cluster = view(facts("a", 16 * GIB), facts("b"), facts("c"))
    lies(cluster, "a")
    lies(cluster, "b", page_cache=0.5)
    found = placed(PlaceRequest(FROG, SNAPSHOTS), cluster)
    assert found.node == "b"
    full, chosen, empty = found.seen
    assert full == ("a", SNAPSHOT.size_bytes, None, "full")
    assert chosen == ("b", SNAPSHOT.size_bytes // 2, found.predicted_s, "")
    assert empty.page_cache_bytes == 0
    assert empty.predicted_s is not None
    assert empty.predicted_s > found.predicted_s
    assert placed(PlaceRequest(FROG), cluster).seen == ()  # a cold start


def test_weights_and_process_come_at_the_same_time() -> None:
    cluster = view(facts("a"))
    weights_s = FROG.weights_bytes / RATES.store_bytes_s
    pages_s = SNAPSHOT.size_bytes / RATES.store_bytes_s + RATES.restore_s
    found = placed(PlaceRequest(FROG, SNAPSHOTS), cluster)
    assert found.predicted_s == pytest.approx(max(weights_s, pages_s))
    assert placed(PlaceRequest(FROG), cluster).predicted_s == RATES.cold_s


def test_a_snapshot_of_another_kind_of_node_is_no_snapshot_there() -> None:
    cluster = view(facts("a", fingerprint=OTHER_PRINT), facts("b"))
    found = placed(PlaceRequest(FROG, SNAPSHOTS), cluster)
    assert (found.node, found.snapshot) == ("b", SNAPSHOT)
    cluster.nodes["b"].silent = True
    found = placed(PlaceRequest(FROG, SNAPSHOTS), cluster)
    assert (found.node, found.snapshot, found.rung) == ("a", None, Rung.ABSENT)


def test_of_several_snapshots_each_node_gets_its_own() -> None:
    cluster = view(facts("a", fingerprint=OTHER_PRINT), facts("b"))
    for each in (SNAPSHOT, pointer(FROG, OTHER_PRINT), replace(SNAPSHOT, model="toad")):
        cluster.put_pointer(each)
    pointers = cluster.pointers(FROG)
    assert {each.manifest for each in pointers.values()} == {
        SNAPSHOT.manifest,
        pointer(FROG, OTHER_PRINT).manifest,
    }
    found = placed(PlaceRequest(FROG, pointers), cluster)
    assert found.snapshot == pointer(FROG, OTHER_PRINT)
    assert cluster.pointers(replace(FROG, weights=spec("new").weights)) == {}


def test_equals_go_to_the_emptier_node_then_by_name() -> None:
    cluster = view(facts("b"), facts("a"), facts("c"))
    assert placed(PlaceRequest(FROG), cluster).node == "a"
    cluster.put_replica(replica("t1", spec("toad"), "a"), 0.0)
    assert placed(PlaceRequest(FROG), cluster).node == "b"
    cluster.nodes["b"].reserved_count = 1
    assert placed(PlaceRequest(FROG), cluster).node == "c"


def test_of_equals_the_one_whose_memory_has_least_to_hold() -> None:
    toad, newt = spec("toad", weights_bytes=9 * GIB), spec("newt", weights_bytes=GIB)
    cluster = view(facts("a"), facts("b"))
    cluster.put_residents("a", [resident(toad.weights, toad.weights_bytes)])
    cluster.put_residents("b", [resident(newt.weights, newt.weights_bytes)])
    for name, model, node in (("t1", toad, "a"), ("n1", newt, "b"), ("n2", newt, "b")):
        cluster.put_replica(replica(name, model, node, ReplicaState.PARKED), 0.0)
    assert placed(PlaceRequest(FROG), cluster).node == "b"


def test_a_thaw_needs_no_room() -> None:
    cluster = view(facts("a", 16 * GIB))
    cluster.put_replica(replica("f1", FROG, "a", ReplicaState.PARKED), 0.0)
    found = placed(PlaceRequest(FROG, new=False), cluster)
    assert (found.replica_id, found.rung) == ("f1", Rung.PARKED)
    excluded = PlaceRequest(FROG, excluded_replicas=frozenset({"f1"}))
    assert isinstance(place(excluded, cluster, ESTIMATES), NoCapacity)


def test_nothing_is_thawed_on_a_node_that_drains() -> None:
    cluster = view(facts("a", draining=True))
    cluster.put_replica(replica("f1", FROG, "a", ReplicaState.PARKED), 0.0)
    assert isinstance(place(PlaceRequest(FROG, new=False), cluster, ESTIMATES), NoCapacity)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"draining": True}, "draining"),
        ({"memory_promised_bytes": 13 * GIB}, "full"),
        ({"replica_count_max": 1}, "full"),
        ({"memory_bytes": 3 * GIB}, "too small"),
        ({"tenants": ("acme",)}, "for other models"),
        ({"memory_bytes": 3 * GIB, "draining": True}, "too small"),
    ],
)
def test_no_capacity_says_why(told: dict[str, object], why: str) -> None:
    cluster = view(replace(facts("a"), **told))  # type: ignore[arg-type]
    cluster.put_replica(replica("t1", spec("toad"), "a"), 0.0)
    found = place(PlaceRequest(FROG), cluster, ESTIMATES)
    assert isinstance(found, NoCapacity)
    assert found.sentence == f"1 node is {why}"


def test_room_comes_from_as_few_as_needed_and_never_from_those_in_use() -> None:
    toad = spec("toad")
    cluster = view(facts("a", 16 * GIB))
    for number, quiet in enumerate([False, True, True, True]):
        record = cluster.put_replica(replica(f"t{number}", toad, "a"), float(-number))
        record.quiet = quiet
    found = make_room(PlaceRequest(replace(FROG, memory_bytes=6 * GIB)), cluster, ESTIMATES)
    assert isinstance(found, Eviction)
    assert found.victims == ("t3", "t2")  # the longest idle first
    large = PlaceRequest(replace(FROG, memory_bytes=13 * GIB))
    assert isinstance(make_room(large, cluster, ESTIMATES), NoCapacity)


def test_room_is_not_made_at_the_cost_of_the_same_model() -> None:
    cluster = view(facts("a", 16 * GIB))
    cluster.put_replica(replica("f1", FROG, "a"), 0.0).quiet = True
    assert isinstance(make_room(PlaceRequest(FROG), cluster, ESTIMATES), NoCapacity)


def test_room_is_made_where_the_snapshot_lies_rather_than_bringing_it_elsewhere() -> None:
    cluster = view(facts("a", 16 * GIB), facts("b"))
    lies(cluster, "a")
    idle = cluster.put_replica(replica("t1", spec("toad"), "a", ReplicaState.PARKED), 0.0)
    idle.quiet = True
    request = PlaceRequest(FROG, SNAPSHOTS)
    assert placed(request, cluster).rung is Rung.STORED
    found = find(request, cluster, ESTIMATES)
    assert isinstance(found, Eviction)
    assert (found.placement.node, found.placement.rung) == ("a", Rung.FROZEN)
    assert found.victims == ("t1",)
    idle.kept = True  # it is to be kept hot
    assert find(request, cluster, ESTIMATES) == placed(request, cluster)


def test_no_room_is_made_where_that_is_hardly_sooner() -> None:
    cluster = view(facts("a", 16 * GIB), facts("b"))
    cluster.put_residents("a", [resident(SNAPSHOT.manifest, SNAPSHOT.size_bytes, 1.0, 0.0)])
    for node in ("a", "b"):
        cluster.put_residents(node, [resident(FROG.weights, FROG.weights_bytes, 1.0, 0.0)])
    cluster.put_replica(replica("t1", spec("toad"), "a"), 0.0).quiet = True
    request = PlaceRequest(FROG, SNAPSHOTS)
    made = make_room(request, cluster, ESTIMATES)
    assert isinstance(made, Eviction)
    seconds = made.placement.predicted_s + RATES.lower_s
    elsewhere = placed(request, cluster)
    assert seconds < elsewhere.predicted_s < 2 * seconds
    assert find(request, cluster, ESTIMATES) == elsewhere


NODES = st.lists(
    st.tuples(
        st.integers(0, 16),  # GiB in all
        st.integers(0, 16),  # promised
        st.integers(0, 4),  # reserved
        st.integers(0, 3),  # replicas at most
        st.booleans(),  # draining
        st.booleans(),  # of the snapshot's kind
        st.floats(0, 1),  # on disk
        st.lists(st.tuples(st.booleans(), st.booleans()), max_size=3),  # replicas: quiet, parked
    ),
    max_size=5,
)


@given(nodes=NODES, excluded=st.sets(st.sampled_from("01234")), need=st.integers(1, 8))
def test_a_placement_never_exceeds_what_a_node_has(
    nodes: list[tuple[int, int, int, int, bool, bool, float, list[tuple[bool, bool]]]],
    excluded: set[str],
    need: int,
) -> None:
    cluster = view()
    for index, (memory, promised, reserved, count, draining, kin, disk, ran) in enumerate(nodes):
        name = str(index)
        told = NodeFacts(
            name, PRINT if kin else OTHER_PRINT, memory * GIB, promised * GIB, count, draining
        )
        node = NodeRecord(told, fingerprint_key(told.fingerprint), reserved_bytes=reserved * GIB)
        cluster.put_node(name, node)
        lies(cluster, name, page_cache=0.0, disk=disk)
        for number, (quiet, parked) in enumerate(ran):
            state = ReplicaState.PARKED if parked else ReplicaState.SERVING
            told_replica = replica(f"t{index}{number}", spec("toad"), name, state)
            cluster.put_replica(told_replica, float(number)).quiet = quiet
    model = replace(FROG, memory_bytes=need * GIB)
    request = PlaceRequest(model, SNAPSHOTS, frozenset(excluded))
    found = place(request, cluster, ESTIMATES)
    if isinstance(found, Placement):
        node = cluster.nodes[found.node]
        assert node.free_bytes >= model.memory_bytes
        assert node.free_count >= 1
        assert not node.facts.draining
        assert found.node not in excluded
        kin = node.facts.fingerprint == PRINT
        assert (found.snapshot is not None) == kin
        assert (found.rung is Rung.ABSENT) == (found.snapshot is None)
        others = [n for n in cluster.nodes if n != found.node]
        alone = place(
            replace(request, excluded_nodes=frozenset([*excluded, found.node])), cluster, ESTIMATES
        )
        if others and isinstance(alone, Placement):
            assert alone.predicted_s >= found.predicted_s
        return
    room = make_room(request, cluster, ESTIMATES)
    if isinstance(room, Eviction):
        node = cluster.nodes[room.placement.node]
        records = [cluster.replicas[name] for name in room.victims]
        assert all(
            record.quiet and record.replica.node == room.placement.node for record in records
        )
        freed = [record.replica.memory_bytes for record in records]
        assert node.free_bytes + sum(freed) >= model.memory_bytes
        assert node.free_count + len(freed) >= 1
        short = node.free_bytes + sum(freed[:-1]) < model.memory_bytes
        assert short or node.free_count + len(freed) - 1 < 1, "one victim too many"


def test_a_thousand_nodes_are_no_trouble() -> None:
    """Two in three run something and hold part of the model. A bound that only a change of kind would miss."""
    cluster = view(*(facts(f"node-{number:04}") for number in range(1000)))
    for number, name in enumerate(cluster.nodes):
        if number % 3:
            lies(cluster, name, page_cache=0.0, disk=(number % 7) / 7)
            cluster.put_replica(replica(f"t{number}", spec("toad"), name), 0.0)
    request = PlaceRequest(FROG, SNAPSHOTS)
    began = time.perf_counter()
    for _ in range(5):
        assert placed(request, cluster).rung is Rung.STORED
    assert (time.perf_counter() - began) / 5 < 1.0


def test_a_model_goes_where_its_tenant_may() -> None:
    own, others, open_ = (
        replace(facts(name), tenants=tenants)
        for name, tenants in (("a", ("acme",)), ("b", ("globex", "initech")), ("c", ()))
    )
    cluster = view(own, others, open_)

    def takes(model: ModelSpec) -> str:
        found = []
        excluded: frozenset[str] = frozenset()
        while isinstance(
            chosen := place(PlaceRequest(model, {}, excluded), cluster, ESTIMATES), Placement
        ):
            found.append(chosen.node)
            excluded |= {chosen.node}
        return "".join(sorted(found))

    assert takes(FROG) == "c"
    assert takes(replace(FROG, tenant="acme")) == "ac"
    assert takes(replace(FROG, tenant="acme", dedicated=True)) == "a"
    assert takes(replace(FROG, tenant="initech", dedicated=True)) == "b"
    nobody = place(PlaceRequest(replace(FROG, tenant="hooli", dedicated=True)), cluster, ESTIMATES)
    assert isinstance(nobody, NoCapacity)
    assert nobody.lasting


def test_nothing_is_thawed_on_a_node_that_became_another_tenants() -> None:
    cluster = view(replace(facts("a"), tenants=("acme",)))
    cluster.put_replica(replica("f1", FROG, "a", ReplicaState.PARKED), 0.0)
    assert isinstance(place(PlaceRequest(FROG), cluster, ESTIMATES), NoCapacity)
