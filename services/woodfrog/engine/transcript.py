"""Where an answer ends, and which of it may leave when. Pure."""

from collections import deque
from collections.abc import Callable, Collection

from woodfrog.engine.request import Piece, TokenLogprob
from woodfrog.engine.text import Detokenizer, StopMatcher

Decode = Callable[[list[int]], str]


class Transcript:
    """Turns one answer's tokens into pieces, and says where the answer ends. Pure.

    Log-probabilities leave with the text of their token, so that those of a stop string never do.
    """

    def __init__(
        self, decode: Decode, stops: list[str], eos: Collection[int], max_tokens: int
    ) -> None:
        self._detokenizer = Detokenizer(decode)
        self._matcher = StopMatcher(stops)
        self._eos = eos
        self._max_tokens = max_tokens
        self._token_count = 0
        self._text_length = 0  # characters of whole text so far
        self._left_length = 0  # ... of those that may leave
        self._held: deque[tuple[int, TokenLogprob]] = deque()  # with where their text begins

    def add(self, tokens: list[int], logprobs: list[TokenLogprob]) -> Piece:
        """`logprobs` has one entry a token, or none."""
        text, finish = "", None
        used = 0
        for used, token in enumerate(tokens, 1):
            self._token_count += 1
            if token in self._eos:
                finish = "stop"
                break
            if logprobs:
                self._held.append((self._text_length, logprobs[used - 1]))
            passed, stopped = self._pass(self._detokenizer.feed(token))
            text += passed
            if stopped:
                return self._piece(text, used, "stop", everything=False)
            if self._token_count >= self._max_tokens:
                finish = "length"
                break
        if finish:
            passed, stopped = self._pass(self._detokenizer.flush())
            text += passed
            if stopped:
                return self._piece(text, used, "stop", everything=False)
            text += self._matcher.flush()
        return self._piece(text, used, finish, everything=finish is not None)

    def _pass(self, text: str) -> tuple[str, bool]:
        self._text_length += len(text)
        passed, stopped = self._matcher.feed(text)
        self._left_length += len(passed)
        return passed, stopped

    def _piece(self, text: str, used: int, finish: str | None, *, everything: bool) -> Piece:
        released = []
        while self._held and (everything or self._held[0][0] < self._left_length):
            released.append(self._held.popleft()[1])
        return Piece(text, released, used, finish)
