"""What a simulated cell is asked, and by whom: requests of a trace or made up, dealt to models of many sizes."""

import csv
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from loadtest.simulated_setup import Arrival
from woodfrog.model import digest
from woodfrog.model.spec import ModelSpec

GIB = 1 << 30
#: Of an answer: until its first token, and for each (docs/figures.md, gpu_ladder.llama-8b, warm_request_s).
FIRST_TOKEN_S, TOKEN_S = 0.013, 0.013
ZIPF = 1.1


def shapes(count: int) -> list[ModelSpec]:
    """Sizes of one to 40 GB, the popular ones of all sizes."""
    sizes = (2, 15, 15, 7, 27, 15, 40, 3)
    return [
        ModelSpec(
            f"m{n}", digest.of_bytes(f"m{n}".encode()), sizes[n % len(sizes)] * 10**9,
            memory_bytes=4 * GIB, gpu_bytes=4 * GIB, slots=8, replicas_max=4,
        )
        for n in range(count)
    ]  # fmt: skip


def traced(paths: Sequence[Path]) -> Iterator[tuple[float, float]]:
    """(seconds since the first request, seconds of its answer) of all files, by time."""
    found = []
    for path in paths:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                at = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
                found.append((at, FIRST_TOKEN_S + TOKEN_S * int(row["GeneratedTokens"])))
    found.sort()
    return ((at - found[0][0], answer_s) for at, answer_s in found)


def made(chance: random.Random, requests_s: float) -> Iterator[tuple[float, float]]:
    at = 0.0
    while True:
        at += chance.gammavariate(0.25, 4 / requests_s)  # four times as bursty as Poisson's
        yield at, FIRST_TOKEN_S + TOKEN_S * chance.lognormvariate(4.5, 1.0)


def dealt(
    gaps: Iterator[tuple[float, float]], model_count: int, seconds: float, chance: random.Random
) -> list[Arrival]:
    weights = [1 / (rank + 1) ** ZIPF for rank in range(model_count)]
    within = list(itertools.takewhile(lambda each: each[0] < seconds, gaps))
    ranks = chance.choices(range(model_count), weights, k=len(within))
    return [
        Arrival(at, f"m{rank}", answer_s)
        for (at, answer_s), rank in zip(within, ranks, strict=True)
    ]


def least_gpu_s(
    arrivals: Iterable[Arrival], models: Iterable[ModelSpec], since: float, gpu_bytes: int
) -> float:
    """GPU-seconds of one replica of each model that is there only while it answers: no policy can pay less."""
    share = {model.name: (model.weights_bytes + model.gpu_bytes) / gpu_bytes for model in models}
    until = dict.fromkeys(share, since)
    paid = 0.0
    for arrival in sorted(arrivals, key=lambda each: each.at):
        end = arrival.at + arrival.answer_s
        paid += share[arrival.model] * max(0.0, end - max(arrival.at, until[arrival.model]))
        until[arrival.model] = max(end, until[arrival.model])
    return paid
