"""Calls of functions whose parameters are tagged, as Qwen's coders write them; values get the types of the tool's schema. Pure.

<tool_call>
<function=pond>
<parameter=depth>
3
</parameter>
</function>
</tool_call>
"""

import json
import re
from collections.abc import Iterator
from enum import Enum, auto
from typing import Any

from woodfrog.engine.calls import Arguments, CallReader, Reader, Told
from woodfrog.engine.text import overlap
from woodfrog.engine.tool_format import HERMES_CLOSE, OPEN, TAGGED_HEAD, ToolFormat
from woodfrog.engine.tools import ToolUse
from woodfrog.engine.typed import json_of, kinds

_CLOSE = "</function>"
_HEAD = re.compile(r"<function=[ \t]?([^\s<>]{1,80})[ \t]?>")
_PARAMETER = re.compile(r"<parameter=[ \t]?([^\s<>]{1,80})[ \t]?>")
_TAG_MAX = 100  # characters, from which on an open tag is text
_END = "</parameter>"
_ENDS = (_END, "<parameter=", _CLOSE, HERMES_CLOSE)  # also of a value whose own end is missing


class _State(Enum):
    OUTSIDE = auto()
    OPENED = auto()  # behind <tool_call>
    FUNCTION = auto()  # between parameters
    VALUE = auto()
    CLOSED = auto()  # behind </function>
    DONE = auto()


class TaggedCallReader(Reader):
    """What is no call stays text; from what is none within a call, the call is over and the rest is text."""

    def __init__(self, use: ToolUse) -> None:
        super().__init__(use)
        self._schemas = {
            tool["function"]["name"]: tool["function"]["parameters"] for tool in use.tools
        }
        self._state = _State.OPENED if use.forced else _State.OUTSIDE
        self._opened = ""  # a mark that is text if no call follows
        self._schema: Any = {}  # of the call's parameters
        self._seen: set[str] = set()  # its parameters so far
        self._kinds: frozenset[str] = frozenset()  # of the value
        self._fresh = self._begun = False  # the value: whether none of it has come, some has left

    def flush(self) -> list[Told]:
        rest, self._buffer = self._opened + self._buffer, ""
        if self._state in (_State.FUNCTION, _State.VALUE, _State.DONE):
            return []
        return self._last(rest)

    def _step(self) -> Iterator[Told]:
        match self._state:
            case _State.OUTSIDE:
                yield from self._outside()
            case _State.OPENED:
                yield from self._in_opened()
            case _State.FUNCTION:
                yield from self._in_function()
            case _State.VALUE:
                yield from self._in_value()
            case _State.CLOSED:
                self._in_closed()
            case _State.DONE:
                self._buffer = ""

    def _outside(self) -> Iterator[Told]:
        """The mark of a call may be missing."""
        marks = (OPEN[ToolFormat.TAGGED], TAGGED_HEAD)
        found = [(at, mark) for mark in marks if (at := self._buffer.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            text, self._buffer = self._buffer[:at], self._buffer[at:]
            self._opened = ""
            if mark != TAGGED_HEAD:
                self._opened, self._buffer = mark, self._buffer[len(mark) :]
            self._state = _State.OPENED
        else:
            kept = max(overlap(self._buffer, mark) for mark in marks)
            at = len(self._buffer) - kept
            text, self._buffer = self._buffer[:at], self._buffer[at:]
        yield from self._said(text)

    def _in_opened(self) -> Iterator[Told]:
        rest = self._buffer.lstrip()
        if (head := _HEAD.match(rest)) and head[1] in self._schemas:
            self._buffer, self._state, self._opened = rest[head.end() :], _State.FUNCTION, ""
            self._schema, self._seen = self._schemas[head[1]], set()
            yield from self._begin(head[1])
            yield Arguments("{")
        elif head or not _may_become(rest, TAGGED_HEAD):
            # One character of it, so that it is not found again.
            said, self._opened = self._opened or self._buffer[:1], ""
            self._buffer = self._buffer[0 if said == OPEN[ToolFormat.TAGGED] else 1 :]
            self._state = _State.OUTSIDE
            yield from self._said(said)

    def _in_function(self) -> Iterator[Told]:
        rest = self._buffer.lstrip()
        tag = _PARAMETER.match(rest)
        if tag and tag[1] not in self._seen:
            self._buffer, self._state, self._begun = rest[tag.end() :], _State.VALUE, False
            self._fresh = True
            yield Arguments(f"{', ' if self._seen else ''}{json.dumps(tag[1])}: ")
            self._seen.add(tag[1])
            self._kinds = kinds(self._schema, tag[1])
            return
        for close in (_CLOSE, HERMES_CLOSE):
            if rest.startswith(close):
                self._buffer = rest[len(close) * (close is _CLOSE) :]
                yield from self._ended()
                return
        if tag or not any(
            _may_become(rest, begin) for begin in ("<parameter=", _CLOSE, HERMES_CLOSE)
        ):
            yield from self._ended()

    def _ended(self) -> Iterator[Told]:
        yield Arguments("}")
        done = self._use.forced or not self._use.parallel
        self._state = _State.DONE if done else _State.CLOSED

    def _in_closed(self) -> None:
        rest = self._buffer.lstrip()
        if rest.startswith(HERMES_CLOSE):
            self._buffer, self._state = rest[len(HERMES_CLOSE) :], _State.OUTSIDE
        elif not HERMES_CLOSE.startswith(rest):
            self._state = _State.OUTSIDE

    def _in_value(self) -> Iterator[Told]:
        """A value that can be nothing but a text leaves as it comes; others when they are whole."""
        if self._fresh and self._buffer:
            self._buffer, self._fresh = self._buffer.removeprefix("\n"), False
        found = [(at, end) for end in _ENDS if (at := self._buffer.find(end)) >= 0]
        streamed = self._kinds == {"string"}
        if not found and not streamed:
            return
        if found:
            at, mark = min(found)
            text, self._buffer = self._buffer[:at], self._buffer[at + len(mark) * (mark is _END) :]
            text = text.removesuffix("\n")
            self._state = _State.FUNCTION
        else:
            kept = max(overlap(self._buffer, mark) for end in _ENDS for mark in (end, "\n" + end))
            at = len(self._buffer) - kept
            text, self._buffer = self._buffer[:at], self._buffer[at:]
        if not streamed:
            yield Arguments(json_of(text, self._kinds))
            return
        if text or found:
            begin = "" if self._begun else '"'
            self._begun = True
            end = '"' if found else ""
            yield Arguments(begin + json.dumps(text, ensure_ascii=False)[1:-1] + end)


def reader_of(use: ToolUse) -> Reader:
    return TaggedCallReader(use) if use.format is ToolFormat.TAGGED else CallReader(use)


def _may_become(text: str, begin: str) -> bool:
    """Whether it may grow into a tag that begins so, or is one that is not whole."""
    return begin.startswith(text) or (
        text.startswith(begin) and ">" not in text and "\n" not in text and len(text) < _TAG_MAX
    )
