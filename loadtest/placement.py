"""How long one decision of the scheduler takes in a large cell, on one core.

    python -m loadtest.placement [--nodes 1000] [--models 10000] [--decisions 500]

The real policy on a made-up view: each node has a GPU, eight replicas, and something of forty models. Before each decision
five nodes change, as their streams tell. Cases: there is room; there is room once replicas are lowered; there is none.
Where other work shares the machine, the thread's own time (`cpu`) is the decision's.
"""

import random
import time

from loadtest.report import Bench, quantile
from woodfrog.cli import options
from woodfrog.model import digest
from woodfrog.model.node import GpuFacts, NodeFacts, Replica, ReplicaState, Resident
from woodfrog.model.snapshot import Fingerprint, SnapshotPointer
from woodfrog.model.spec import ModelSpec
from woodfrog.scheduler.estimates import Estimates
from woodfrog.scheduler.forecasts import PlaceRequest
from woodfrog.scheduler.policy import find
from woodfrog.scheduler.rates import Rates
from woodfrog.scheduler.view import ClusterView, ModelRecord, NodeRecord, fingerprint_key

GIB = 1 << 30
PRINT = {"kernel": "6.18", "gpu": "one kind"}
REPLICAS, TREES, CHANGES = 8, 40, 5  # of each node; nodes that change before each decision
CASES = ("room", "room once lowered", "no room")


def main() -> None:
    parser = options.Parser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--nodes", type=options.whole(1, 1_000_000), default=1000)
    parser.add_argument("--models", type=options.whole(1, 10_000_000), default=10_000)
    parser.add_argument("--decisions", type=options.whole(1, 10_000_000), default=500)
    args = parser.parse_args()
    bench = Bench("placement")
    for case in CASES:
        walls, cpus, outcomes = measure(case, args.nodes, args.models, args.decisions)
        for metric, seconds in (("decision_ms", walls), ("decision_cpu_ms", cpus)):
            row = bench.add(case, metric, [each * 1000 for each in seconds])
            p99 = quantile(sorted(seconds), 0.99) * 1000
            bench.add(case, metric.replace("_ms", "_p99_ms"), [p99])
            print(f"{case}, {metric}: p50 {row.median:.2f}, p99 {p99:.2f}; {outcomes}")
    bench.finish()


def measure(
    case: str, node_count: int, model_count: int, decisions: int
) -> tuple[list[float], list[float], dict[str, int]]:
    """Seconds of each decision by the wall and of its thread, and how many of each outcome."""
    chance = random.Random(case)
    models = [
        ModelSpec(
            f"m{n}", digest.of_bytes(f"m{n}".encode()), 15 * GIB,
            memory_bytes=4 * GIB, gpu_bytes=6 * GIB,
        )
        for n in range(model_count)
    ]  # fmt: skip
    view = made_up(case, node_count, models, chance)
    estimates = Estimates(Rates())
    names = list(view.nodes)
    walls, cpus, outcomes = [], [], dict[str, int]()
    find(PlaceRequest(models[0]), view, estimates)  # summaries of all nodes
    for _ in range(decisions):
        model = chance.choice(models)
        for name in chance.sample(names, CHANGES):
            view.changed(name)
        began, cpu_began = time.perf_counter(), time.thread_time()
        request = PlaceRequest(model, view.pointers(model))
        outcome = find(request, view, estimates)
        cpus.append(time.thread_time() - cpu_began)
        walls.append(time.perf_counter() - began)
        kind = type(outcome).__name__
        outcomes[kind] = outcomes.get(kind, 0) + 1
    return walls, cpus, outcomes


def made_up(
    case: str, node_count: int, models: list[ModelSpec], chance: random.Random
) -> ClusterView:
    view = ClusterView()
    view.models = {model.name: ModelRecord(model) for model in models}
    for number in range(node_count):
        name, gpu = f"n{number:04}", f"GPU-{number}"
        full = case != "room"
        promised = (511 if full else 4 * REPLICAS) * GIB
        on_gpu = GpuFacts(gpu, 80 * GIB, (79 if full else REPLICAS) * GIB, ())
        told = NodeFacts(name, PRINT, 512 * GIB, promised, 64, gpus=(on_gpu,))
        view.put_node(name, NodeRecord(told, fingerprint_key(PRINT)))
        for count in range(REPLICAS):
            model = chance.choice(models)
            state = ReplicaState.SERVING if full else ReplicaState.PARKED
            replica = Replica(
                f"{name}-{count}", model.name, model.weights, state, "/run/x", model.slots, name,
                model.memory_bytes, gpu, (9 if full else 1) * GIB,
            )  # fmt: skip
            view.put_replica(replica, chance.random()).quiet = case != "no room"
        for model in chance.sample(models, TREES):
            pointer = _pointer(model)
            view.put_pointer(pointer)
            sizes = {model.weights: model.weights_bytes, pointer.manifest: pointer.size_bytes}
            view.put_residents(
                name, [Resident(tree, size, size, size // 2, True) for tree, size in sizes.items()]
            )
    return view


def _pointer(model: ModelSpec) -> SnapshotPointer:
    fingerprint = Fingerprint(PRINT, {"engine": "transformers"}, model.weights)
    manifest = digest.of_bytes(f"snapshot of {model.name}".encode())
    return SnapshotPointer(model.name, manifest, fingerprint, 2 * GIB, 1.0)


if __name__ == "__main__":
    main()
