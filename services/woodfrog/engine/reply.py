"""Pieces of answers to one request, as one JSON body or as a stream of events."""

import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from woodfrog.clock import Clock
from woodfrog.engine.fields import Body
from woodfrog.engine.render import Envelope, Renderer
from woodfrog.engine.request import GenerationRequest, Piece
from woodfrog.engine.responses_render import ResponseRenderer
from woodfrog.errors import WoodfrogError
from woodfrog.replica.app import Answer

Emit = Callable[[int, Piece], Awaitable[None]]  # which answer, and some more of it
Run = Callable[[Emit], Awaitable[None]]


class Rendering(Protocol):
    """How one route tells answers."""

    def whole(self, answers: list[Piece]) -> dict[str, Any]:
        """One piece for each answer, in order."""

    def events(self, index: int, piece: Piece) -> Sequence[dict[str, Any]]:
        """Of some more of one answer."""

    def tokens(self) -> tuple[int, int]:
        """Read, and written so far."""

    def last(self) -> Sequence[dict[str, Any] | str]:
        """What ends a stream."""

    def failure(self, error: WoodfrogError) -> Sequence[dict[str, Any]]:
        """What ends a stream that has begun; nothing where it has no form of its own."""


class Reply:
    def __init__(
        self,
        request: GenerationRequest,
        clock: Clock,
        model: str,
        fingerprint: str,
        bytes_of: Callable[[int], bytes],
        response: Body | None = None,
    ) -> None:
        """`response` is the body of a request for one: the answer then has that form."""
        prefix = "chatcmpl-" if request.chat else "cmpl-"
        if response is not None:
            prefix = "resp_"
        envelope = Envelope(
            id=prefix + os.urandom(12).hex(),
            created=int(clock.wall()),
            model=model,
            fingerprint=fingerprint,
        )
        self._request = request
        self._renderer: Rendering = Renderer(request, envelope, bytes_of)
        if response is not None:
            self._renderer = ResponseRenderer(request, envelope, bytes_of, response)

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
        told = False

        async def send(index: int, piece: Piece) -> None:
            nonlocal told
            for event in self._renderer.events(index, piece):
                await answer.event(event)
            if answer.begun and not told:
                told = True
                await answer.usage(self._renderer.tokens()[0])

        try:
            await run(send)
        except WoodfrogError as error:
            events = self._renderer.failure(error) if answer.begun else ()
            if not events:
                raise
            for event in events:
                await answer.event(event)
        await answer.usage(*self._renderer.tokens())
        for some in self._renderer.last():
            await answer.event(some)
        await answer.end()
