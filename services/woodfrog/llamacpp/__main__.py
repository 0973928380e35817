"""`python -m woodfrog.llamacpp`: settings, control socket, model, HTTP."""

import asyncio
import gc
import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from woodfrog.clock import SystemClock
from woodfrog.errors import FailedPrecondition, InvalidArgument
from woodfrog.llamacpp.engine import LlamaEngine
from woodfrog.llamacpp.settings import Settings, load
from woodfrog.replica.control import ControlServer
from woodfrog.replica.logs import LogRing
from woodfrog.replica.replica import Replica


def main() -> int:
    gc.disable()  # until everything is loaded: nothing of it is garbage
    # Read when llama.cpp gives up: it would call a debugger, and its own sentence would not be the last.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    # Before llama.cpp's OpenMP is loaded: threads that spin for each other take ten times as long once CPUs are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    ring = LogRing()
    logging.basicConfig(level=logging.INFO, handlers=[ring, logging.StreamHandler()])
    try:
        asyncio.run(serve(load(os.environ), ring))
    except (InvalidArgument, FailedPrecondition) as error:
        sys.stderr.write(error.message + "\n")
        return 2
    except (
        Exception
    ) as error:  # the outermost frame: the agent tells the last line, so it is a sentence
        logging.getLogger(__name__).exception("the engine failed")
        said = str(error).strip().splitlines() or ["no reason given"]
        sys.stderr.write(f"the model cannot be served: {type(error).__name__}: {said[0][:200]}\n")
        return 1
    return 0


async def serve(settings: Settings, ring: LogRing) -> None:
    engine = LlamaEngine(settings)
    replica = Replica(engine, ring)
    async with ControlServer(replica.verbs, settings.control):
        # Not asyncio.to_thread, whose thread would idle in every clone.
        with ThreadPoolExecutor(1) as pool:
            await asyncio.get_running_loop().run_in_executor(pool, engine.load)
        try:
            await engine.warm()
            from woodfrog.llamacpp.front import LlamaFront
            from woodfrog.replica.app import App
            from woodfrog.replica.server import HttpServer

            def listening() -> None:
                gc.freeze()  # collections in a clone must not touch, and so copy, what it shares
                gc.enable()
                replica.loaded()

            clock = SystemClock()
            app = App(LlamaFront(engine, clock), replica, settings.model_name, clock)
            server = HttpServer(app, settings.socket, listening)
            engine.close_connections = server.close_connections
            await server.serve()
        finally:
            engine.stop()


if __name__ == "__main__":
    sys.exit(main())
