"""How many tokens an answer took, as its engine tells at the answer's end. Pure.

Of a stream the line `: usage prompt_tokens=N completion_tokens=M` is believed first: no generated text can forge it, for
JSON holds no raw line end. Then `usage` of the last events, or of a whole JSON answer, where it is no deeper than OpenAI
has it: what a client sent to be echoed is not believed either.
"""

import json
import re
from collections import deque
from typing import Any

_KEPT_BYTES = 16 << 10  # of an answer's end
_KEYS_MAX = 16  # named usage, looked at in a whole answer
_EVENTS_MAX = 3  # last ones that are parsed
_TOKENS_MAX = 1 << 40
_KEY = re.compile(rb'"usage"\s*:')
_TOLD = re.compile(rb": usage prompt_tokens=(\d{1,12}) completion_tokens=(\d{1,12})\r?\n")
_DONE = b"data: [DONE]\n\n"


class ToldTokens:
    """Feed it the answer's bytes as they come."""

    def __init__(self, content_type: bytes) -> None:
        self._events = content_type.startswith(b"text/event-stream")
        self._json = content_type.startswith(b"application/json")
        self._known = self._events or self._json
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._event_count = 0

    def saw(self, data: bytes) -> bool:
        """Whether that was a stream's end, [DONE]."""
        if not self._known:
            return False
        end = data if len(data) <= _KEPT_BYTES else data[-_KEPT_BYTES:]
        self._parts.append(end)
        self._size += len(end)
        if self._size > 2 * _KEPT_BYTES:
            while self._size - len(self._parts[0]) >= _KEPT_BYTES:
                self._size -= len(self._parts.popleft())
        if not self._events:
            return False
        self._event_count += data.count(b"\n\n")
        return data.endswith(_DONE)

    def tokens(self) -> tuple[int, int]:
        """Read and written. Of a stream that did not come to tell, its events are what was written."""
        end = b"".join(self._parts)
        if self._json:
            return _of_whole(end)
        if not self._events:
            return 0, 0
        return _of_comment(end) or _of_events(end) or (0, self._event_count)


def _of_comment(end: bytes) -> tuple[int, int] | None:
    """The last one that begins a line."""
    at = end.rfind(b"\n: usage ") + 1
    told = _TOLD.match(end, at)
    return (int(told[1]), int(told[2])) if told is not None else None


def _of_whole(end: bytes) -> tuple[int, int]:
    """`"usage"` is the answer's own where what follows it closes one brace more than it opens."""
    for key in reversed(list(_KEY.finditer(end))[-_KEYS_MAX:]):
        try:
            found = _counts(json.loads(b"{" + end[key.start() :])["usage"])
        except (ValueError, RecursionError):
            continue
        if found is not None:
            return found
    return 0, 0


def _of_events(end: bytes) -> tuple[int, int] | None:
    lines = [line for line in end.split(b"\n") if line.startswith(b"data:")]
    for line in reversed(lines[-_EVENTS_MAX:]):
        if b'"usage"' not in line:
            continue
        try:
            event = json.loads(line[5:])
        except (ValueError, RecursionError):
            continue
        for holder in (event, event.get("response") if isinstance(event, dict) else None):
            found = _counts(holder.get("usage")) if isinstance(holder, dict) else None
            if found is not None:
                return found
    return None


def _counts(usage: Any) -> tuple[int, int] | None:
    """By the names of chat completions, or of responses."""
    if not isinstance(usage, dict):
        return None
    read = usage.get("prompt_tokens", usage.get("input_tokens"))
    written = usage.get("completion_tokens", usage.get("output_tokens", 0))
    if not isinstance(read, int) or not isinstance(written, int):
        return None
    if not (0 <= read <= _TOKENS_MAX and 0 <= written <= _TOKENS_MAX):
        return None
    return read, written
