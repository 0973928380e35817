"""From an OpenAI request body to a checked GenerationRequest. Unknown fields are ignored, as OpenAI's servers do."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from woodfrog.engine.accepted import check_chat, check_completion
from woodfrog.engine.fields import Body, bad, boolean, integer, number, unsupported
from woodfrog.engine.formats import answer_schema
from woodfrog.engine.request import GenerationRequest, Sampling
from woodfrog.engine.tool_format import ToolFormat
from woodfrog.engine.tools import message_calls, tool_use
from woodfrog.errors import InvalidArgument

_ROLES = {"system", "developer", "user", "assistant", "tool", "function"}
_COMPLETION_TOKENS = 16  # OpenAI's default for text completions
_LOGPROBS_MAX = 20
_STOPS_MAX = 4
_TOKEN = re.compile(r"[0-9]{1,9}")
_COLDEST = 1e-4  # below this, dividing by the temperature overflows


@dataclass(frozen=True, slots=True)
class Limits:
    context_tokens: int
    vocabulary_size: int
    sequences: int
    """Most answers to one request, over all its prompts."""
    schemas: bool = False
    """Answers can be kept to a JSON schema."""
    tool_format: ToolFormat | None = None
    """How the model writes calls of functions, if it can."""


def chat_request(
    body: Body,
    limits: Limits,
    encode: Callable[..., list[int]],
    *,
    images_max: int | None = None,
) -> GenerationRequest:
    """`encode` turns checked messages, and where there are `tools` these and an `opening`, into tokens.

    Raises InvalidArgument with `param`.

    With `images_max`, of one request, each content is a list of parts: {"type": "text", "text"} and
    {"type": "image", "url", "place"}, where `place` is the name of the field.
    """
    messages = _messages(body.get("messages"), images_max)
    tools = tool_use(body, limits.tool_format, limits.schemas)
    prompt = (
        encode(messages, tools=tools.tools, opening=tools.opening) if tools else encode(messages)
    )
    check_chat(body)
    wanted = integer(body, "max_completion_tokens", 1, None)
    if wanted is None:
        wanted = integer(body, "max_tokens", 1, None)
    logprobs = None
    if boolean(body, "logprobs"):
        logprobs = integer(body, "top_logprobs", 0, _LOGPROBS_MAX) or 0
    elif body.get("top_logprobs") is not None:
        bad("top_logprobs", "needs logprobs: true")
    schema = answer_schema(body.get("response_format"), "response_format")
    if schema is not None and not limits.schemas:
        unsupported("response_format", 'is not supported by this model beyond {"type": "text"}')
    if tools is not None:
        if tools.forced is None and schema is not None:
            unsupported(
                "response_format",
                'cannot go with tools that need not be called; set tool_choice to "none", "required" or a function',
            )
        schema = tools.forced  # the answer is the call, whatever form another answer would have
    return _request(body, limits, [prompt], wanted, logprobs, schema=schema, tools=tools)


def completion_request(
    body: Body,
    limits: Limits,
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
) -> GenerationRequest:
    prompts = _prompts(body.get("prompt"), limits, encode)
    check_completion(body)
    wanted = integer(body, "max_tokens", 1, None) or _COMPLETION_TOKENS
    logprobs = integer(body, "logprobs", 0, _LOGPROBS_MAX)
    echoes = [decode(prompt) for prompt in prompts] if boolean(body, "echo") else None
    return _request(body, limits, prompts, wanted, logprobs, chat=False, echoes=echoes)


def _request(
    body: Body,
    limits: Limits,
    prompts: list[list[int]],
    wanted: int | None,
    logprobs: int | None,
    *,
    chat: bool = True,
    **more: Any,
) -> GenerationRequest:
    """`more` are fields of the request that one of the two kinds has."""
    param = "messages" if chat else "prompt"
    if not all(prompts):
        bad(param, "is empty")
    longest = max(len(prompt) for prompt in prompts)
    room = limits.context_tokens - longest
    if room < (wanted or 1):
        raise InvalidArgument(
            "CONTEXT_LENGTH_EXCEEDED",
            f"this model's maximum context length is {limits.context_tokens} tokens, but {longest} in the prompt"
            f" and {wanted or 1} in the completion were asked for; shorten one of them",
            param=param,
        )
    # Also those of texts: a tokenizer may know more words than its model.
    if not all(0 <= token < limits.vocabulary_size for prompt in prompts for token in prompt):
        bad(param, f"has tokens outside 0 to {limits.vocabulary_size - 1}, which the model lacks")
    n = integer(body, "n", 1, limits.sequences) or 1
    if n * len(prompts) > limits.sequences:
        bad("n", f"times the prompts is more than {limits.sequences} answers")
    stream = boolean(body, "stream")
    options = body.get("stream_options")
    if options is not None and not (stream and isinstance(options, dict)):
        bad("stream_options", "is an object and needs stream: true")
    ignore_eos = boolean(body, "ignore_eos")
    if ignore_eos and more.get("schema") is not None:
        bad("ignore_eos", "cannot go with an answer that must be JSON, which ends")
    return GenerationRequest(
        chat=chat,
        prompts=prompts,
        n=n,
        max_tokens=wanted or room,
        sampling=_sampling(body, limits, logprobs),
        stops=_stops(body.get("stop")),
        stream=stream,
        include_usage=boolean(options or {}, "include_usage"),
        ignore_eos=ignore_eos,
        **more,
    )


def _sampling(body: Body, limits: Limits, logprobs: int | None) -> Sampling:
    top_p = number(body, "top_p", 0.0, 1.0, 1.0)
    if top_p == 0.0:
        bad("top_p", "is more than 0")
    repetition_penalty = number(body, "repetition_penalty", 0.0, 10.0, 1.0)
    if repetition_penalty == 0.0:
        bad("repetition_penalty", "is more than 0")
    temperature = number(body, "temperature", 0.0, 2.0, 1.0)
    return Sampling(
        temperature=temperature if temperature >= _COLDEST else 0.0,
        top_p=top_p,
        top_k=max(0, integer(body, "top_k", -1, None) or 0),
        frequency_penalty=number(body, "frequency_penalty", -2.0, 2.0, 0.0),
        presence_penalty=number(body, "presence_penalty", -2.0, 2.0, 0.0),
        repetition_penalty=repetition_penalty,
        logit_bias=_logit_bias(body.get("logit_bias"), limits),
        seed=integer(body, "seed", -(1 << 63), (1 << 63) - 1),
        logprobs=logprobs,
    )


def _messages(value: Any, images_max: int | None) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        bad("messages", "is a list of at least one message")
    messages = []
    image_count = 0
    for index, message in enumerate(value):
        place = f"messages[{index}]"
        if not isinstance(message, dict):
            bad(place, "is an object")
        role = message.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            bad(f"{place}.role", f"is one of {', '.join(sorted(_ROLES))}")
        parts = _parts(message.get("content"), role, f"{place}.content", images_max is not None)
        image_count += sum(part["type"] == "image" for part in parts)
        if image_count > (images_max or 0):
            bad("messages", f"have more than {images_max} images")
        content = parts if images_max is not None else "".join(part["text"] for part in parts)
        messages.append(
            {
                "role": "system" if role == "developer" else role,
                "content": content,
                **_about_calls(message, role, place),
            }
        )
    return messages


def _parts(value: Any, role: str, place: str, images: bool) -> list[dict[str, str]]:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if value is None and role == "assistant":
        return [{"type": "text", "text": ""}]
    if not isinstance(value, list):
        bad(place, "is a text or a list of parts")
    return [_part(part, f"{place}[{index}]", images) for index, part in enumerate(value)]


def _part(part: Any, place: str, images: bool) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        if not isinstance(part.get("text"), str):
            bad(f"{place}.text", "is a text")
        return {"type": "text", "text": part["text"]}
    if kind != "image_url" or not images:
        taken = '"text" and "image_url"' if images else '"text"'
        bad(f"{place}.type", f"is not supported; this model takes parts of type {taken}")
    given = part.get("image_url")
    url = given.get("url") if isinstance(given, dict) else given
    if not isinstance(url, str):
        bad(f"{place}.image_url", "is an object with a url")
    return {"type": "image", "url": url, "place": f"{place}.image_url"}


def _about_calls(message: dict[str, Any], role: str, place: str) -> dict[str, Any]:
    """What a message says of calls that were made."""
    about: dict[str, Any] = {}
    if role == "assistant" and message.get("tool_calls"):
        about["tool_calls"] = message_calls(message["tool_calls"], f"{place}.tool_calls")
    if role == "tool":
        if not isinstance(message.get("tool_call_id"), str):
            bad(f"{place}.tool_call_id", "is the id of the call that this answers")
        about["tool_call_id"] = message["tool_call_id"]
    if isinstance(message.get("name"), str):
        about["name"] = message["name"]
    return about


def _prompts(value: Any, limits: Limits, encode: Callable[[str], list[int]]) -> list[list[int]]:
    if isinstance(value, str) or _tokens(value):
        value = [value]
    if not isinstance(value, list) or not value:
        bad("prompt", "is a text, a list of tokens, or a list of at least one of these")
    if len(value) > limits.sequences:
        bad("prompt", f"has more than {limits.sequences} entries")
    prompts = []
    for entry in value:
        if isinstance(entry, str):
            entry = encode(entry)
        elif not _tokens(entry):
            bad("prompt", "mixes texts and tokens, or holds something else")
        prompts.append(list(entry))
    return prompts


def _tokens(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(token, int) and not isinstance(token, bool) for token in value)
    )


def _stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or len(stops) > _STOPS_MAX:
        bad("stop", f"is a text or a list of at most {_STOPS_MAX}")
    if not all(isinstance(stop, str) for stop in stops):
        bad("stop", "holds texts only")
    return [stop for stop in stops if stop]


def _logit_bias(value: Any, limits: Limits) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        bad("logit_bias", "is an object from token to bias")
    bias = {}
    for key, amount in value.items():
        if not (_TOKEN.fullmatch(key) and int(key) < limits.vocabulary_size):
            bad("logit_bias", f"has the key {key[:80]!r}, which is not a token of this model")
        if isinstance(amount, bool) or not isinstance(amount, int | float):
            bad("logit_bias", "holds numbers only")
        if not -100 <= amount <= 100:
            bad("logit_bias", "is from -100 to 100")
        bias[int(key)] = float(amount)
    return bias
