"""Chat completions and completions over the text engine."""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from woodfrog.clock import Clock
from woodfrog.engine.choice import Choice
from woodfrog.engine.engine import TextEngine
from woodfrog.engine.parse import chat_request, completion_request
from woodfrog.engine.reply import Emit, Reply
from woodfrog.engine.request import GenerationRequest
from woodfrog.engine.responses import renamed, response_request
from woodfrog.engine.sampling import Sampler
from woodfrog.engine.transcript import Decode
from woodfrog.errors import InvalidArgument
from woodfrog.replica.admission import Ticket
from woodfrog.replica.app import Answer, json_object

if TYPE_CHECKING:
    from woodfrog.engine.constraint import Constraint

RESPONSES = "/v1/responses"
_BODY_BYTES = 1 << 20  # tokenizing blocks the loop, some 0.3 s for this much
_BYTES_PER_TOKEN = 16  # on top of it, for long contexts


class TextFront:
    def __init__(self, engine: TextEngine, clock: Clock) -> None:
        self.methods: Mapping[str, str] = {
            "/v1/chat/completions": "POST",
            "/v1/completions": "POST",
            RESPONSES: "POST",
        }
        self.body_bytes_max = _BODY_BYTES + _BYTES_PER_TOKEN * engine.limits.context_tokens
        self._engine = engine
        self._clock = clock

    async def handle(self, path: str, raw: bytes, answer: Answer) -> None:
        engine = self._engine
        body = json_object(raw)
        if path == "/v1/chat/completions":
            request = chat_request(body, engine.limits, engine.tokenizer.encode_chat)
        elif path == RESPONSES:
            request = response_request(body, engine.limits, engine.tokenizer.encode_chat)
        else:
            request = completion_request(
                body, engine.limits, engine.tokenizer.encode, engine.tokenizer.decode
            )
        tickets = engine.admission.take(len(request.prompts) * request.n)
        try:
            constraint = await self._constraint(request, path)
            reply = Reply(
                request,
                self._clock,
                engine.settings.model_name,
                engine.fingerprint,
                engine.tokenizer.bytes_of,
                body if path == RESPONSES else None,
            )
            await reply.send(lambda emit: self._run(request, constraint, tickets, emit), answer)
        finally:
            for ticket in tickets:
                ticket.give_back()

    async def _constraint(self, request: GenerationRequest, path: str) -> "Constraint | None":
        """Raises InvalidArgument when the schema cannot be followed."""
        if request.schema is None:
            return None
        assert self._engine.schemas is not None  # its limits say so
        try:
            return await self._engine.schemas.constraint(request.schema)
        except InvalidArgument as error:
            raise (renamed(error) if path == RESPONSES else error) from None

    async def _run(
        self,
        request: GenerationRequest,
        constraint: "Constraint | None",
        tickets: list[Ticket],
        emit: Emit,
    ) -> None:
        """All answers at once, each in its own slot; the first failure ends the others."""
        engine = self._engine
        decode: Decode = engine.tokenizer.decode
        if request.tools is not None:
            decode = engine.tokenizer.decoder_showing(request.tools.marks)

        async def run(index: int, ticket: Ticket) -> None:
            prompt = request.prompts[index // request.n]
            own = constraint.copy() if constraint is not None else None
            sampler = Sampler(request.sampling, prompt, stream=index, constraint=own)
            choice = Choice(request, prompt, sampler)
            try:
                await choice.run(engine.batcher, decode, ticket, lambda p: emit(index, p))
            finally:
                ticket.give_back()

        try:
            async with asyncio.TaskGroup() as group:
                for index, ticket in enumerate(tickets):
                    group.create_task(run(index, ticket))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
