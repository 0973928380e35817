"""What every kind of model has in common that computes one request at a time, in a thread of its own."""

import asyncio
import logging
import platform
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from woodfrog.engine.settings import Settings
from woodfrog.replica import entropy
from woodfrog.replica.admission import Admission
from woodfrog.replica.weights import WeightMemory

if TYPE_CHECKING:
    from woodfrog.engine.graphed import Graphs
    from woodfrog.replica.device import DeviceMemory

log = logging.getLogger(__name__)
WAITING_MAX = 64
WEIGHTS_TIMEOUT_S = 600.0
T = TypeVar("T")


@dataclass(slots=True)
class Stop:
    """Set from another thread: the work ends before its next step."""

    asked: bool = False


class ModuleEngine(ABC):
    """Its model exists once `load` has returned. `close_connections` belongs to the HTTP server."""

    close_connections: Callable[[], Awaitable[None]]

    def __init__(self, settings: Settings, weights: WeightMemory | None = None) -> None:
        """`weights` when the model runs in the GPU memory that the settings name."""
        self.settings = settings
        self.admission = Admission(settings.arguments.slots, WAITING_MAX)
        self.device = "cpu"
        self.graphs: Graphs | None = None  # on a GPU
        self._weights = weights
        self._memory: DeviceMemory | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._stages: dict[str, float] = {}
        self._versions = {"python": platform.python_version()}

    @abstractmethod
    def build(self) -> None:
        """Makes the model, with `tensors` for its weights on a GPU."""

    @abstractmethod
    def warm_up(self) -> None:
        """Computes everything that a first request will need."""

    @abstractmethod
    def full_canary(self) -> list[int]:
        """By all of the model."""

    @abstractmethod
    def probe(self) -> dict[str, Any]:
        """A short request as a client would send it: `path` and `body`."""

    @abstractmethod
    def brief(self) -> list[int]:
        """Numbers that are the same in every healthy replica of the model, within milliseconds."""

    def load(self) -> None:
        """Blocks for seconds; runs in a thread of its own."""
        began = perf_counter()
        from woodfrog.engine import loading

        loading.prepare(self.settings.arguments.threads, self.settings.arguments.seed)
        self._versions |= loading.versions()
        imported = perf_counter()
        if self._weights is not None:
            self._memory = loading.open_weights(
                self.settings.device_memory, self.settings.model, self._weights, WEIGHTS_TIMEOUT_S
            )
            self.device = self._memory.torch_device
            if self.device == "cuda" and self.settings.arguments.graphs:
                from woodfrog.engine.graphed import Graphs

                self.graphs = Graphs(self._memory)
        self.build()
        self._stages = {
            "import_s": round(imported - began, 3),
            "weights_s": round(perf_counter() - imported, 3),
        }

    async def warm(self) -> None:
        began = perf_counter()
        await self.compute(self.warm_up)
        await self.canary()
        self.brief_canary()
        if self.graphs is not None:
            self.graphs.complete = True
        entropy.draw()  # a generator that was never used hides that clones share it
        self._stages["warm_s"] = round(perf_counter() - began, 3)
        log.info("engine loaded", extra=self._stages)

    async def compute(self, work: Callable[[], T]) -> T:
        """`work` in the compute thread, after what came before it."""

        return await asyncio.wrap_future(self._submit(work))

    def brief_canary(self) -> list[int]:
        """Blocks the caller for what it takes; nothing else may be computing."""
        return self._submit(self.brief).result()

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        def run() -> T:
            import torch

            with torch.inference_mode():
                return work()

        return self._thread.submit(run)

    def transformer(self, *, generates: bool = True) -> Any:
        """The folder's model of Transformers, its weights mapped, or shared on a GPU. Raises InvalidArgument."""
        from woodfrog.engine import loading

        folder = self.settings.model
        if self._memory is None:
            return loading.load_model(folder, generates=generates)
        assert self._weights is not None
        return loading.load_onto(folder, self._memory, self._weights, generates=generates)

    def graphed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """As captured graphs, where there are such."""
        return self.graphs.of(function) if self.graphs is not None else function

    def tensors(self, prefix: str = "") -> dict[str, Any]:
        """The weights in GPU memory; those of one folder with its `prefix` ("unet/")."""
        assert self._weights is not None
        return self._weights.tensors(prefix)

    @property
    def shared(self) -> WeightMemory | None:
        return self._weights

    def describe(self) -> dict[str, Any]:
        return {
            "model": self.settings.model_name,
            "active": self.admission.active,
            "waiting": self.admission.waiting,
            "slots": self.admission.slots,
            "kv_bytes": 0,
            "probe": self.probe(),
            "load_stages": self._stages,
            "versions": self._versions,
        }

    def failure(self) -> str | None:
        return None

    async def drain(self) -> None:
        await self.admission.empty()
        await self.close_connections()
        await self.compute(lambda: None)  # after what still runs for a client that left

    def clear(self) -> None:
        if self.graphs is not None:
            self.graphs.pool.renew()

    def release(self) -> None:
        if self.graphs is not None:
            self.graphs.pool.release()
        if self._memory is not None:
            self._memory.settle()

    def regain(self) -> None:
        if self.graphs is not None:
            self.graphs.pool.renew()

    async def canary(self) -> list[int]:
        return await self.compute(self.full_canary)

    def stop(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
