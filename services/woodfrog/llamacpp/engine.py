"""llama.cpp's server behind the replica contract: what it loads, how it drains, and what its canary says."""

import asyncio
import logging
import os
import platform
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

from woodfrog.errors import FailedPrecondition, Internal, InvalidArgument
from woodfrog.llamacpp.gguf_header import Header
from woodfrog.llamacpp.inner import Inner
from woodfrog.llamacpp.kv import KvMemory
from woodfrog.llamacpp.settings import Settings
from woodfrog.replica import entropy
from woodfrog.replica.admission import Admission

log = logging.getLogger(__name__)

WAITING_MAX = 64
# Any model goes on with the alphabet, so surely that company in its batch cannot change its mind.
CANARY = {"prompt": "a b c d e f g", "n_predict": 2}
BRIEF_CANARY = {"prompt": "a b c", "n_predict": 1}
PROBE_TEXT = "Say in one short sentence what a frog does in winter."
_CONTEXT_STEP = 256  # tokens, to which llama.cpp itself rounds up
_BATCH_TOKENS = 512  # computed at once; memory to compute in grows with it
_ERRORS_ONLY = 1
_POLL_S = 0.002


class LlamaEngine:
    """Its parts exist once `load` has returned. `close_connections` belongs to the HTTP server."""

    kv: KvMemory
    inner: Inner
    header: Header
    context_tokens: int
    close_connections: Callable[[], Awaitable[None]]

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.admission = Admission(settings.arguments.slots, WAITING_MAX)
        self._server: Any = None
        self._stages: dict[str, float] = {}
        self._versions = {"python": platform.python_version()}

    def load(self) -> None:
        """Blocks for a moment; runs in a thread of its own."""
        began = perf_counter()
        self.header = Header.read(self.settings.model)
        try:
            import xllamacpp
        except ImportError as error:
            raise FailedPrecondition(
                "ENGINE_NOT_INSTALLED",
                f"llama.cpp is not installed: {error}; run `pip install 'woodfrog[llamacpp]'`",
            ) from None
        self._versions["xllamacpp"] = metadata.version("xllamacpp")
        folder = Path(xllamacpp.__file__).parent
        self.kv = KvMemory(next(folder.glob("xllamacpp.*.so")))
        imported = perf_counter()
        with suppress(FileNotFoundError):  # llama.cpp does not start over an old one
            self.settings.inner.unlink()
        try:
            self._server = xllamacpp.Server(self._parameters(xllamacpp))
        except RuntimeError:
            raise InvalidArgument(
                "GGUF_NOT_LOADED",
                f"llama.cpp does not load {self.settings.model.name} (architecture {self.header.architecture}): it is cut"
                " short or damaged, or this version does not know its architecture; download it again or take another one",
            ) from None
        self.inner = Inner(self.settings.inner)
        self._stages = {
            "import_s": round(imported - began, 3),
            "weights_s": round(perf_counter() - imported, 3),
        }

    def _parameters(self, xllamacpp: Any) -> Any:
        arguments = self.settings.arguments
        room = self.header.context_tokens or arguments.context_tokens or 2048
        tokens = min(arguments.context_tokens or room, room)
        self.context_tokens = -(-tokens // _CONTEXT_STEP) * _CONTEXT_STEP
        sequences = arguments.slots + 1  # the canary never waits for requests
        own = xllamacpp.CommonParams()
        own.model.path = str(self.settings.model)
        own.model_alias = {self.settings.model_name}
        own.hostnames = [str(self.settings.inner)]
        own.n_ctx, own.n_parallel = self.context_tokens * sequences, sequences
        own.kv_unified = False
        own.n_batch = own.n_ubatch = _BATCH_TOKENS
        own.embedding = self.header.pools
        if own.embedding:
            # A text is one batch, and llama.cpp aborts where a batch does not divide by sequences.
            tokens = max(_BATCH_TOKENS, self.context_tokens)
            own.n_batch = own.n_ubatch = -(-tokens // sequences) * sequences
        for threads in (own.cpuparams, own.cpuparams_batch):
            threads.n_threads, threads.poll = arguments.threads, 0  # at rest nothing spins
        own.n_threads_http = sequences + 2  # one for each request, and some for what needs no slot
        # Weights are mapped as they lie: another order of theirs would be memory of the process.
        own.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MMAP
        own.no_extra_bufts, own.n_gpu_layers, own.fit_params = True, 0, False
        # What one client asked is neither kept for, nor seen in the latency of, another one.
        own.cache_prompt, own.cache_idle_slots = False, False
        own.cache_ram_mib, own.n_ctx_checkpoints = 0, 0
        own.endpoint_slots, own.ui, own.warmup, own.verbosity = True, False, False, _ERRORS_ONLY
        return own

    async def warm(self) -> None:
        """Run what the first request will need: connection, prefill, decode."""
        began = perf_counter()
        self.kv.watch()
        await self.canary()
        await self._computed()
        self.kv.find()
        await self.canary()
        self.brief_canary()
        entropy.draw()  # a generator that was never used hides that clones share it
        self._stages["warm_s"] = round(perf_counter() - began, 3)
        log.info("engine loaded", extra=self._stages)

    def describe(self) -> dict[str, Any]:
        loaded = self._server is not None
        return {
            "model": self.settings.model_name,
            "active": self.admission.active,
            "waiting": self.admission.waiting,
            "slots": self.admission.slots,
            "kv_bytes": self.kv.size_bytes if loaded else 0,
            "probe": self._probe() if loaded else None,
            "load_stages": self._stages,
            "versions": self._versions,
        }

    def _probe(self) -> dict[str, Any]:
        name = self.settings.model_name
        if self.header.pools:
            return {"path": "/v1/embeddings", "body": {"model": name, "input": PROBE_TEXT}}
        body = {"model": name, "max_tokens": 2, "temperature": 0, "stream": True}
        if self.header.template:
            message = {"role": "user", "content": PROBE_TEXT}
            return {"path": "/v1/chat/completions", "body": {**body, "messages": [message]}}
        return {"path": "/v1/completions", "body": {**body, "prompt": PROBE_TEXT}}

    def failure(self) -> str | None:
        """None: what breaks llama.cpp ends the process."""
        return None

    async def drain(self) -> None:
        await self.admission.empty()
        await self.close_connections()
        await self._disconnected()
        await self._computed()
        await self._disconnected()

    async def _disconnected(self) -> None:
        """llama.cpp cancels a request, and only then ends its side of the connection."""
        while self.inner.connected():
            await asyncio.sleep(_POLL_S)

    async def _computed(self) -> None:
        """A slot whose client has gone computes on until its next token."""
        while await self.inner.busy():
            await asyncio.sleep(_POLL_S)

    def clear(self) -> None:
        self.kv.clear()

    def release(self) -> None:
        self.kv.release()

    def regain(self) -> None:
        self.kv.regain()

    async def canary(self) -> list[int]:
        if self.header.pools:
            answer = await self.inner.json("POST", "/v1/embeddings", {"input": CANARY["prompt"]})
            return _numbers(answer)
        answer = await self.inner.json("POST", "/completion", _certain(CANARY))
        return [int(token) for token in answer["tokens"]]

    def brief_canary(self) -> list[int]:
        """In this thread, and not over HTTP: a thaw waits for it."""
        if self.header.pools:
            return _numbers(self._server.handle_embeddings({"input": CANARY["prompt"]}))
        answer = self._server.handle_completions(_certain(BRIEF_CANARY))
        choices = answer.get("choices")
        if not choices:
            raise Internal("CANARY_FAILED", f"llama.cpp answers the canary by {answer!r:.200}")
        return list(choices[0]["text"].encode())

    def stop(self) -> None:
        self._server = None  # waits for its threads
        with suppress(FileNotFoundError):
            os.unlink(self.settings.inner)


def _numbers(answer: dict[str, Any]) -> list[int]:
    """Of a vector of length 1 where its largest number is, by size: company in its batch changes last digits only."""
    sizes = [abs(number) for number in answer["data"][0]["embedding"]]
    return [sizes.index(max(sizes))]


def _certain(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "temperature": 0, "cache_prompt": False, "return_tokens": True, "ignore_eos": True}  # fmt: skip
