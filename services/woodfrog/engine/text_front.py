"""Chat completions and completions over the text engine."""

import asyncio
from collections.abc import Mapping

from woodfrog.clock import Clock
from woodfrog.engine.choice import Choice
from woodfrog.engine.engine import TextEngine
from woodfrog.engine.parse import chat_request, completion_request
from woodfrog.engine.reply import Emit, Reply
from woodfrog.engine.request import GenerationRequest
from woodfrog.engine.sampling import Sampler
from woodfrog.replica.admission import Ticket
from woodfrog.replica.app import Answer, json_object

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
            reply = Reply(
                request,
                self._clock,
                engine.settings.model_name,
                engine.fingerprint,
                engine.tokenizer.bytes_of,
            )
            await reply.send(lambda emit: self._run(request, tickets, emit), answer)
        finally:
            for ticket in tickets:
                ticket.give_back()

    async def _run(self, request: GenerationRequest, tickets: list[Ticket], emit: Emit) -> None:
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
