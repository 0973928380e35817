"""One answer to one prompt: from a slot to pieces of text."""

from collections.abc import Awaitable, Callable
from contextlib import aclosing

from woodfrog.engine.batching import Batcher
from woodfrog.engine.request import GenerationRequest, Piece
from woodfrog.engine.sampling import Sampler
from woodfrog.engine.transcript import Decode, Transcript
from woodfrog.replica.admission import Ticket

Emit = Callable[[Piece], Awaitable[None]]


class Choice:
    def __init__(self, request: GenerationRequest, prompt: list[int], sampler: Sampler) -> None:
        self._request = request
        self._prompt = prompt
        self._sampler = sampler

    async def run(self, batcher: Batcher, decode: Decode, ticket: Ticket, emit: Emit) -> None:
        """Emit pieces, the last one with a finish reason. Cancelled, it leaves no sequence behind."""
        request = self._request
        eos = () if request.ignore_eos else batcher.eos
        transcript = Transcript(decode, request.stops, eos, request.max_tokens)
        async with ticket:
            generation = batcher.submit(
                self._prompt, self._sampler, request.max_tokens, request.ignore_eos
            )
            seen = 0
            try:
                async with aclosing(generation.tokens()) as batches:
                    async for tokens in batches:
                        self._sampler.check()
                        logprobs = self._sampler.logprobs[seen : seen + len(tokens)]
                        seen += len(tokens)
                        piece = transcript.add(tokens, logprobs)
                        await emit(piece)
                        if piece.finish_reason:
                            return
            finally:
                generation.cancel()
