"""What our session with etcd takes: puts a second, and how late a watch is.

    python -m loadtest.coordination [--rounds 5]

One etcd, client and server on this machine, values of 100 bytes. Guards 8,000 puts a second with 64 in flight, and a
watch's 99th percentile of 3 ms on two cores. The floor of puts is the same calls by the bare stubs, in the same run.
"""

import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import uvloop
from etcd3.etcdrpc import rpc_pb2
from tests.service.etcd import EtcdServer

from loadtest.report import Bench, quantile
from woodfrog.cli import options
from woodfrog.coordination import Session

IN_FLIGHT = 64
PUTS = 20_000
WATCHED = 2_000
VALUE = bytes(100)


async def puts_a_second(put: Callable[[str], Awaitable[object]]) -> float:
    numbers = itertools.count()

    async def write() -> None:
        while (number := next(numbers)) < PUTS:
            await put(f"bench/{number % 1000:04}")

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(write())
    return PUTS / (time.perf_counter() - began)


async def watch_latencies_ms(session: Session) -> list[float]:
    """From a put's call to its event, one at a time."""
    found = []
    async with aclosing(session.follow("watched")) as watch:
        await anext(watch)
        for _ in range(WATCHED):
            sent = time.perf_counter()
            put = asyncio.create_task(session.put("watched", VALUE))
            await anext(watch)
            found.append((time.perf_counter() - sent) * 1000)
            await put
    return found


async def main(rounds: int) -> None:
    bench = Bench("coordination")
    with tempfile.TemporaryDirectory() as folder:
        async with EtcdServer(Path(folder)) as etcd, Session([etcd.endpoint]) as session:
            bare_put = session.connection.kv.Put

            async def bare(key: str) -> None:
                await bare_put(rpc_pb2.PutRequest(key=key.encode(), value=VALUE))

            async def ours(key: str) -> None:
                await session.put(key, VALUE)

            await puts_a_second(ours)  # warm
            pairs = [(await puts_a_second(ours), await puts_a_second(bare)) for _ in range(rounds)]
            latencies = [await watch_latencies_ms(session) for _ in range(rounds)]
    floor = statistics.median(bare_rate for _, bare_rate in pairs)
    bench.add(
        "64 in flight", "puts_per_s", [rate for rate, _ in pairs],
        floor=floor, floor_note="the same calls by the bare stubs",
    )  # fmt: skip
    for share in (0.5, 0.99):
        each_round = [quantile(sorted(found), share) for found in latencies]
        bench.add("one at a time", f"watch_p{share * 100:.0f}_ms", each_round)
    bench.finish()


if __name__ == "__main__":
    parser = options.Parser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=options.whole(1, 100_000), default=5)
    uvloop.run(main(parser.parse_args().rounds))
