"""From tokens to text that may leave: characters are whole, stop strings never show. Pure."""

from collections.abc import Callable, Sequence

_TORN = "�"  # what a decoder shows for bytes that are not a whole character


class Detokenizer:
    """Text of a growing list of tokens, in pieces that never split a character."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._context: list[int] = []  # tokens whose text is out; decoders need one to place spaces
        self._pending: list[int] = []

    def feed(self, token: int) -> str:
        self._pending.append(token)
        text = self._new_text()
        return "" if text.endswith(_TORN) else self._advance(text)

    def flush(self) -> str:
        """What is held back, with replacement characters for what never became whole."""
        return self._advance(self._new_text())

    def _new_text(self) -> str:
        before = self._decode(self._context)
        return self._decode(self._context + self._pending)[len(before) :]

    def _advance(self, text: str) -> str:
        if text:
            self._context, self._pending = self._pending, []
        return text


class StopMatcher:
    """Passes text on until one of the stop strings is complete; holds back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops)
        self._stops = stops
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """Text that may leave now, and whether a stop string ended it."""
        text = self._held + text
        ends = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self._held = ""
            return text[: min(ends)[1]], True
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        text, self._held = self._held, ""
        return text


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
