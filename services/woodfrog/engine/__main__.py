"""`python -m woodfrog.engine`: settings, control socket, model, HTTP."""

import asyncio
import gc
import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from woodfrog.clock import Clock, SystemClock
from woodfrog.engine.kinds import Kind, kind_of
from woodfrog.engine.settings import Settings, load
from woodfrog.errors import FailedPrecondition, InvalidArgument
from woodfrog.replica.control import ControlServer
from woodfrog.replica.logs import LogRing
from woodfrog.replica.replica import Replica
from woodfrog.replica.weights import WeightMemory


def main() -> int:
    gc.disable()  # until everything is loaded: nothing of it is garbage
    # Before the first import that reads them.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads would idle in each clone
    # Threads that spin for each other starve each other once replicas share CPUs: ten times slower was seen.
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
    weights = WeightMemory() if settings.device_memory else None
    engine, front_of = _engine(settings, weights)
    replica = Replica(engine, ring, weights)
    async with ControlServer(replica.verbs, settings.control):
        # Not asyncio.to_thread, whose thread would idle in every clone.
        with ThreadPoolExecutor(1) as pool:
            await asyncio.get_running_loop().run_in_executor(pool, engine.load)
        try:
            await engine.warm()
            from woodfrog.replica.app import App
            from woodfrog.replica.server import HttpServer

            def listening() -> None:
                gc.freeze()  # collections in a clone must not touch, and so copy, what it shares
                gc.enable()
                replica.loaded()

            clock = SystemClock()
            app = App(front_of(engine, clock), replica, settings.model_name, clock)
            server = HttpServer(app, settings.socket, listening)
            engine.close_connections = server.close_connections
            await server.serve()
        finally:
            engine.stop()


def _engine(settings: Settings, weights: WeightMemory | None) -> tuple[Any, Any]:
    """The engine of the model's kind, and a function (engine, clock) that makes what answers for it, once it has loaded."""
    kind = kind_of(settings.model)
    if settings.arguments.compile and kind is not Kind.TEXT:
        raise InvalidArgument(
            "BAD_SETTING",
            f"WOODFROG_ENGINE_ARGS: compile is for models that write text, and this one is of kind {kind.value}; add it"
            " without --compile",
        )
    match kind:
        case Kind.TEXT:
            from woodfrog.engine.engine import TextEngine

            def text_front(engine: Any, clock: Clock) -> Any:
                from woodfrog.engine.text_front import TextFront

                return TextFront(engine, clock)

            return TextEngine(settings, weights), text_front
        case Kind.EMBEDDINGS:
            from woodfrog.engine.embeddings import EmbeddingsEngine
            from woodfrog.engine.embeddings_front import EmbeddingsFront

            return EmbeddingsEngine(settings, weights), EmbeddingsFront
        case Kind.IMAGES:
            from woodfrog.engine.images import ImagesEngine
            from woodfrog.engine.images_front import ImagesFront

            return ImagesEngine(settings, weights), ImagesFront
        case Kind.CLASSIFIER:
            from woodfrog.engine.classifier import engine_of
            from woodfrog.engine.classifier_front import ClassifierFront

            return engine_of(settings, weights), ClassifierFront
        case Kind.VISION:
            from woodfrog.engine.vision import VisionEngine
            from woodfrog.engine.vision_front import VisionFront

            return VisionEngine(settings, weights), VisionFront


if __name__ == "__main__":
    sys.exit(main())
