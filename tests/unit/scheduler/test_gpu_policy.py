"""Where a climb goes that needs a GPU, and whom it may lower there."""

from dataclasses import replace

import pytest
from tests.unit.scheduler.cell import (
    GIB,
    PRINT,
    facts,
    gpu,
    on_gpu,
    pointer,
    replica,
    resident,
    spec,
)

from woodfrog.model.node import GpuFacts, NodeFacts, ReplicaState
from woodfrog.model.rung import Rung
from woodfrog.scheduler.estimates import Estimates
from woodfrog.scheduler.forecasts import Placement, PlaceRequest
from woodfrog.scheduler.policy import Eviction, NoCapacity, find, make_room, place
from woodfrog.scheduler.rates import Rates
from woodfrog.scheduler.view import ClusterView, NodeRecord, fingerprint_key

FROG = spec(gpu_bytes=10 * GIB, weights_bytes=20 * GIB)
TOAD = spec("toad", gpu_bytes=10 * GIB, weights_bytes=20 * GIB)
NEWT = spec("newt", gpu_bytes=30 * GIB, weights_bytes=2 * GIB)
RATES = Rates()
ESTIMATES = Estimates(RATES)
SNAPSHOT_BYTES = [resident(pointer(FROG).manifest, pointer(FROG).size_bytes)]


def view(*told: NodeFacts) -> ClusterView:
    built = ClusterView()
    for each in told:
        built.put_node(each.node, NodeRecord(each, fingerprint_key(each.fingerprint)))
    return built


def idle(cluster: ClusterView, node: str, *there: tuple[str, object, ReplicaState, int]) -> None:
    """Replicas (name, model, state, GPU bytes) that may be lowered, the longest idle first."""
    for number, (name, model, state, gpu_bytes) in enumerate(there):
        told = replica(name, model, node, state)  # type: ignore[arg-type]
        record = cluster.put_replica(on_gpu(told, gpu_bytes) if gpu_bytes else told, float(number))
        record.quiet = True


def owns(cluster: ClusterView, name: str) -> None:
    record = cluster.replicas[name]
    record.replica = replace(record.replica, own_weights=True)


def placed(cluster: ClusterView, model: object = FROG, *, new: bool = True) -> Placement:
    found = place(PlaceRequest(model, new=new), cluster, ESTIMATES)  # type: ignore[arg-type]
    assert isinstance(found, Placement), found
    return found


def victims(cluster: ClusterView, model: object = FROG, *, new: bool = True) -> tuple[str, ...]:
    found = make_room(PlaceRequest(model, new=new), cluster, ESTIMATES)  # type: ignore[arg-type]
    return found.victims if isinstance(found, Eviction) else ()


@pytest.mark.parametrize(
    ("gpus", "why"),
    [
        ((), "without a GPU"),
        ((gpu(memory=30 * GIB - 1),), "too small"),
        ((gpu(50 * GIB + 1),), "full"),
        ((gpu(70 * GIB + 1, weights=(FROG.weights,)),), "full"),
    ],
)
def test_no_capacity_says_why(gpus: tuple[GpuFacts, ...], why: str) -> None:
    found = place(PlaceRequest(FROG), view(facts("a", gpus=gpus)), ESTIMATES)
    assert isinstance(found, NoCapacity)
    assert found.sentence == f"1 node is {why}"
    assert found.lasting == (why != "full")


@pytest.mark.parametrize(
    "told", [gpu(memory=30 * GIB), gpu(50 * GIB), gpu(70 * GIB, weights=(FROG.weights,))]
)
def test_weights_that_lie_on_the_gpu_need_no_second_copy(told: GpuFacts) -> None:
    found = placed(view(facts("a", gpus=(told,))))
    copy = 0 if told.weights else 20 * GIB
    assert (found.gpu, found.gpu_bytes) == ("GPU-0", 10 * GIB + copy)


def test_room_on_two_gpus_is_not_room_on_one() -> None:
    halves = (gpu(60 * GIB), GpuFacts("GPU-1", 80 * GIB, 60 * GIB, ()))
    assert isinstance(
        place(PlaceRequest(FROG), view(facts("a", gpus=halves)), ESTIMATES), NoCapacity
    )


def test_of_several_gpus_the_one_with_the_weights_then_the_emptiest() -> None:
    told = [
        gpu(45 * GIB),
        GpuFacts("GPU-1", 80 * GIB, 0, ()),
        GpuFacts("GPU-2", 80 * GIB, 60 * GIB, (FROG.weights,)),
    ]
    assert placed(view(facts("a", gpus=tuple(told)))).gpu == "GPU-2"
    assert placed(view(facts("a", gpus=tuple(told[:2])))).gpu == "GPU-1"


def test_what_is_reserved_on_a_gpu_is_not_free() -> None:
    cluster = view(facts("a", gpus=(gpu(),)), facts("b", gpus=(gpu(),)))
    cluster.nodes["a"].reserved_gpu_bytes = {"GPU-0": 50 * GIB + 1}
    assert placed(cluster).node == "b"
    cluster.nodes["a"].reserved_gpu_bytes = {"GPU-0": 50 * GIB}
    assert placed(cluster).node == "a"


def test_a_model_for_the_cpu_takes_no_gpu() -> None:
    plain = replace(FROG, gpu_bytes=0)
    for gpus in ((), (gpu(80 * GIB),), (gpu(),)):
        found = placed(view(facts("a", gpus=gpus)), plain)
        assert (found.gpu, found.gpu_bytes) == ("", 0)


def test_the_node_where_the_weights_are_on_a_gpu_already_wins() -> None:
    snapshots = {fingerprint_key(PRINT): pointer(FROG)}
    cluster = view(facts("a", gpus=(gpu(),)), facts("b", gpus=(gpu(weights=(FROG.weights,)),)))
    for name in cluster.nodes:
        for manifest, size in ((FROG.weights, FROG.weights_bytes), (pointer(FROG).manifest, 9)):
            cluster.put_residents(name, [resident(manifest, size)])
    found = place(PlaceRequest(FROG, snapshots), cluster, ESTIMATES)
    assert isinstance(found, Placement)
    assert (found.node, found.rung) == ("b", Rung.FROZEN)
    assert found.predicted_s < FROG.weights_bytes / RATES.page_cache_bytes_s


@pytest.mark.parametrize("parked", [False, True])
def test_weights_at_hand_are_as_good_as_in_memory(parked: bool) -> None:
    near = replace(gpu(), at_hand=(FROG.weights,))
    cluster = view(facts("a", gpus=(gpu(),)), facts("b", gpus=(near,)))
    for node in ("a", "b"):
        cluster.put_residents(
            node, [resident(FROG.weights, FROG.weights_bytes, page_cache=0.0), *SNAPSHOT_BYTES]
        )
        if parked:
            idle(cluster, node, (f"f-{node}", FROG, ReplicaState.PARKED, GIB))
    request = PlaceRequest(FROG, {fingerprint_key(PRINT): pointer(FROG)}, new=not parked)
    found = place(request, cluster, ESTIMATES)
    assert isinstance(found, Placement)
    assert found.node == "b"
    assert found.predicted_s < 1.0


def test_a_thaw_whose_weights_lie_on_its_gpu_waits_for_no_disk() -> None:
    cluster = view(facts("a", gpus=(gpu(20 * GIB, weights=(FROG.weights,)),)))
    cluster.put_residents("a", [resident(FROG.weights, FROG.weights_bytes, page_cache=0.0)])
    idle(cluster, "a", ("f1", FROG, ReplicaState.PARKED, GIB))
    assert placed(cluster, new=False).predicted_s < 0.1


@pytest.mark.parametrize(
    ("on_b", "quiet", "victims"),
    [
        (None, True, ("t1",)),  # from the store
        (0.0, True, ("t1",)),  # from the disk
        (0.97, True, ()),  # for half a second nobody is lowered
        (None, False, ()),  # nobody may be
    ],
)
def test_others_are_lowered_where_that_is_a_second_sooner(
    on_b: float | None, quiet: bool, victims: tuple[str, ...]
) -> None:
    """Node a is full and has all in memory; b has room, and so much of the weights in memory."""
    told = gpu(51 * GIB, weights=(TOAD.weights,))
    cluster = view(facts("a", gpus=(told,)), facts("b", gpus=(gpu(),)))
    toads = resident(TOAD.weights, TOAD.weights_bytes)
    near = resident(FROG.weights, FROG.weights_bytes)
    cluster.put_residents("a", [near, toads, *SNAPSHOT_BYTES])
    if on_b is not None:
        far = resident(FROG.weights, FROG.weights_bytes, page_cache=on_b)
        cluster.put_residents("b", [far, *SNAPSHOT_BYTES])
    idle(cluster, "a", ("t1", TOAD, ReplicaState.SERVING, 31 * GIB))
    cluster.replicas["t1"].quiet = quiet
    found = find(PlaceRequest(FROG, {fingerprint_key(PRINT): pointer(FROG)}), cluster, ESTIMATES)
    assert not isinstance(found, NoCapacity)
    if isinstance(found, Eviction):
        assert (found.placement.node, found.victims) == ("a", victims)
    else:
        assert (found.node, ()) == ("b", victims)


def test_a_node_that_refused_is_asked_for_less_only() -> None:
    cluster = view(facts("a", gpus=(gpu(),)))
    node = cluster.nodes["a"]
    node.refused_bytes, node.refused_gpu_bytes = FROG.memory_bytes, 30 * GIB
    assert isinstance(place(PlaceRequest(FROG), cluster, ESTIMATES), NoCapacity)
    assert placed(cluster, replace(FROG, gpu_bytes=9 * GIB)).node == "a"
    assert placed(cluster, replace(FROG, gpu_bytes=0)).node == "a"


# --- thaws ---


def test_hot_is_thawed_before_parked_and_parked_costs_the_way_of_its_weights() -> None:
    cluster = view(
        facts("a", gpus=(gpu(),)), facts("b", gpus=(gpu(30 * GIB, weights=(FROG.weights,)),))
    )
    idle(cluster, "a", ("f1", FROG, ReplicaState.PARKED, 0))
    parked = placed(cluster, new=False)
    assert (parked.replica_id, parked.rung, parked.gpu_bytes) == ("f1", Rung.PARKED, 30 * GIB)
    copied_s = FROG.weights_bytes / RATES.pcie_bytes_s
    assert parked.predicted_s == pytest.approx(copied_s + RATES.thaw_s + RATES.hot_s)
    idle(cluster, "b", ("f2", FROG, ReplicaState.HOT, 10 * GIB))
    hot = placed(cluster, new=False)
    assert (hot.replica_id, hot.rung, hot.gpu_bytes) == ("f2", Rung.HOT, 0)
    assert hot.predicted_s == RATES.hot_s < parked.predicted_s


@pytest.mark.parametrize("promised", [50 * GIB, 50 * GIB + 1])
def test_what_parked_off_its_gpu_needs_room_there_again(promised: int) -> None:
    cluster = view(facts("a", gpus=(gpu(promised),)))
    idle(cluster, "a", ("f1", FROG, ReplicaState.PARKED, 0))
    found = place(PlaceRequest(FROG, new=False), cluster, ESTIMATES)
    assert isinstance(found, Placement) == (promised == 50 * GIB)


def test_a_replica_that_names_its_gpu_is_thawed_on_that_one() -> None:
    gpus = (gpu(60 * GIB), GpuFacts("GPU-1", 80 * GIB, 0, ()))
    cluster = view(facts("a", gpus=gpus))
    told = replica("f1", FROG, "a", ReplicaState.PARKED)
    cluster.put_replica(told, 0.0)
    assert placed(cluster, new=False).gpu == "GPU-1"
    cluster.put_replica(replace(told, gpu="GPU-0"), 0.0)
    assert isinstance(place(PlaceRequest(FROG, new=False), cluster, ESTIMATES), NoCapacity)


def test_hot_that_yields_to_another_climb_is_not_thawed_meanwhile() -> None:
    lies = (FROG.weights,)
    cluster = view(facts("a", gpus=(gpu(80 * GIB, weights=lies),)))
    idle(cluster, "a", ("f1", FROG, ReplicaState.HOT, 10 * GIB))
    assert placed(cluster, new=False).replica_id == "f1"
    cluster.nodes["a"].reserved_gpu_bytes = {"GPU-0": 10 * GIB}
    assert isinstance(place(PlaceRequest(FROG, new=False), cluster, ESTIMATES), NoCapacity)


def test_hot_that_gave_its_cache_back_needs_that_much() -> None:
    for promised, fits in ((74 * GIB, True), (74 * GIB + 1, False)):
        cluster = view(facts("a", gpus=(gpu(promised, weights=(FROG.weights,)),)))
        idle(cluster, "a", ("f1", FROG, ReplicaState.HOT, 4 * GIB))
        found = place(PlaceRequest(FROG, new=False), cluster, ESTIMATES)
        assert isinstance(found, Placement) == fits


# --- weights of their own, on another GPU than the snapshot is from ---


def test_hot_with_weights_of_its_own_needs_no_more_than_it_gave_back() -> None:
    for promised, fits in ((74 * GIB, True), (74 * GIB + 1, False)):
        cluster = view(facts("a", gpus=(gpu(promised),)))
        idle(cluster, "a", ("f1", FROG, ReplicaState.HOT, 24 * GIB))
        owns(cluster, "f1")
        found = place(PlaceRequest(FROG, new=False), cluster, ESTIMATES)
        assert isinstance(found, Placement) == fits


def test_parked_with_weights_of_its_own_needs_them_beside_a_copy_that_lies_there() -> None:
    for promised, fits in ((54 * GIB, True), (54 * GIB + 1, False)):
        cluster = view(facts("a", gpus=(gpu(promised, weights=(FROG.weights,)),)))
        idle(cluster, "a", ("f1", FROG, ReplicaState.PARKED, 4 * GIB))
        owns(cluster, "f1")
        found = place(PlaceRequest(FROG, new=False), cluster, ESTIMATES)
        assert isinstance(found, Placement) == fits


def test_a_snapshot_of_another_gpu_needs_a_copy_beside_the_one_that_lies_there() -> None:
    lies = GpuFacts("GPU-1", 80 * GIB, 51 * GIB, (FROG.weights,))
    for home, fits in (("GPU-0", False), ("GPU-1", True), ("", True)):
        snapshots = {fingerprint_key(PRINT): pointer(FROG, gpu=home)}
        cluster = view(facts("a", gpus=(gpu(60 * GIB), lies)))
        found = place(PlaceRequest(FROG, snapshots), cluster, ESTIMATES)
        assert isinstance(found, Placement) == fits
        if isinstance(found, Placement):
            assert (found.gpu, found.gpu_bytes) == ("GPU-1", 10 * GIB)


def test_who_has_weights_of_its_own_keeps_none_that_others_share() -> None:
    cluster = view(facts("a", gpus=(gpu(80 * GIB, weights=(TOAD.weights,)),)))
    cluster.put_residents("a", [resident(TOAD.weights, TOAD.weights_bytes)])
    idle(
        cluster,
        "a",
        ("t1", TOAD, ReplicaState.HOT, GIB),
        ("t2", TOAD, ReplicaState.SERVING, 30 * GIB),
    )
    wanted = PlaceRequest(replace(FROG, gpu_bytes=GIB))
    assert isinstance(place(wanted, cluster, ESTIMATES), NoCapacity)
    owns(cluster, "t2")
    assert isinstance(place(wanted, cluster, ESTIMATES), Placement)
    assert victims(cluster, replace(FROG, gpu_bytes=31 * GIB)) == ("t2",)


# --- who yields ---


def test_who_rests_on_a_gpu_yields_and_the_last_user_its_weights() -> None:
    cluster = view(facts("a", gpus=(gpu(80 * GIB, weights=(NEWT.weights, TOAD.weights)),)))
    for model in (NEWT, TOAD):
        cluster.put_residents("a", [resident(model.weights, model.weights_bytes)])
    idle(
        cluster,
        "a",
        ("n1", NEWT, ReplicaState.HOT, 28 * GIB),
        ("n2", NEWT, ReplicaState.PARKED, GIB),  # uses no weights
        ("t1", TOAD, ReplicaState.HOT, GIB),
        ("t2", TOAD, ReplicaState.SERVING, 10 * GIB),
    )
    room = (28 + 2 + 1 + 1 - 20) * GIB  # t2 keeps the weights of both
    assert placed(cluster, replace(FROG, gpu_bytes=room)).gpu_bytes == room + 20 * GIB
    more = PlaceRequest(replace(FROG, gpu_bytes=room + 1))
    assert isinstance(place(more, cluster, ESTIMATES), NoCapacity)


@pytest.mark.parametrize("what", ["climb", "descending"])
def test_who_is_on_its_way_does_not_yield(what: str) -> None:
    cluster = view(facts("a", gpus=(gpu(80 * GIB),)))
    idle(cluster, "a", ("n1", NEWT, ReplicaState.HOT, 30 * GIB))
    assert placed(cluster).gpu_bytes == 30 * GIB
    record = cluster.replicas["n1"]
    if what == "climb":
        record.climb = "c1"
    else:
        record.descending = Rung.FROZEN
    assert isinstance(place(PlaceRequest(FROG), cluster, ESTIMATES), NoCapacity)


# --- room ---


def test_victims_are_parked_and_give_their_gpu_memory_back_the_last_its_weights() -> None:
    lies = (TOAD.weights, NEWT.weights)
    cluster = view(facts("a", gpus=(gpu(72 * GIB, weights=lies),)))
    cluster.put_residents("a", [resident(TOAD.weights, TOAD.weights_bytes)])
    idle(
        cluster,
        "a",
        ("n1", NEWT, ReplicaState.SERVING, 30 * GIB),
        ("t1", TOAD, ReplicaState.SERVING, 10 * GIB),
        ("t2", TOAD, ReplicaState.SERVING, 10 * GIB),
    )
    assert victims(cluster, replace(FROG, gpu_bytes=18 * GIB)) == ("n1",)
    assert victims(cluster, replace(FROG, gpu_bytes=25 * GIB)) == ("n1", "t1")
    assert victims(cluster, replace(FROG, gpu_bytes=58 * GIB)) == ("n1", "t1", "t2")
    assert victims(cluster, replace(FROG, gpu_bytes=59 * GIB)) == ()
    found = make_room(PlaceRequest(FROG), cluster, ESTIMATES)
    assert isinstance(found, Eviction)
    assert found.rung is Rung.PARKED
    for name, value in (("n1", 0.9), ("t1", 0.7), ("t2", 0.5)):  # as a plan says
        cluster.replicas[name].value = value
    assert victims(cluster, replace(FROG, gpu_bytes=18 * GIB)) == ("t2", "t1")
    for name in ("t1", "t2"):
        cluster.replicas[name].kept = True
    assert victims(cluster, replace(FROG, gpu_bytes=18 * GIB)) == ("n1",)
    assert victims(cluster, replace(FROG, gpu_bytes=58 * GIB)) == ("n1", "t2", "t1")


def test_who_holds_nothing_of_a_full_gpu_is_left_alone() -> None:
    cluster = view(facts("a", gpus=(gpu(80 * GIB), GpuFacts("GPU-1", 8 * GIB, 8 * GIB, ()))))
    idle(
        cluster,
        "a",
        ("c1", replace(TOAD, name="cpu", gpu_bytes=0), ReplicaState.PARKED, 0),
        ("h1", TOAD, ReplicaState.HOT, GIB),  # yields without being asked
        ("n1", NEWT, ReplicaState.SERVING, 30 * GIB),
    )
    elsewhere = replica("o1", spec("other"), "a")
    cluster.put_replica(on_gpu(elsewhere, 8 * GIB, "GPU-1"), 0.0).quiet = True
    assert victims(cluster) == ("n1",)


def test_a_small_one_is_spared_when_a_larger_one_has_to_go_anyhow() -> None:
    cluster = view(facts("a", gpus=(gpu(80 * GIB),)))
    idle(
        cluster,
        "a",
        ("t1", TOAD, ReplicaState.SERVING, GIB),
        ("n1", NEWT, ReplicaState.SERVING, 30 * GIB),
    )
    assert victims(cluster) == ("n1",)


def test_weights_that_the_climb_itself_needs_do_not_come_free() -> None:
    twin = replace(FROG, name="twin")
    cluster = view(facts("a", gpus=(gpu(80 * GIB, weights=(FROG.weights,)),)))
    cluster.put_residents("a", [resident(FROG.weights, FROG.weights_bytes)])
    idle(cluster, "a", ("w1", twin, ReplicaState.SERVING, 9 * GIB))
    assert victims(cluster) == ()
    assert victims(cluster, replace(FROG, gpu_bytes=9 * GIB)) == ("w1",)


def test_where_memory_is_short_too_victims_are_frozen() -> None:
    cluster = view(facts("a", 16 * GIB, gpus=(gpu(80 * GIB),)))
    idle(
        cluster,
        "a",
        ("c1", replace(TOAD, name="cpu", gpu_bytes=0), ReplicaState.PARKED, 0),
        ("n1", NEWT, ReplicaState.SERVING, 30 * GIB),
    )
    assert victims(cluster, replace(FROG, memory_bytes=8 * GIB)) == ("c1", "n1")
    found = make_room(PlaceRequest(replace(FROG, memory_bytes=4 * GIB)), cluster, ESTIMATES)
    assert isinstance(found, Eviction)
    assert (found.victims, found.rung) == (("n1",), Rung.FROZEN)


def test_room_is_made_for_a_thaw_and_takes_no_memory() -> None:
    cluster = view(facts("a", 16 * GIB, gpus=(gpu(80 * GIB),)))
    idle(
        cluster,
        "a",
        ("f1", FROG, ReplicaState.PARKED, 0),
        ("n1", NEWT, ReplicaState.SERVING, 30 * GIB),
    )
    found = make_room(PlaceRequest(FROG, new=False), cluster, ESTIMATES)
    assert isinstance(found, Eviction)
    assert (found.placement.replica_id, found.victims, found.rung) == ("f1", ("n1",), Rung.PARKED)
    assert victims(cluster, replace(FROG, gpu_bytes=0), new=False) == ()


def test_a_gpu_on_which_others_must_yield_first_comes_behind_an_empty_one() -> None:
    built = view(
        facts("a", gpus=(gpu(60 * GIB),)),
        facts("b", gpus=(replace(gpu(), uuid="GPU-1"),)),
    )
    resting = on_gpu(replica("t1", TOAD, "a", ReplicaState.HOT), 60 * GIB)
    built.put_replica(resting, 0.0)
    request = PlaceRequest(FROG)
    seconds = []
    for other in ("b", "a"):
        found = place(replace(request, excluded_nodes=frozenset(other)), built, ESTIMATES)
        assert isinstance(found, Placement)
        seconds.append(found.predicted_s)
    assert seconds[0] == pytest.approx(seconds[1] + RATES.lower_s)
