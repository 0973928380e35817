"""Pieces of answers to one request, as one JSON body or as a stream of events."""

import os
from collections.abc import Awaitable, Callable

from woodfrog.clock import Clock
from woodfrog.engine.render import Envelope, Renderer
from woodfrog.engine.request import GenerationRequest, Piece
from woodfrog.replica.app import Answer

Emit = Callable[[int, Piece], Awaitable[None]]  # which answer, and some more of it
Run = Callable[[Emit], Awaitable[None]]


class Reply:
    def __init__(
        self,
        request: GenerationRequest,
        clock: Clock,
        model: str,
        fingerprint: str,
        bytes_of: Callable[[int], bytes],
    ) -> None:
        envelope = Envelope(
            id=("chatcmpl-" if request.chat else "cmpl-") + os.urandom(12).hex(),
            created=int(clock.wall()),
            model=model,
            fingerprint=fingerprint,
        )
        self._request = request
        self._renderer = Renderer(request, envelope, bytes_of)

    async def send(self, run: Run, answer: Answer) -> None:
        """`run` emits each answer's pieces, the last one with a finish reason."""
        if self._request.stream:
            await self._stream(run, answer)
        else:
            await self._whole(run, answer)

    async def _whole(self, run: Run, answer: Answer) -> None:
        count = len(self._request.prompts) * self._request.n
        pieces: list[list[Piece]] = [[] for _ in range(count)]

        async def keep(index: int, piece: Piece) -> None:
            pieces[index].append(piece)

        await run(keep)
        answers = [
            Piece(
                text="".join(piece.text for piece in some),
                logprobs=[entry for piece in some for entry in piece.logprobs],
                token_count=sum(piece.token_count for piece in some),
                finish_reason=some[-1].finish_reason,
            )
            for some in pieces
        ]
        await answer.json(200, self._renderer.whole(answers))

    async def _stream(self, run: Run, answer: Answer) -> None:
        async def send(index: int, piece: Piece) -> None:
            chunk = self._renderer.chunk(index, piece)
            if chunk is not None:
                await answer.event(chunk)

        await run(send)
        if self._request.include_usage:
            await answer.event(self._renderer.usage_chunk())
        await answer.event("[DONE]")
        await answer.end()
