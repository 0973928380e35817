"""What the SIMULATED engine answers: OpenAI's shapes, made-up words and numbers."""

import base64
import functools
import json
import struct
from collections.abc import Iterable, Iterator
from typing import Any

ARGUMENTS = '{"depth": "deep"}'
FINGERPRINT = "simulated-engine"
WORDS = ("once", " upon", " a", " pond", " there", " sat", " a", " frog")
_CHAT, _COMPLETION, _RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"
_TOKENS_MAX = 256
_VECTOR = (0.5, -0.25, 0.125, 1.0)
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="


def tokens(asked: dict[str, Any]) -> int:
    """Of an answer whose length no script says."""
    wanted = asked.get("max_tokens")
    return min(wanted, _TOKENS_MAX) if type(wanted) is int and wanted > 0 else len(WORDS)


def streams(path: str) -> bool:
    return path in (_CHAT, _COMPLETION, _RESPONSE)


def whole(path: str, asked: dict[str, Any], tokens: int) -> dict[str, Any]:
    """The body of an answer that is not streamed. Of paths that it does not know it tells the path."""
    match path:
        case "/v1/chat/completions":
            message: dict[str, Any] = {
                "role": "assistant",
                "content": _text(tokens),
                "refusal": None,
            }
            choice = {"index": 0, "finish_reason": "stop", "logprobs": None, "message": message}
            if names := _calls(asked):
                calls = [{**_call(number, name), "type": "function"} for number, name in names]
                message |= {"content": None, "tool_calls": calls}
                choice["finish_reason"] = "tool_calls"
            return {**_base(asked, "chat.completion"), "choices": [choice], "usage": _usage(tokens)}
        case "/v1/completions":
            choice = {"index": 0, "finish_reason": "stop", "logprobs": None, "text": _text(tokens)}
            return {**_base(asked, "text_completion"), "choices": [choice], "usage": _usage(tokens)}
        case "/v1/responses":
            return _response(asked, "completed", tokens)
        case "/v1/embeddings":
            return _embeddings(asked)
        case "/v1/images/generations":
            return {"created": 1, "data": [{"b64_json": _PIXEL}]}
    return {"object": "list", "path": path, "data": []}


def events(path: str, asked: dict[str, Any], tokens: int) -> Iterable[bytes]:
    """The server-sent events of an answer, the first `tokens` of which carry one each, but for /v1/responses."""
    if path == _RESPONSE:
        return _response_events(asked, tokens)
    options = asked.get("stream_options")
    usage = isinstance(options, dict) and bool(options.get("include_usage"))
    if names := _calls(asked):
        return _call_events(asked, names, usage)
    if tokens <= _TOKENS_MAX:
        return _kept_events(path == _CHAT, str(asked["model"]), tokens, usage)
    return _events(path == _CHAT, str(asked["model"]), tokens, usage)


@functools.lru_cache(64)
def _kept_events(chat: bool, model: str, tokens: int, usage: bool) -> tuple[bytes, ...]:
    """So that under load it is not the engine that is measured."""
    return (*_events(chat, model, tokens, usage),)


def _events(chat: bool, model: str, tokens: int, usage: bool) -> Iterator[bytes]:
    base = _base({"model": model}, "chat.completion.chunk" if chat else "text_completion")
    for index in range(tokens):
        yield _data({**base, "choices": [_piece(chat, index)]})
    yield _data({**base, "choices": [_piece(chat, None)]})
    if usage:
        yield _data({**base, "choices": [], "usage": _usage(tokens)})
    yield b"data: [DONE]\n\n"


def _calls(asked: dict[str, Any]) -> list[tuple[int, str]]:
    script = asked.get("simulate")
    return [*enumerate(script.get("calls", ()))] if isinstance(script, dict) else []


def _call(number: int, name: str) -> dict[str, Any]:
    return {"id": f"call_{number}", "function": {"name": name, "arguments": ARGUMENTS}}


def _call_events(
    asked: dict[str, Any], names: list[tuple[int, str]], usage: bool
) -> Iterator[bytes]:
    """Each call in two pieces."""
    base = _base(asked, "chat.completion.chunk")
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None}]
    half = len(ARGUMENTS) // 2
    for number, name in names:
        first = {"name": name, "arguments": ARGUMENTS[:half]}
        begun = {"index": number, "id": f"call_{number}", "type": "function", "function": first}
        more = {"index": number, "function": {"arguments": ARGUMENTS[half:]}}
        deltas += [{"tool_calls": [begun]}, {"tool_calls": [more]}]
    for delta in [*deltas, {}]:
        reason = None if delta else "tool_calls"
        choice = {"index": 0, "finish_reason": reason, "logprobs": None, "delta": delta}
        yield _data({**base, "choices": [choice]})
    if usage:
        yield _data({**base, "choices": [], "usage": _usage(len(names))})
    yield b"data: [DONE]\n\n"


def with_text(event: bytes, text: str) -> bytes:
    """An event of a chat, with another text, which is not escaped."""
    if not event.startswith(b"data: {"):
        return event
    value = json.loads(event[6:])
    for choice in value["choices"]:
        choice["delta"]["content"] = text
    return b"data: %b\n\n" % json.dumps(value, ensure_ascii=False).encode()


def _data(value: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % json.dumps(value).encode()


def _base(asked: dict[str, Any], kind: str) -> dict[str, Any]:
    return {
        "id": "sim-1",
        "object": kind,
        "created": 1,
        "model": asked["model"],
        "system_fingerprint": FINGERPRINT,
    }


def _word(index: int) -> str:
    return WORDS[index % len(WORDS)]


def _text(tokens: int) -> str:
    return "".join(map(_word, range(tokens)))


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}


def _piece(chat: bool, index: int | None) -> dict[str, Any]:
    """One token; None is the last piece."""
    text = "" if index is None else _word(index)
    finish = None if index is not None else "stop"
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
    if chat:
        choice["delta"] = {"content": text} if index else {"role": "assistant", "content": text}
    else:
        choice["text"] = text
    return choice


def _embeddings(asked: dict[str, Any]) -> dict[str, Any]:
    inputs = asked.get("input")
    count = len(inputs) if isinstance(inputs, list) and inputs and isinstance(inputs[0], str) else 1
    vector: Any = list(_VECTOR)
    if asked.get("encoding_format") == "base64":
        vector = base64.b64encode(struct.pack("<4f", *_VECTOR)).decode()
    data = [{"object": "embedding", "index": index, "embedding": vector} for index in range(count)]
    usage = {"prompt_tokens": 5, "total_tokens": 5}
    return {"object": "list", "model": asked["model"], "data": data, "usage": usage}


def _response(asked: dict[str, Any], status: str, tokens: int) -> dict[str, Any]:
    done = status == "completed"
    usage = {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 5 + tokens,
    }
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": asked["model"],
        "output": [_message("completed", tokens)] if done else [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        **({"usage": usage} if done else {}),
    }


def _message(status: str, tokens: int) -> dict[str, Any]:
    parts = [_part(_text(tokens))] if status == "completed" else []
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": parts,
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _response_events(asked: dict[str, Any], tokens: int) -> Iterator[bytes]:
    at: dict[str, Any] = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    item: dict[str, Any] = {"output_index": 0}
    text = _text(tokens)
    steps: list[tuple[str, dict[str, Any]]] = [
        ("created", {"response": _response(asked, "in_progress", 0)}),
        ("in_progress", {"response": _response(asked, "in_progress", 0)}),
        ("output_item.added", {**item, "item": _message("in_progress", 0)}),
        ("content_part.added", {**at, "part": _part("")}),
        *(("output_text.delta", {**at, "delta": _word(n), "logprobs": []}) for n in range(tokens)),
        ("output_text.done", {**at, "text": text, "logprobs": []}),
        ("content_part.done", {**at, "part": _part(text)}),
        ("output_item.done", {**item, "item": _message("completed", tokens)}),
        ("completed", {"response": _response(asked, "completed", tokens)}),
    ]
    for number, (name, value) in enumerate(steps):
        kind = f"response.{name}"
        body = json.dumps({"type": kind, "sequence_number": number, **value}).encode()
        yield b"event: %b\ndata: %b\n\n" % (kind.encode(), body)
