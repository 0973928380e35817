"""A few nodes of many are looked at; what is found is as good as if all were."""

import random
from dataclasses import replace

import pytest
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

from woodfrog.model.node import GpuFacts, ReplicaState
from woodfrog.scheduler import candidates
from woodfrog.scheduler.estimates import Estimates
from woodfrog.scheduler.forecasts import Placement, PlaceRequest
from woodfrog.scheduler.policy import Eviction, NoCapacity, make_room, place
from woodfrog.scheduler.rates import Rates
from woodfrog.scheduler.view import ClusterView, ModelRecord, NodeRecord, fingerprint_key

MODELS = [
    spec(
        f"m{n}",
        gpu_bytes=(n % 3) * 2 * GIB,
        tenant=("", "", "acme")[n % 4 % 3],
        dedicated=n % 8 == 2,
    )
    for n in range(9)
]
ESTIMATES = Estimates(Rates())


def cluster(chance: random.Random, node_count: int, fullness: float) -> ClusterView:
    view = ClusterView()
    view.models = {model.name: ModelRecord(model) for model in MODELS}
    for model in MODELS:
        view.put_pointer(pointer(model))
    for number in range(node_count):
        name = f"n{number:03}"
        full = chance.random() < fullness
        gpu = GpuFacts(f"G{number}", 8 * GIB, (7 if full else 2) * GIB, ())
        told = replace(
            facts(name, promised=(16 if full else chance.randrange(12)) * GIB),
            fingerprint=PRINT if chance.random() < 0.8 else OTHER_PRINT,
            gpus=(gpu,) if chance.random() < 0.7 else (),
            draining=chance.random() < 0.1,
            tenants=chance.choice(((), (), ("acme",), ("acme", "globex"), ("globex",))),
        )
        node = NodeRecord(told, fingerprint_key(told.fingerprint), silent=chance.random() < 0.1)
        view.put_node(name, node)
        for count in range(chance.randrange(4)):
            model = chance.choice(MODELS)
            states = (ReplicaState.SERVING, ReplicaState.PARKED)
            its = replica(f"{name}-{count}", model, name, chance.choice(states))
            if model.gpu_bytes and told.gpus:
                its = replace(its, gpu=gpu.uuid, gpu_bytes=GIB)
            view.put_replica(its, chance.random()).quiet = chance.random() < 0.7
        for model in chance.sample(MODELS, 2):
            for manifest, size in (
                (model.weights, model.weights_bytes),
                (pointer(model).manifest, 280 << 20),
            ):
                level = chance.random()
                view.put_residents(name, [resident(manifest, size, 1.0, level)])
    return view


@pytest.fixture
def chance() -> random.Random:
    return random.Random(11)


@pytest.mark.parametrize("fullness", [0.0, 0.5, 0.95, 1.0])
def test_what_is_found_is_as_quick_as_if_all_were_looked_at(
    chance: random.Random, fullness: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = set()
    for _ in range(12):
        view = cluster(chance, 60, fullness)
        for model in MODELS:
            request = PlaceRequest(
                model, view.pointers(model), frozenset(chance.sample(list(view.nodes), 3))
            )
            monkeypatch.setattr(candidates, "FEW_NODES", 0)
            few = place(request, view, ESTIMATES), make_room(request, view, ESTIMATES)
            monkeypatch.setattr(candidates, "FEW_NODES", 1000)
            all_of = place(request, view, ESTIMATES), make_room(request, view, ESTIMATES)
            met.add((type(all_of[0]), type(all_of[1])))
            for one, other in zip(few, all_of, strict=True):
                assert type(one) is type(other)
                if isinstance(one, Placement) and isinstance(other, Placement):
                    assert one.predicted_s == pytest.approx(other.predicted_s)
                if isinstance(one, NoCapacity) and isinstance(other, NoCapacity):
                    assert one.misfits == other.misfits
    assert {kind for kinds in met for kind in kinds} >= (
        {Placement} if fullness < 1 else {NoCapacity}
    )
    assert fullness < 0.5 or any(issubclass(kinds[1], Eviction) for kinds in met)


def test_a_node_that_changed_is_seen(chance: random.Random) -> None:
    view = cluster(chance, 40, 1.0)
    before = candidates.table(view)["free_bytes"][0]
    node = view.nodes["n000"]
    node.facts = replace(node.facts, memory_promised_bytes=0)
    with pytest.raises(AssertionError, match="summary of n000 is old"):
        candidates.check(view)
    view.changed("n000")
    candidates.check(view)
    assert candidates.table(view)["free_bytes"][0] != before
    view.drop_replica(next(iter(node.replicas), ""))
    view.drop_node("n001") if not view.nodes["n001"].replicas else None
    candidates.check(view)
    view.put_node("n0005", NodeRecord(facts("n0005", 3), fingerprint_key(PRINT)))
    candidates.check(view)
    assert (
        candidates.table(view)["free_bytes"][candidates.table(view).rows["n0005"]] == 16 * GIB - 3
    )
