"""The frame of a service process: telemetry, signals first, one loop, one sentence when it cannot start."""

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable

import uvloop

from woodfrog import telemetry
from woodfrog.errors import WoodfrogError

log = logging.getLogger(__name__)


def run(
    service: str,
    main: Callable[[asyncio.Event], Awaitable[None]],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
) -> None:
    """Runs `main(stop)` until it returns; SIGTERM and SIGINT set `stop`. Exits 1 on an error, with its sentence."""
    telemetry.init(service)

    async def framed() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, stop.set)
        await main(stop)

    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(framed())
    except WoodfrogError as error:
        log.error("cannot run", extra={"reason": error.reason, "error": error.message})
        sys.exit(1)
    finally:
        telemetry.flush()
