"""Chat completions with images, as OpenAI defines them."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from woodfrog.clock import Clock
from woodfrog.engine.module_engine import Stop
from woodfrog.engine.reply import Emit, Reply
from woodfrog.engine.request import GenerationRequest, Piece
from woodfrog.replica.app import Answer, json_object

if TYPE_CHECKING:
    from woodfrog.engine.vision import VisionEngine

_BODY_BYTES_MAX = 4 << 20  # 3 MB of pictures
Told = GenerationRequest | tuple[int, Piece]


class VisionFront:
    def __init__(self, engine: "VisionEngine", clock: Clock) -> None:
        self.methods: Mapping[str, str] = {"/v1/chat/completions": "POST"}
        self.body_bytes_max = _BODY_BYTES_MAX
        self._engine = engine
        self._clock = clock

    async def handle(self, path: str, raw: bytes, answer: Answer) -> None:
        engine = self._engine
        body = json_object(raw)
        (ticket,) = engine.admission.take(1)
        try:
            async with ticket, aclosing(self._answering(body)) as told:
                request = await anext(told)
                assert isinstance(request, GenerationRequest)

                async def run(emit: Emit) -> None:
                    async for some in told:
                        assert isinstance(some, tuple)
                        await emit(*some)

                name, tokens = engine.settings.model_name, engine.tokenizer
                reply = Reply(request, self._clock, name, engine.fingerprint, tokens.bytes_of)
                await reply.send(run, answer)
        finally:
            ticket.give_back()

    async def _answering(self, body: dict[str, Any]) -> AsyncGenerator[Told, None]:
        """The request once it is read, then pieces of its answers. Closed early, it stops the compute thread's work."""
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[Told | None] = asyncio.Queue()  # bounded by the context
        stop = Stop()

        def tell(some: Told | None) -> None:
            loop.call_soon_threadsafe(told.put_nowait, some)

        def work() -> None:
            try:
                self._engine.answer(body, tell, lambda index, piece: tell((index, piece)), stop)
            finally:
                tell(None)

        working = asyncio.ensure_future(self._engine.compute(work))
        try:
            while (some := await told.get()) is not None:
                yield some
            await working
        finally:
            stop.asked = True
            working.cancel()
