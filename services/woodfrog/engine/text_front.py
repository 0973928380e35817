"""Chat completions and completions over the text engine."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping

from woodfrog.clock import Clock
from woodfrog.engine.admission import Ticket
from woodfrog.engine.app import Answer, json_object
from woodfrog.engine.choice import Choice
from woodfrog.engine.engine import TextEngine
from woodfrog.engine.parse import chat_request, completion_request
from woodfrog.engine.render import Envelope, Renderer
from woodfrog.engine.request import GenerationRequest, Piece
from woodfrog.engine.sampling import Sampler

_BODY_BYTES = 1 << 20  # tokenizing blocks the loop, some 0.3 s for this much
_BYTES_PER_TOKEN = 16  # on top of it, for long contexts


class TextFront:
    def __init__(self, engine: TextEngine, clock: Clock) -> None:
        self.methods: Mapping[str, str] = {
            "/v1/chat/completions": "POST",
            "/v1/completions": "POST",
        }
        self.body_bytes_max = _BODY_BYTES + _BYTES_PER_TOKEN * engine.limits.context_tokens
        self._engine = engine
        self._clock = clock

    async def handle(self, path: str, raw: bytes, answer: Answer) -> None:
        engine = self._engine
        body = json_object(raw)
        if path == "/v1/chat/completions":
            request = chat_request(body, engine.limits, engine.tokenizer.encode_chat)
        else:
            request = completion_request(body, engine.limits, engine.tokenizer.encode)
        tickets = engine.admission.take(len(request.prompts) * request.n)
        try:
            if request.stream:
                await self._stream(request, tickets, answer)
            else:
                await self._whole(request, tickets, answer)
        finally:
            for ticket in tickets:
                ticket.give_back()

    async def _whole(
        self, request: GenerationRequest, tickets: list[Ticket], answer: Answer
    ) -> None:
        pieces: list[list[Piece]] = [[] for _ in tickets]

        async def keep(index: int, piece: Piece) -> None:
            pieces[index].append(piece)

        await self._run(request, tickets, keep)
        answers = [
            Piece(
                text="".join(piece.text for piece in some),
                logprobs=[entry for piece in some for entry in piece.logprobs],
                token_count=sum(piece.token_count for piece in some),
                finish_reason=some[-1].finish_reason,
            )
            for some in pieces
        ]
        await answer.json(200, self._renderer(request).whole(answers))

    async def _stream(
        self, request: GenerationRequest, tickets: list[Ticket], answer: Answer
    ) -> None:
        renderer = self._renderer(request)

        async def send(index: int, piece: Piece) -> None:
            chunk = renderer.chunk(index, piece)
            if chunk is not None:
                await answer.event(chunk)

        await self._run(request, tickets, send)
        if request.include_usage:
            await answer.event(renderer.usage_chunk())
        await answer.event("[DONE]")
        await answer.end()

    async def _run(
        self,
        request: GenerationRequest,
        tickets: list[Ticket],
        emit: Callable[[int, Piece], Awaitable[None]],
    ) -> None:
        """All answers at once, each in its own slot; the first failure ends the others."""
        engine = self._engine

        async def run(index: int, ticket: Ticket) -> None:
            prompt = request.prompts[index // request.n]
            choice = Choice(request, prompt, Sampler(request.sampling, prompt, stream=index))
            try:
                await choice.run(
                    engine.batcher, engine.tokenizer.decode, ticket, lambda p: emit(index, p)
                )
            finally:
                ticket.give_back()

        try:
            async with asyncio.TaskGroup() as group:
                for index, ticket in enumerate(tickets):
                    group.create_task(run(index, ticket))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    def _renderer(self, request: GenerationRequest) -> Renderer:
        envelope = Envelope(
            id=("chatcmpl-" if request.chat else "cmpl-") + os.urandom(12).hex(),
            created=int(self._clock.wall()),
            model=self._engine.settings.model_name,
            fingerprint=self._engine.fingerprint,
        )
        return Renderer(request, envelope, self._engine.tokenizer.bytes_of)
