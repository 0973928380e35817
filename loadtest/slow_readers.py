"""Clients that ask for endless streams and read nothing of them: what the router's memory grows by, and what others feel.

    python -m loadtest.slow_readers [--readers 10000] [--routers 1]

Real router processes that share an address, before a simulated engine; their bounds are raised to let all readers in, and
these are not cut off as they would be after a minute. `baseline` is the same routers before they came. A router has two open
files for each reader: where a process may have only so many, several routers let more in.
"""

import argparse
import asyncio
import resource
import sys
import tempfile
import time
from pathlib import Path

from tests.service import router_process
from tests.service.router_process import RouterProcess, resident_bytes

from loadtest import wrk
from loadtest.report import Bench
from woodfrog.cli import options

_MODEL = "bench"
_SECONDS, _ROUNDS = 2.0, 5
_CONNECTIONS = 8  # of those that are served meanwhile
_ASKED = {"model": _MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


async def measure(bench: Bench, readers: int, routers: int) -> None:
    # The kernel deals connections to routers nearly evenly; the engine and this process have one for each reader.
    of_router = 2 * readers if routers == 1 else 2 * readers * 5 // (4 * routers)
    raise_limits(max(of_router, readers) + 128)
    settings = {
        "WOODFROG_ROUTER_REQUESTS_MAX": str(2 * readers + 64),
        "WOODFROG_ROUTER_CONNECTIONS_MAX": str(2 * readers + 64),
        "WOODFROG_ROUTER_UNREAD_WAIT_S": "3600",
    }
    with tempfile.TemporaryDirectory(prefix="woodfrog-load-") as name:
        opened = router_process.opened(Path(name), _MODEL, 4 * readers, settings, routers=routers)
        async with opened as router:
            before = await others(bench, router, "baseline")
            async with router_process.slow_readers(router.http, _MODEL, readers):
                await settled(router)
                after = await others(bench, router, f"r{readers}")
            bench.add(f"r{readers}", "bytes_each", [(after - before) / readers])


async def others(bench: Bench, router: RouterProcess, case: str) -> int:
    """What clients feel that do read. Returns the routers' memory, in bytes."""
    loads = [await wrk.load(router.http, _CONNECTIONS, _SECONDS, _ASKED) for _ in range(_ROUNDS)]
    bench.add(case, "p50_ms", [load.p50_ms for load in loads])
    bench.add(case, "p99_ms", [load.p99_ms for load in loads])
    resident = sum(map(resident_bytes, router.pids))
    bench.add(case, "resident_mb", [resident / 1e6])
    return resident


async def settled(router: RouterProcess) -> None:
    """Until every stream is held back. Raises RuntimeError after ten minutes."""
    deadline = time.monotonic() + 600
    while True:
        try:
            for pid in (*router.pids, router.engine_pid, *router.pids):
                await router_process.idle(pid)
            return
        except RuntimeError:
            if time.monotonic() > deadline:
                raise


def raise_limits(files: int) -> None:
    """For this process and those that it starts. Raises RuntimeError."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, max(files, hard)))
    except (ValueError, OSError) as error:
        raise RuntimeError(
            f"cannot have {files} open files: {error}; ask as root, or for fewer"
        ) from None


def arguments() -> argparse.Namespace:
    parser = options.Parser(prog="python -m loadtest.slow_readers", description=__doc__)
    parser.add_argument("--readers", type=options.whole(1, 100_000), default=10_000)
    parser.add_argument("--routers", type=options.whole(1, 64), default=1)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    name = "slow_readers" if given.routers == 1 else f"slow_readers.{given.routers}-routers"
    bench = Bench(name, may_use_gpu=False)
    asyncio.run(measure(bench, given.readers, given.routers))
    bench.finish()


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:
        sys.exit(f"slow readers: {error}")
