"""How many tokens an answer took, as its engine tells. Pure.

In a stream the lines `: usage prompt_tokens=N`, at its beginning, and `: usage prompt_tokens=N completion_tokens=M` are
believed first: no generated text can forge them, for JSON holds no raw line end. Then `usage` of the last events, or of a
whole JSON answer, where it is no deeper than OpenAI has it: what a client sent to be echoed is not believed either.
"""

import json
import re
from collections import deque
from typing import Any

_KEPT_BYTES = 16 << 10  # of an answer's end
_BEGIN_BYTES = (
    4 << 10
)  # of a whole answer's beginning: some engines have `usage` before what is long
_LINE_BYTES_MAX = 80  # of the comment
_KEYS_MAX = 16  # named usage, looked at in a whole answer
_EVENTS_MAX = 3  # last ones that are parsed
_TOKENS_MAX = 1 << 40
_KEY = re.compile(rb'"usage"\s*:')
_MEMBER = re.compile(r'\s*[{,]\s*"((?:[^"\\]|\\.)*)"\s*:\s*')
_COMMENT = b"\n: usage "
_TOLD = re.compile(
    rb"\n: usage prompt_tokens=(\d{1,12})(?: completion_tokens=(\d{1,12}))?\r?(?=\n)"
)
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
        self._begin = b""
        self._line = b"\n"  # what came last: the comment may come torn
        self._read = 0  # as told at the beginning
        self._told: tuple[int, int] | None = None

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
            if len(self._begin) < _BEGIN_BYTES:
                self._begin += data[: _BEGIN_BYTES - len(self._begin)]
            return False
        self._event_count += (self._line[-1:] + data).count(b"\n\n")
        self._look(self._line + data)
        return data.endswith(_DONE)

    def tokens(self) -> tuple[int, int]:
        """Read and written. Of a stream that did not come to tell, its events are what was written."""
        if self._json:
            return _of_whole(b"".join(self._parts)) or _of_begin(self._begin) or (0, 0)
        if not self._events:
            return 0, 0
        return self._told or _of_events(b"".join(self._parts)) or (self._read, self._event_count)

    def _look(self, data: bytes) -> None:
        self._line = data[-_LINE_BYTES_MAX:]
        if _COMMENT not in data:
            return
        for told in _TOLD.finditer(data):
            if told[2] is not None:
                self._told = int(told[1]), int(told[2])
            elif not self._read:
                self._read = int(told[1])
                self._event_count -= 1  # this was none


def _of_begin(begin: bytes) -> tuple[int, int] | None:
    """Member by member, so that it is certainly the answer's own."""
    text, at = begin.decode(errors="replace"), 0
    decoder = json.JSONDecoder()
    try:
        while member := _MEMBER.match(text, at):
            value, at = decoder.raw_decode(text, member.end())
            if member[1] == "usage":
                return _counts(value)
    except (ValueError, RecursionError):
        pass
    return None


def _of_whole(end: bytes) -> tuple[int, int] | None:
    """`"usage"` is the answer's own where what follows it closes one brace more than it opens."""
    for key in reversed(list(_KEY.finditer(end))[-_KEYS_MAX:]):
        try:
            found = _counts(json.loads(b"{" + end[key.start() :])["usage"])
        except (ValueError, RecursionError):
            continue
        if found is not None:
            return found
    return None


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
