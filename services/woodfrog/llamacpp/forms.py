"""What OpenAI's answers have and llama.cpp's leave out: clients look for it, or break without. Pure.

Of what it says one thing is changed: a response that has as many tokens as it may, or as there is room for, is
`incomplete`, not `completed`.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

Value = dict[str, Any]
_CHAT, _RESPONSES = "/v1/chat/completions", "/v1/responses"
_COMPLETED = (_CHAT, _RESPONSES)
_EVENT_BYTES_MAX = 16 << 20  # the last one has the whole answer; a longer one goes on as it is
#: Of a request for a response, as the response repeats them.
_REPEATED: Value = {
    "instructions": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
}


def whole(path: str, data: bytes, body: Mapping[str, Any], now: float, room: int) -> bytes:
    """An answer that is no stream. `now` in seconds since 1970; `room` in tokens, of question and answer together."""
    value = _object(data) if path in _COMPLETED else None
    if value is None:
        return data
    if path == _RESPONSES:
        _response(value, body, int(now), room)
    else:
        _chat(value, "message")
    return json.dumps(value).encode()


def events(path: str, body: Mapping[str, Any], now: float, room: int) -> "Events | None":
    """For streams that lack something; None where they go on as they are."""
    if path == _RESPONSES:
        return Events(ResponseEvents(body, now, room).complete)
    if path == _CHAT and body.get("logprobs"):
        return Events(lambda value: _chat(value, "delta"))
    return None


class Events:
    """Feed it a stream's bytes as they come; what it gives are whole events. What is no JSON goes on as it is."""

    def __init__(self, complete: Callable[[Value], None]) -> None:
        self._complete = complete
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        *whole, self._rest = (self._rest + data).split(b"\n\n")
        told = b"".join(self._event(event) + b"\n\n" for event in whole)
        if len(self._rest) > _EVENT_BYTES_MAX:
            told, self._rest = told + self._rest, b""
        return told

    def end(self) -> bytes:
        """What came without an end of its own."""
        return self._rest

    def _event(self, event: bytes) -> bytes:
        lines = event.split(b"\n")
        for at, line in enumerate(lines):
            value = _object(line[6:]) if line.startswith(b"data: {") else None
            if value is None:
                continue
            said = value.get("type")
            self._complete(value)
            lines[at] = b"data: " + json.dumps(value).encode()
            if value.get("type") != said:
                name = f"event: {value['type']}".encode()
                lines = [name if each.startswith(b"event: ") else each for each in lines]
        return b"\n".join(lines)


class ResponseEvents:
    """Numbers the events of one response, and says to which item of its output each belongs."""

    def __init__(self, body: Mapping[str, Any], now: float, room: int) -> None:
        """As for `whole`."""
        self._body = body
        self._count = 0
        self._items: dict[Any, int] = {}  # by id, in their order
        self._now = int(now)
        self._room = room

    def complete(self, event: Value) -> None:
        kind = str(event.get("type"))
        event.setdefault("sequence_number", self._count)
        self._count += 1
        if isinstance(event.get("response"), dict):
            _response(event["response"], self._body, self._now, self._room)
            if event["response"].get("status") == "incomplete":
                event["type"] = "response.incomplete"
            return
        item = event.get("item")
        item_id = item.get("id") if isinstance(item, dict) else event.get("item_id")
        if kind == "response.output_item.added":
            self._items.setdefault(item_id, len(self._items))
        event.setdefault("output_index", self._items.get(item_id, max(0, len(self._items) - 1)))
        if "content_part" in kind or "output_text" in kind:
            event.setdefault("content_index", 0)
        if "output_text" in kind:
            event.setdefault("logprobs", [])
        _part(event.get("part"))
        if isinstance(item, dict):
            _item(item)


def _response(value: Value, body: Mapping[str, Any], now: int, room: int) -> None:
    _cut(value, body.get("max_output_tokens"), room)
    for name in ("error", "incomplete_details"):
        value.setdefault(name, None)
    for name, default in _REPEATED.items():
        value.setdefault(name, default if body.get(name) is None else body[name])
    value["tools"] = [_tool(tool) for tool in value["tools"] or ()]
    value.setdefault("created_at", now)
    value.setdefault("model", body.get("model"))
    value["output"] = value.get("output") or []
    for item in value["output"]:
        _item(item)
    usage = value.get("usage")
    if isinstance(usage, dict):
        usage.setdefault("output_tokens_details", {"reasoning_tokens": 0})
        details = usage.setdefault("input_tokens_details", {"cached_tokens": 0})
        details.setdefault("cache_write_tokens", 0)


def _cut(value: Value, most: Any, room: int) -> None:
    """Says of a response that it was cut. One that ended by itself with its last token looks the same."""
    usage = value.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    read, written = (counts.get(name) or 0 for name in ("input_tokens", "output_tokens"))
    bounded = isinstance(most, int) and written >= most
    if not (bounded or read + written >= room) or value.get("status") != "completed":
        return
    value["status"] = "incomplete"
    value["incomplete_details"] = {"reason": "max_output_tokens"}
    for item in (value.get("output") or ())[-1:]:
        item["status"] = "incomplete"


def _tool(tool: Any) -> Any:
    function = isinstance(tool, dict) and tool.get("type") == "function"
    return {"parameters": None, "strict": None, **tool} if function else tool


def _item(item: Value) -> None:
    for part in item.get("content") or ():
        _part(part)


def _part(part: Any) -> None:
    if isinstance(part, dict) and part.get("type") == "output_text":
        part.setdefault("annotations", [])
        part.setdefault("logprobs", [])


def _chat(value: Value, name: str) -> None:
    """`name`: "message" of a whole answer, "delta" of a chunk."""
    for choice in value.get("choices") or ():
        if name == "message" and isinstance(choice.get(name), dict):
            choice[name].setdefault("refusal", None)
        if isinstance(choice.get("logprobs"), dict):
            choice["logprobs"].setdefault("refusal", None)


def _object(data: bytes) -> Value | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
