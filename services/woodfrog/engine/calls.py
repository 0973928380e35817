"""Calls of functions in the text of an answer, as it comes. Pure."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from woodfrog.engine.text import overlap
from woodfrog.engine.tool_format import ARGS, CALL_ID, HERMES_CLOSE, OPEN, ToolFormat
from woodfrog.engine.tools import ToolUse

# What a call begins with: its name, and the brace of its arguments.
_HEAD = re.compile(
    r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
# The same where the name stands before the arguments, perhaps with an id; and what may become it.
_NAMED_HEAD = re.compile(
    rf"\s*([A-Za-z0-9_-]{{1,64}})\s*(?:{re.escape(CALL_ID)}\s*[A-Za-z0-9_-]{{1,64}}\s*)?(?:{re.escape(ARGS)})?\s*(?=\{{)"
)
_NAMED_HEAD_PART = re.compile(
    r"\s*[A-Za-z0-9_-]{0,64}\s*(?:\[[A-Z_]*\]?[\sA-Za-z0-9_-]{0,80}){0,2}"
)


@dataclass(frozen=True, slots=True)
class Begun:
    """A call of a function."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """Some more of the newest call's arguments, a JSON object as text."""

    text: str


Told = str | Begun | Arguments
"""A text is some more of what the model says beside its calls."""


class _State(Enum):
    OUTSIDE = auto()
    INSIDE = auto()  # behind the mark of a call, or between two calls
    OBJECT = auto()
    PLAIN = auto()  # no call comes any more
    DONE = auto()  # nothing that comes counts any more


class Reader(ABC):
    """Of one answer. `count` calls have begun so far."""

    _state: Enum

    def __init__(self, use: ToolUse) -> None:
        self.count = 0
        self._use = use
        self._buffer = ""
        self._space = ""  # it may be what stands around calls

    def feed(self, text: str) -> list[Told]:
        self._buffer += text
        told: list[Told] = []
        while True:
            before = self._state, len(self._buffer)
            told += self._step()
            if (self._state, len(self._buffer)) == before:
                return told

    @abstractmethod
    def flush(self) -> list[Told]:
        """What is held back, at the answer's end; a call that is cut there stays so."""

    @abstractmethod
    def _step(self) -> Iterator[Told]:
        """Once more, as long as it changes the state or takes from the buffer."""

    def _begin(self, name: str) -> Iterator[Told]:
        self.count += 1
        self._space = ""
        yield Begun(name)

    def _said(self, text: str) -> Iterator[Told]:
        text = self._space + text
        end = len(text.rstrip())
        self._space = text[end:]
        if end:
            yield text[:end]

    def _last(self, text: str) -> list[Told]:
        told = [*self._said(text)]
        return told if self.count or not self._space else [*told, self._space]


class CallReader(Reader):
    """What is no call, because its name is unknown or it is not JSON, stays text."""

    def __init__(self, use: ToolUse) -> None:
        super().__init__(use)
        self._names = use.names
        self._open = OPEN[use.format]
        self._state = _State.INSIDE if use.forced else _State.OUTSIDE
        self._object = _Object()

    def flush(self) -> list[Told]:
        rest, self._buffer = self._buffer, ""
        if self._state is _State.DONE or (self._state is _State.OBJECT and self._object.begun):
            return []
        named = self._use.format is ToolFormat.NAMED and self._state is _State.INSIDE
        if (self._state is _State.OBJECT or named) and not self._use.forced:
            rest = self._open * (self._use.format is not ToolFormat.LLAMA) + rest
        return self._last(rest)

    def _step(self) -> Iterator[Told]:
        match self._state:
            case _State.OUTSIDE if self._use.format is ToolFormat.LLAMA:
                yield from self._outside_llama()
            case _State.OUTSIDE:
                yield from self._outside()
            case _State.INSIDE if self._use.format is ToolFormat.NAMED:
                yield from self._inside_named()
            case _State.INSIDE:
                yield from self._inside()
            case _State.OBJECT:
                yield from self._in_object()
            case _State.PLAIN:
                text, self._buffer = self._buffer, ""
                yield from self._said(text)
            case _State.DONE:
                self._buffer = ""

    def _outside(self) -> Iterator[Told]:
        text, mark, rest = self._buffer.partition(self._open)
        if mark:
            self._buffer, self._state = rest, _State.INSIDE
        else:
            kept = overlap(text, self._open)
            text, self._buffer = text[: len(text) - kept], text[len(text) - kept :]
        yield from self._said(text)

    def _outside_llama(self) -> Iterator[Told]:
        """Only an answer that begins with a call has calls."""
        rest = self._buffer.lstrip(" \t\r\n;" if self.count else None)
        if rest.startswith(self._open):
            self._buffer, self._state = rest[len(self._open) :], _State.INSIDE
        elif rest.startswith("{"):
            self._buffer, self._state = rest, _State.INSIDE
        elif rest and not self._open.startswith(rest):
            self._state = _State.PLAIN
        yield from ()

    def _inside(self) -> Iterator[Told]:
        between = " \t\r\n[," if self._use.format is ToolFormat.MISTRAL else None
        rest = self._buffer.lstrip(between)
        if not rest:
            self._buffer = ""
        elif rest.startswith("{"):
            self._buffer, self._state, self._object = rest, _State.OBJECT, _Object()
        elif self._use.format is ToolFormat.MISTRAL and rest.startswith("]"):
            self._buffer, self._state = rest[1:], _State.OUTSIDE
        elif self._use.format is ToolFormat.HERMES and HERMES_CLOSE.startswith(
            rest[: len(HERMES_CLOSE)]
        ):
            if len(rest) >= len(HERMES_CLOSE):
                self._buffer, self._state = rest[len(HERMES_CLOSE) :], _State.OUTSIDE
        else:
            self._state = _State.PLAIN
            yield from self._said(self._open)

    def _inside_named(self) -> Iterator[Told]:
        head = _NAMED_HEAD.match(self._buffer)
        if head and head[1] in self._names:
            self._buffer, self._state = self._buffer[head.end() :], _State.OBJECT
            self._object = _Object(depth=0)
            self._object.begin(0)
            yield from self._begin(head[1])
        elif head or not _NAMED_HEAD_PART.fullmatch(self._buffer):
            self._state = _State.OUTSIDE
            yield from self._said(self._open)

    def _in_object(self) -> Iterator[Told]:
        found = self._object
        found.scan(self._buffer)
        if not found.begun and (head := _HEAD.match(self._buffer)):
            name = json.loads(head[1])
            if name in self._names:
                found.begin(head.end())
                yield from self._begin(name)
        if found.begun and (more := found.arguments(self._buffer)):
            yield Arguments(more)
        if not found.whole:
            return
        text, self._buffer = self._buffer[: found.at], self._buffer[found.at :]
        llama = self._use.format is ToolFormat.LLAMA
        alone = llama or self._use.format is ToolFormat.NAMED
        self._state = _State.OUTSIDE if alone else _State.INSIDE
        if not found.begun:
            call = _call(text, self._names)
            if call is None:
                self._state = _State.PLAIN if llama else self._state
                yield from self._said(text)
                return
            yield from self._begin(call[0])
            yield Arguments(call[1])
        if self._use.forced or not self._use.parallel:
            self._state = _State.DONE


class _Object:
    """How far a JSON object that is still coming has been looked at."""

    def __init__(self, depth: int = 1) -> None:
        """The arguments are a value `depth` levels deep in it; 0 means that it is all arguments."""
        self.at = 0
        self.begun = False
        self.whole = False
        self._own_depth = depth
        self._depth = 0
        self._quoted = self._escaped = False
        self._closed: list[int] = []  # where each value that is an object or a list ends
        self._start = self._sent = 0  # of the arguments

    def scan(self, text: str) -> None:
        while self.at < len(text) and not self.whole:
            character = text[self.at]
            self.at += 1
            if self._quoted:
                self._quoted = self._escaped or character != '"'
                self._escaped = character == "\\" and not self._escaped
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                self.whole = self._depth <= 0
                if self._depth == self._own_depth:
                    self._closed.append(self.at)

    def begin(self, start: int) -> None:
        self.begun = True
        self._start = self._sent = start

    def arguments(self, text: str) -> str:
        """Some more of them."""
        end = next((end for end in self._closed if end > self._start), self.at)
        more = text[self._sent : end]
        self._sent = max(self._sent, end)
        return more


def _call(text: str, names: set[str]) -> tuple[str, str] | None:
    """Name and arguments of a call whose parts come in another order, or in another form."""
    try:
        call: Any = json.loads(text)
        arguments = call.get("arguments", call.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    name = call.get("name")
    if not isinstance(name, str) or name not in names or not isinstance(arguments, dict):
        return None
    return name, json.dumps(arguments, ensure_ascii=False)
