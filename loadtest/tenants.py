"""What one tenant's flood costs another that asks the same model, on a real local cluster.

    python -m loadtest.tenants [--flood 64] [--runs 60]

A model with four slots; one tenant's clients ask again as soon as they are answered, another tenant asks one request after
the other. The rival is first come, first served: the same requests, all of one tenant. The floor is a tenant that just fills
the slots that are left, so that nobody ever waits for one: what is above it is waiting, what is below it is the model
computing for several at once.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import openai

from loadtest.lab import Lab, laboratory
from loadtest.report import Bench, quantile
from woodfrog.catalog.tenants import Tenants
from woodfrog.cli import options
from woodfrog.clock import SystemClock
from woodfrog.coordination import Session
from woodfrog.model.tenant import Tenant

_MODEL, _SLOTS, _TOKENS = "frog", 4, 8
_P99 = 0.99
_SETTLE_S = 2.0


async def _keys(lab: Lab, *names: str) -> list[str]:
    async with Session([lab.cluster.address("etcd")], SystemClock()) as session:
        tenants = Tenants(session)
        made = []
        for name in names:
            await tenants.create(Tenant(name))
            made.append((await tenants.create_key(name, "", 0.0))[0])
        return made


async def _ask(client: openai.AsyncOpenAI) -> None:
    await client.chat.completions.create(
        model=_MODEL,
        messages=[{"role": "user", "content": "Say what a frog does in winter."}],
        max_tokens=_TOKENS,
        temperature=0,
    )


@asynccontextmanager
async def _flood(url: str, key: str, clients: int) -> AsyncIterator[None]:
    async def again() -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key=key, timeout=600) as client:
            while True:
                await _ask(client)

    tasks = [asyncio.create_task(again()) for _ in range(clients)]
    try:
        await asyncio.sleep(_SETTLE_S)
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _times(url: str, key: str, runs: int) -> list[float]:
    found = []
    async with openai.AsyncOpenAI(base_url=url, api_key=key, timeout=600) as client:
        await _ask(client)
        for _ in range(runs):
            began = time.perf_counter()
            await _ask(client)
            found.append(time.perf_counter() - began)
    return found


async def measure(lab: Lab, bench: Bench, clients: int, runs: int) -> None:
    url = lab.cluster.base_url
    quiet, flood = await _keys(lab, "quiet", "flood")
    alone = await _times(url, quiet, runs)
    async with _flood(url, flood, _SLOTS - 1):
        floor = await _times(url, quiet, runs)
    async with _flood(url, flood, clients):
        turns = await _times(url, quiet, runs)
    async with _flood(url, flood, clients):
        fifo = await _times(url, flood, runs)
    least = quantile(sorted(floor), _P99)
    note = "beside clients that leave it a slot"
    bench.add("alone", "answer_s", alone)
    bench.add("beside a flood", "answer_s", turns, floor=least, floor_note=f"p99 {note}")
    rivals = {
        "first come, first served": quantile(sorted(fifo), _P99) / quantile(sorted(alone), _P99)
    }
    for case, samples in (("beside a flood", turns), ("slots filled", floor)):
        share = quantile(sorted(samples), _P99) / quantile(sorted(alone), _P99)
        bench.add(case, "p99_times_alone", [share], rivals=rivals)


def main() -> None:
    parser = options.Parser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--flood", type=options.whole(1, 1000), default=64, help="clients")
    parser.add_argument("--runs", type=options.whole(1, 10_000), default=60)
    args = parser.parse_args()
    os.environ["WOODFROG_ROUTER_AUTH"] = "keys"
    bench = Bench("tenants")
    with laboratory() as lab:
        lab.add(_MODEL, "eager", slots=_SLOTS)
        asyncio.run(measure(lab, bench, args.flood, args.runs))
    bench.finish()


if __name__ == "__main__":
    main()
