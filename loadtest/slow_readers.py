"""Clients that ask for endless streams and read nothing of them: what the router's memory grows by, and what others feel.

    python -m loadtest.slow_readers [--readers 10000]

A real router process before a simulated engine; its bounds are raised to let all of them in, and they are not cut off as
they would be after a minute. `baseline` is the same router before they came.
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


async def measure(bench: Bench, readers: int) -> None:
    raise_limits(2 * readers + 128)  # the router has two for each reader
    settings = {
        "WOODFROG_ROUTER_REQUESTS_MAX": str(2 * readers + 64),
        "WOODFROG_ROUTER_CONNECTIONS_MAX": str(2 * readers + 64),
        "WOODFROG_ROUTER_UNREAD_WAIT_S": "3600",
    }
    with tempfile.TemporaryDirectory(prefix="woodfrog-load-") as name:
        async with router_process.opened(Path(name), _MODEL, 4 * readers, settings) as router:
            before = await others(bench, router, "baseline")
            async with router_process.slow_readers(router.http, _MODEL, readers):
                await settled(router)
                after = await others(bench, router, f"r{readers}")
            bench.add(f"r{readers}", "bytes_each", [(after - before) / readers])


async def others(bench: Bench, router: RouterProcess, case: str) -> int:
    """What clients feel that do read. Returns the router's memory, in bytes."""
    loads = [await wrk.load(router.http, _CONNECTIONS, _SECONDS, _ASKED) for _ in range(_ROUNDS)]
    bench.add(case, "p50_ms", [load.p50_ms for load in loads])
    bench.add(case, "p99_ms", [load.p99_ms for load in loads])
    resident = resident_bytes(router.pid)
    bench.add(case, "resident_mb", [resident / 1e6])
    return resident


async def settled(router: RouterProcess) -> None:
    """Until every stream is held back. Raises RuntimeError after ten minutes."""
    deadline = time.monotonic() + 600
    while True:
        try:
            for pid in (router.pid, router.engine_pid, router.pid):
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
    return parser.parse_args()


def main() -> None:
    bench = Bench("slow_readers")
    asyncio.run(measure(bench, arguments().readers))
    bench.finish()


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:
        sys.exit(f"slow readers: {error}")
