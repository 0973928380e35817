"""`/v1/responses` as a chat: its body to that of a chat completion. Pure.

Nothing is stored between requests, so what refers to earlier ones is refused.
"""

from collections.abc import Callable
from typing import Any

from woodfrog.engine.fields import Body, bad, integer, text, unsupported
from woodfrog.engine.parse import Limits, chat_request
from woodfrog.engine.request import GenerationRequest
from woodfrog.errors import InvalidArgument

_ROLES = ("user", "assistant", "system", "developer")
_SAME = (
    "model", "temperature", "top_p", "stream", "parallel_tool_calls", "user", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "store", "service_tier", "metadata",
    # What OpenAI's chats have, and vLLM's responses too.
    "stop", "seed", "top_k", "logit_bias", "frequency_penalty", "presence_penalty", "repetition_penalty", "ignore_eos",
)  # fmt: skip
_LOGPROBS = "message.output_text.logprobs"
_INCLUDED = (_LOGPROBS, "reasoning.encrypted_content")  # of the second there is none
# Kinds of parts, and where what each says is.
_PARTS = {
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "input_image": "image_url",
}
# Beginnings of a chat's field names, and what they are called here.
_NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
    "reasoning_effort": "reasoning.effort",
    "tool_choice.function": "tool_choice",
}


def chat_body(body: Body) -> dict[str, Any]:
    """Raises InvalidArgument; what is left to check, `chat_request` checks, see `renamed`."""
    for name in ("previous_response_id", "conversation", "prompt"):
        if body.get(name) is not None:
            unsupported(
                name,
                "is not supported: nothing is stored here; send the whole conversation as input",
            )
    if body.get("background"):
        unsupported("background", "is not supported: nothing is stored here; use stream")
    if body.get("truncation") not in (None, "disabled"):
        unsupported("truncation", 'is not supported beyond "disabled"')
    messages = _messages(body.get("input"))
    if (instructions := text(body, "instructions")) is not None:
        messages.insert(0, {"role": "system", "content": instructions})
    integer(body, "max_tool_calls", 1, None)  # counts OpenAI's own tools
    return {
        **{name: body[name] for name in _SAME if name in body},
        "messages": messages,
        "max_completion_tokens": body.get("max_output_tokens"),
        "reasoning_effort": _object(body, "reasoning").get("effort"),
        **_form(_object(body, "text")),
        **_logprobs(body),
        "tools": _tools(body.get("tools")),
        "tool_choice": _choice(body.get("tool_choice")),
    }


def response_request(
    body: Body, limits: Limits, encode: Callable[..., list[int]]
) -> GenerationRequest:
    """As `chat_request`, of a response's body."""
    chat = chat_body(body)
    try:
        return chat_request(chat, limits, encode)
    except InvalidArgument as error:
        raise renamed(error) from None


def renamed(error: InvalidArgument) -> InvalidArgument:
    """With the name that a field has here."""
    param = error.metadata.get("param")
    if param is None:
        return error
    here = param.replace(".function.", ".") if param.startswith("tools[") else param
    for chats, own in _NAMES.items():
        if param.startswith(chats):
            here = own + param.removeprefix(chats)
            break
    return InvalidArgument(
        error.reason, error.message.replace(f"'{param}'", f"'{here}'"), param=here
    )


def _object(body: Body, name: str) -> dict[str, Any]:
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        bad(name, "is an object")
    return value or {}


def _form(value: dict[str, Any]) -> dict[str, Any]:
    """`text`."""
    form = value.get("format")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        form = {
            "type": "json_schema",
            "json_schema": {k: v for k, v in form.items() if k != "type"},
        }
    return {"response_format": form, "verbosity": value.get("verbosity")}


def _logprobs(body: Body) -> dict[str, Any]:
    include = body.get("include") or []
    if not isinstance(include, list):
        bad("include", "is a list")
    if strange := [name for name in include if name not in _INCLUDED]:
        unsupported(
            "include",
            f"of {str(strange[0])[:80]!r} is not supported; known are {', '.join(_INCLUDED)}",
        )
    wanted = body.get("top_logprobs")
    return {"logprobs": True, "top_logprobs": wanted} if wanted or _LOGPROBS in include else {}


def _tools(value: Any) -> Any:
    """Here a function's fields lie beside its type."""
    if not isinstance(value, list):
        return value
    return [
        {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}
        if isinstance(tool, dict) and tool.get("type") == "function"
        else tool
        for tool in value
    ]


def _choice(value: Any) -> Any:
    if isinstance(value, dict) and value.get("type") == "function":
        return {"type": "function", "function": {"name": value.get("name")}}
    return value


def _messages(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        bad("input", "is a text or a list of at least one item")
    messages: list[dict[str, Any]] = []
    for index, item in enumerate(value):
        place = f"input[{index}]"
        if not isinstance(item, dict):
            bad(place, "is an object")
        kind = item.get("type") or "message"
        add = _ITEMS.get(kind) if isinstance(kind, str) else None
        if add is None:
            unsupported(f"{place}.type", f"is not supported; known are {', '.join(sorted(_ITEMS))}")
        add(item, place, messages)
    if not messages:
        bad("input", "has no message")
    return messages


def _message(item: dict[str, Any], place: str, messages: list[dict[str, Any]]) -> None:
    if item.get("role") not in _ROLES:
        bad(f"{place}.role", f"is one of {', '.join(_ROLES)}")
    content = _content(item.get("content"), f"{place}.content")
    messages.append({"role": item["role"], "content": content})


def _call(item: dict[str, Any], place: str, messages: list[dict[str, Any]]) -> None:
    """Joins the message of the assistant that it was said with."""
    for name in ("call_id", "name", "arguments"):
        if not isinstance(item.get(name), str):
            bad(f"{place}.{name}", "is a text")
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    function = {"name": item["name"], "arguments": item["arguments"]}
    call = {"id": item["call_id"], "type": "function", "function": function}
    messages[-1].setdefault("tool_calls", []).append(call)


def _result(item: dict[str, Any], place: str, messages: list[dict[str, Any]]) -> None:
    if not isinstance(item.get("call_id"), str):
        bad(f"{place}.call_id", "is a text")
    content = _content(item.get("output"), f"{place}.output")
    messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})


def _nothing(item: dict[str, Any], place: str, messages: list[dict[str, Any]]) -> None:
    """What another model thought."""


_Add = Callable[[dict[str, Any], str, list[dict[str, Any]]], None]
_ITEMS: dict[str, _Add] = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _result,
    "reasoning": _nothing,
}


def _content(value: Any, place: str) -> Any:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        bad(place, "is a text or a list of parts")
    return [_part(part, f"{place}[{index}]") for index, part in enumerate(value)]


def _part(part: Any, place: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    name = _PARTS.get(kind) if isinstance(kind, str) else None
    if name is None:
        unsupported(f"{place}.type", f"is not supported; known are {', '.join(_PARTS)}")
    if not isinstance(said := part.get(name), str):
        bad(f"{place}.{name}", "is a text")
    if kind == "input_image":
        return {"type": "image_url", "image_url": {"url": said}}
    return {"type": "text", "text": said}
