"""What `woodfrog plan` prints, and what it may be asked to suppose."""

import re
from argparse import ArgumentTypeError

from woodfrog.cli.cluster import Cluster
from woodfrog.cli.show import count, table
from woodfrog.clients.scheduler import SchedulerClient
from woodfrog.model.placement import MEMORY_MAX, PRICE_MAX, PlanView, WhatIf

_TIMEOUT_S = 30.0
_PRICES = ("gpu-price", "memory-price", "pinned-price", "disk-price")
_HEADER = (
    "MODEL", "NODE", "NOW", "RESTS", "WANTED AGAIN IN", "WAKE", "WAKE FROM FROZEN", "SAVES (MS A S)", "WHY",
)  # fmt: skip
HELP = (
    f"with another price ({', '.join(f'{name}=SECONDS' for name in _PRICES)}: of waiting, to be saved for holding a whole GPU,"
    " or all that a node has of the others, for a second) or other nodes (memory=+50%%: of GPUs, pinned, of nodes, on disk);"
    " may be given several times"
)


async def plan(cluster: Cluster, given: WhatIf) -> None:
    async with SchedulerClient(cluster.address("scheduler"), router="") as scheduler:
        print(shown(await scheduler.plan(given, timeout_s=_TIMEOUT_S)))


def shown(view: PlanView) -> str:
    if not view.models:
        return "no model idles that the plan puts to rest; those with --freeze-after go by that"
    rows = [
        (
            m.model,
            m.node,
            m.now,
            m.rung.value,
            f"{m.expected_s:.0f} s",
            f"{m.wake_s * 1000:.0f} ms",
            f"{m.frozen_wake_s * 1000:.0f} ms",
            f"{m.value * 1000:.3f}",
            m.why,
        )
        for m in view.models
    ]
    return (
        f"{table(_HEADER, rows)}\n{count(len(rows), 'model')} by {view.solver} in {view.seconds:.2f} s; in all"
        f" {view.value * 1000:.3f} ms of waiting saved a second, less the price"
    )


def what_if(text: str) -> tuple[str, float]:
    """`gpu-price=0.01` or `memory=+50%`, as a field of WhatIf. Raises ArgumentTypeError."""
    name, _, said = text.partition("=")
    if name == "memory":
        more = re.fullmatch(r"([+-]\d+(?:\.\d+)?)%", said)
        if more is None or not 0 < 1 + float(more[1]) / 100 <= MEMORY_MAX:
            raise ArgumentTypeError(
                f"{text[:50]!r}: say how much more or less, above -100%, as memory=+50%"
            )
        return name, 1 + float(more[1]) / 100
    if name not in _PRICES:
        raise ArgumentTypeError(
            f"{text[:50]!r} is none of {', '.join((*_PRICES, 'memory'))}, with ="
        )
    try:
        price = float(said)
    except ValueError:
        price = -1.0
    if not 0 <= price <= PRICE_MAX:
        raise ArgumentTypeError(
            f"{text[:50]!r}: a price is a number of seconds from 0 to {PRICE_MAX:g}"
        )
    return name.replace("-", "_"), price
