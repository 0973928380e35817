"""The text engine behind the replica contract: what it loads, how it drains, and what its canary says."""

import logging
import platform
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from woodfrog.engine.parse import Limits
from woodfrog.engine.render import fingerprint
from woodfrog.engine.request import GREEDY, Sampling
from woodfrog.engine.settings import Settings
from woodfrog.replica import entropy
from woodfrog.replica.admission import Admission
from woodfrog.replica.weights import WeightMemory

if TYPE_CHECKING:  # imported by load(), which the control socket does not wait for
    from woodfrog.engine.batching import Batcher
    from woodfrog.engine.brief import BriefCanary
    from woodfrog.engine.schemas import Schemas
    from woodfrog.engine.tokenizer import Tokenizer
    from woodfrog.replica.device import DeviceMemory

log = logging.getLogger(__name__)

WAITING_MAX = 64
WEIGHTS_TIMEOUT_S = 600.0  # from a slow store a large model takes minutes
# Any model goes on with the alphabet, so surely that company in its batch cannot change its mind.
CANARY_TEXT = "a b c d e f g"
CANARY_TOKENS = 1
PROBE_TEXT = "Say in one short sentence what a frog does in winter."


class TextEngine:
    """Its parts exist once `load` has returned. `close_connections` belongs to the HTTP server."""

    batcher: "Batcher"
    brief: "BriefCanary"
    tokenizer: "Tokenizer"
    schemas: "Schemas | None"
    """None for a model that cannot say that an answer is over."""
    limits: Limits
    close_connections: Callable[[], Awaitable[None]]

    def __init__(self, settings: Settings, weights: WeightMemory | None = None) -> None:
        """`weights` when the model runs in the GPU memory that the settings name."""
        self.settings = settings
        self._weights = weights
        self._memory: DeviceMemory | None = None
        self.admission = Admission(settings.arguments.slots, WAITING_MAX)
        self._stages: dict[str, float] = {}
        self._versions = {"python": platform.python_version()}
        self._loaded = False
        self._canary_prompt: list[int] = []

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.settings.model_name, self._versions)

    def load(self) -> None:
        """Blocks for seconds; runs in a thread of its own."""
        began = perf_counter()
        from woodfrog.engine import loading
        from woodfrog.engine.batching import Batcher
        from woodfrog.engine.brief import BriefCanary
        from woodfrog.engine.constraint import Grammars
        from woodfrog.engine.schemas import Schemas
        from woodfrog.engine.tokenizer import Tokenizer

        arguments = self.settings.arguments
        loading.prepare(arguments.threads, arguments.seed)
        self._versions |= loading.versions()
        if arguments.compile:
            from woodfrog.engine import compiled

            compiled.prepare()
        imported = perf_counter()
        if self._weights is None:
            model = loading.load_model(self.settings.model)
        else:
            self._memory = loading.open_weights(
                self.settings.device_memory, self.settings.model, self._weights, WEIGHTS_TIMEOUT_S
            )
            model = loading.load_onto(self.settings.model, self._memory, self._weights)
        self.tokenizer = Tokenizer(self.settings.model)
        self._canary_prompt = self.tokenizer.encode(CANARY_TEXT)
        room = loading.positions(model)
        arguments = replace(arguments, context_tokens=min(arguments.context_tokens, room))
        graphs = None
        if self._memory is not None and model.device.type == "cuda" and arguments.graphs:
            from woodfrog.engine.graphed import Graphs

            graphs = Graphs(self._memory)  # of its own: it may run beside a step of the batch
        self.brief = BriefCanary(model, self._canary_prompt, graphs)
        if arguments.compile:
            self.brief.compile()
        eos = loading.eos_tokens(self.settings.model, model)
        self.batcher = Batcher(model, eos, arguments, self._memory)
        if graphs is not None:
            self.batcher.regions.append(graphs.pool)
        known, computed = (
            self.tokenizer.vocabulary_size,
            model.get_input_embeddings().num_embeddings,
        )
        folder = self.settings.model
        words = max(known, computed)
        self.schemas = Schemas(Grammars(folder, words, eos).constraint) if eos else None
        self.limits = Limits(
            arguments.context_tokens,
            min(known, computed),
            arguments.slots,
            schemas=self.schemas is not None,
            tool_format=self.tokenizer.tool_format,
        )
        self._stages = {
            "import_s": round(imported - began, 3),
            "weights_s": round(perf_counter() - imported, 3),
        }

    async def warm(self) -> None:
        """Run what the first request will need: prefill, decode, sampling, each generator."""
        began = perf_counter()
        self.batcher.start()
        self._loaded = True
        await self.canary()
        self.brief_canary()
        warm = Sampling(temperature=0.7, top_p=0.9, top_k=50, presence_penalty=0.1, logprobs=1)
        await self._generate(self._canary_prompt, warm, token_count=2)  # the second is a decode
        entropy.draw()  # a generator that was never used hides that clones share it
        self._stages["warm_s"] = round(perf_counter() - began, 3)
        log.info("engine loaded", extra=self._stages)

    def describe(self) -> dict[str, Any]:
        return {
            "model": self.settings.model_name,
            "active": self.admission.active,
            "waiting": self.admission.waiting,
            "slots": self.admission.slots,
            "kv_bytes": self.batcher.kv_bytes if self._loaded else 0,
            "probe": self._probe() if self._loaded else None,
            "load_stages": self._stages,
            "versions": self._versions,
        }

    def _probe(self) -> dict[str, Any]:
        body = {
            "model": self.settings.model_name,
            "max_tokens": 2,
            "temperature": 0,
            "stream": True,
        }
        if self.tokenizer.has_template:
            message = {"role": "user", "content": PROBE_TEXT}
            return {"path": "/v1/chat/completions", "body": {**body, "messages": [message]}}
        return {"path": "/v1/completions", "body": {**body, "prompt": PROBE_TEXT}}

    def failure(self) -> str | None:
        return self.batcher.failure() if self._loaded else None

    async def drain(self) -> None:
        await self.admission.empty()
        if self.schemas is not None:
            await self.schemas.quiet()
        await self.close_connections()

    def clear(self) -> None:
        if self.schemas is not None:
            self.schemas.forget()
        self.batcher.clear()

    def release(self) -> None:
        self.batcher.release()
        if self._memory is not None:
            self._memory.settle()

    def regain(self) -> None:
        self.batcher.regain()

    async def canary(self) -> list[int]:
        return await self._generate(self._canary_prompt, GREEDY, CANARY_TOKENS)

    def brief_canary(self) -> list[int]:
        return self.brief.tokens()

    def stop(self) -> None:
        if self._loaded:
            self.batcher.stop()

    async def _generate(self, prompt: list[int], sampling: Sampling, token_count: int) -> list[int]:
        from woodfrog.engine.sampling import Sampler

        sampler = Sampler(sampling, prompt)
        generation = self.batcher.submit(prompt, sampler, token_count, ignore_eos=True)
        tokens: list[int] = []
        try:
            async with aclosing(generation.tokens()) as batches:
                async for new in batches:
                    sampler.check()
                    tokens += new
        finally:
            generation.cancel()
        return tokens
