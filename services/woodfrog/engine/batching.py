"""Transformers' batching manager as the engine uses it: submit, follow, cancel; memory that comes and goes."""

import asyncio
import itertools
import threading
from collections.abc import AsyncGenerator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)

from woodfrog.engine import graphs
from woodfrog.engine.graphs import Shapes
from woodfrog.engine.sampling import PerRequestSampling, Sampler
from woodfrog.engine.settings import EngineArguments
from woodfrog.errors import Unavailable
from woodfrog.replica import device
from woodfrog.replica.device import DeviceMemory
from woodfrog.replica.graph_pool import GraphPool
from woodfrog.replica.memory import Region

PAGE_TOKENS = 32
BATCH_TOKENS = 256  # longer prompts are read in parts, so that running answers do not stall
STOP_TIMEOUT_S = 5.0


class Batcher:
    """Owns the model's generation thread. `submit` and `cancel` belong to the event loop's thread."""

    def __init__(
        self,
        model: Any,
        eos: list[int],
        arguments: EngineArguments,
        memory: DeviceMemory | None = None,
    ) -> None:
        """`memory` of the GPU that the model is on."""
        self.eos = eos
        self._ids = itertools.count()
        pages = -(-arguments.context_tokens // PAGE_TOKENS)
        # One sequence more than slots, for the canary: no request ever has to give way.
        sequences = arguments.slots + 1
        config = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=sequences * pages,
            max_batch_tokens=max(BATCH_TOKENS, sequences),
            max_requests_per_batch=sequences,
            safety_margin=0.0,
            # Shared prefixes would let one client's timing tell what another asked,
            # and greedy answers depend on who came before.
            allow_block_sharing=False,
            auto_switch_to_flash=False,
            use_async_batching=False,
            seed=arguments.seed,
        )
        greedy = GenerationConfig(
            do_sample=False, eos_token_id=eos, pad_token_id=eos[0] if eos else 0
        )
        with torch.inference_mode(), _LargeTensorsInRegions(memory) as allocations:
            self._manager = model.init_continuous_batching(greedy, config)
            processors = ContinuousBatchingLogitsProcessorList(
                LogitsProcessorList([PerRequestSampling()])
            )
            processors.tensors_required = 1
            self._manager.logit_processor = processors
            self._manager._wake_up_loop = _UntilWoken()
            self._manager.warmup()  # allocates everything; without CUDA graphs it computes nothing
        #: What goes at park: append what else shall.
        self.regions: list[Region | device.Region | GraphPool] = [*allocations.regions]
        pool = None
        if memory is not None and model.device.type == "cuda" and arguments.graphs:
            pool = GraphPool(memory)
        with torch.inference_mode():
            if arguments.compile:  # before anything is captured
                from woodfrog.engine import compiled

                compiled.install(self._manager, model, Shapes.of(self._manager) if pool else None)
            if pool is not None:
                graphs.install(self._manager, model, pool)
                self.regions.append(pool)
            if arguments.compile:
                compiled.seal()

    @property
    def kv_bytes(self) -> int:
        return sum(region.size_bytes for region in self.regions)

    def start(self) -> None:
        with torch.inference_mode():  # the manager's thread takes the mode over
            self._manager.start()

    def stop(self) -> None:
        status = self._manager.background_thread_status
        status.request_stop(status.HARD_STOP, global_rank=0)
        self._manager._wake_up_loop.set()  # which stop itself leaves out
        self._manager.stop(block=True, timeout=STOP_TIMEOUT_S, hard_stop=True)

    def failure(self) -> str | None:
        error = self._manager.background_thread_status.fatal_error
        if error is not None:
            return f"{type(error).__name__}: {error}"
        return None if self._manager.is_running() else "the generation thread ended"

    def submit(
        self, prompt: list[int], sampler: Sampler, max_tokens: int, ignore_eos: bool = False
    ) -> "Generation":
        """Raises Unavailable once the generation thread is dead."""
        self._drop_strays()
        generation = Generation(self, f"sequence-{next(self._ids)}")
        self._manager.register_result_handler(generation.id, generation.deliver)
        accepted = self._manager.add_request(
            prompt,
            request_id=generation.id,
            max_new_tokens=max_tokens,
            streaming=True,
            eos_token_id=-1 if ignore_eos else self.eos,
            sampler=sampler,
        )
        if accepted is None:
            self.forget(generation.id)
            raise Unavailable("ENGINE_FAILED", "the engine died; another replica must answer")
        return generation

    def cancel(self, sequence: str) -> None:
        """Takes effect before the next step; the manager sends no last result."""
        self._manager.cancel_request(sequence)
        self.forget(sequence)

    def forget(self, sequence: str) -> None:
        self._manager.output_router.result_handlers.pop(sequence, None)

    def clear(self) -> None:
        """All KV memory reads as zero. Nothing may be running."""
        with self._manager.pause():
            for region in self.regions:
                region.renew()

    def release(self) -> None:
        with self._manager.pause():
            for region in self.regions:
                region.release()

    def regain(self) -> None:
        for region in self.regions:
            region.renew()

    def _drop_strays(self) -> None:
        """Results of a step that was under way when their sequence was cancelled."""
        strays = self._manager.output_router.output_queue
        while not strays.empty():
            strays.get_nowait()


class Generation:
    """The tokens of one sequence as they come."""

    def __init__(self, batcher: Batcher, sequence: str) -> None:
        self.id = sequence
        self._batcher = batcher
        self._newest: Any = None
        self._changed = asyncio.Event()

    def deliver(self, output: Any) -> None:
        self._newest = output
        self._changed.set()

    async def tokens(self) -> AsyncGenerator[list[int], None]:
        """New tokens, at least one at a time. A slow reader gets more at once; nothing piles up."""
        seen = 0
        while True:
            await self._changed.wait()
            self._changed.clear()
            output = self._newest
            if output.error is not None:
                raise Unavailable("ENGINE_FAILED", f"the engine died: {output.error}")
            new, seen = output.generated_tokens[seen:], len(output.generated_tokens)
            if new:
                yield new
            if output.is_finished():
                return

    def cancel(self) -> None:
        """Also right when it is finished."""
        if self._newest is None or not self._newest.is_finished():
            self._batcher.cancel(self.id)


class _UntilWoken(threading.Event):
    """The manager looks for work ten times a second; it is woken for all of it, so that an idle replica may sleep."""

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait()


class _LargeTensorsInRegions(TorchFunctionMode):  # type: ignore[misc]
    """While active, large tensors get memory of ours, which can go and come back at the same address.

    The manager keeps two: the KV cache, and the attention mask, of which each step writes what it reads. Both may
    read as zero between requests. (Its own `torch.zeros` would touch every page of the cache at start.)
    """

    _LARGE_BYTES = 1 << 20

    def __init__(self, memory: DeviceMemory | None) -> None:
        super().__init__()
        self.regions: list[Region | device.Region] = []
        self._memory = memory

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.zeros, torch.empty):
            on_meta = func(*args, **{**kwargs, "device": "meta", "pin_memory": False})
            if on_meta.nbytes >= self._LARGE_BYTES:
                region = self._region(on_meta.nbytes)
                self.regions.append(region)
                return region.view()[: on_meta.nbytes].view(on_meta.dtype).view(on_meta.shape)
        return func(*args, **kwargs)

    def _region(self, size_bytes: int) -> Region | device.Region:
        if self._memory is None:
            return Region(size_bytes)
        return device.Region(self._memory, size_bytes)
