"""What a model answers to: llama.cpp's own API, behind slots, the gate and OpenAI's errors."""

import json
import re
from collections.abc import Mapping
from typing import Any

import aiohttp

from woodfrog.clock import Clock
from woodfrog.errors import InvalidArgument
from woodfrog.llamacpp import bounds, forms
from woodfrog.llamacpp.engine import LlamaEngine
from woodfrog.llamacpp.watchdog import Watchdog
from woodfrog.replica.app import Answer, json_object
from woodfrog.replica.openai_errors import error_object

_BODY_BYTES = 32 << 20
#: Path → whether it computes, and so needs slots. Others of llama.cpp show what other clients ask, or change it for them.
_COMPUTES = {
    "/v1/chat/completions": True,
    "/v1/completions": True,
    "/v1/responses": True,
    "/v1/messages": True,
    "/v1/embeddings": True,
    "/v1/rerank": True,
    "/completion": True,
    "/infill": True,
    "/embedding": True,
    "/v1/messages/count_tokens": False,
    "/apply-template": False,
    "/tokenize": False,
    "/detokenize": False,
}
_OF_WORDS = frozenset(("/tokenize", "/detokenize"))  # any model has them
_OF_VECTORS = frozenset(("/v1/embeddings", "/v1/rerank", "/embedding"))  # the rest is of texts
_OF_TOOLS = frozenset(("/v1/chat/completions", "/v1/responses", "/v1/messages"))
#: Fields that reach over the request: into what others left in a slot, into the model, or into slots that are not counted.
_OURS = ("cache_prompt", "id_slot", "n_cache_reuse", "lora", "n_cmpl")
#: Where a request has many texts, which take turns in the slots.
_TEXTS = {"/v1/embeddings": "input", "/embedding": "content", "/v1/rerank": "documents"}
_CODES = {
    "exceed_context_size_error": "context_length_exceeded",
    "not_supported_error": "unsupported",
    "invalid_request_error": "invalid_value",
}
#: What llama.cpp says with status 500 though it is of the request, so that OpenAI's clients would ask again.
_OF_THE_REQUEST = {
    "input is not supported": (
        "invalid_value",
        "this model takes text only; leave pictures and sounds out, or ask another model",
    ),
    "is too large to process": (
        "context_length_exceeded",
        "the input is longer than this model takes at once; shorten it",
    ),
}

#: Of a request that llama.cpp does not understand: it calls some of these its own errors, which clients would try again.
_MISUNDERSTOOD = re.compile(r"Failed to parse |Unknown |vector::_M_range_check")
_DONE = b"data: [DONE]"
_COUNTS = ((b"prompt_n", b"predicted_n"), (b"input_tokens", b"output_tokens"))
_TAIL_BYTES = 16 << 10  # in which the last event is


class LlamaFront:
    def __init__(self, engine: LlamaEngine, clock: Clock) -> None:
        self.methods: Mapping[str, str] = {
            path: "POST"
            for path in _COMPUTES
            if path in _OF_WORDS or (path in _OF_VECTORS) == engine.header.pools
        }
        self.body_bytes_max = _BODY_BYTES
        self._engine = engine
        self._watchdog = Watchdog(engine.inner.busy)
        self._clock = clock

    async def handle(self, path: str, raw: bytes, answer: Answer) -> None:
        """Raises woodfrog.errors classes."""
        body = json_object(raw)
        for name in _OURS:
            body.pop(name, None)
        called = path in _OF_TOOLS and body.get("tools") and body.get("tool_choice") != "none"
        if called and not self._engine.header.tools:
            raise InvalidArgument(
                "UNSUPPORTED_PARAMETER",
                "'tools' are not supported: this model's chat template has nothing for them; ask a model whose"
                " template has",
                param="tools",
            )
        bounds.check(body)
        body |= {"cache_prompt": False, "model": self._engine.settings.model_name}
        if not _COMPUTES[path]:
            await self._pass_on(path, body, answer)
            return
        tickets = self._engine.admission.take(self._sequences(path, body))
        try:
            for ticket in tickets:
                await ticket.granted
            async with tickets[0]:  # how long it holds them is what others are told to wait
                with self._watchdog.over():
                    await self._pass_on(path, body, answer)
        finally:
            for ticket in tickets:
                ticket.give_back()

    def _sequences(self, path: str, body: dict[str, Any]) -> int:
        """That llama.cpp runs at once for it. Raises InvalidArgument when they are more than slots."""
        slots = self._engine.admission.slots
        if path in _TEXTS:
            return min(_texts(body.get(_TEXTS[path])), slots)
        count = body.get("n")
        count = 1 if count is None else count
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= slots:
            raise InvalidArgument(
                "INVALID_VALUE", f"n is a whole number from 1 to {slots}", param="n"
            )
        count *= _texts(body.get("prompt"))
        if count > slots:
            raise InvalidArgument(
                "INVALID_VALUE",
                f"prompts and n ask for {count} answers at once, this model gives {slots}",
                param="prompt",
            )
        return count

    async def _pass_on(self, path: str, body: dict[str, Any], answer: Answer) -> None:
        room = self._engine.context_tokens
        async with self._engine.inner.request("POST", path, body) as response:
            if response.content_type == "text/event-stream":
                events = forms.events(path, body, self._clock.wall(), room)
                await _stream(response, answer, events)
                return
            data = await response.read()
        if response.status >= 400:
            await answer.json(*_error(data, response.status))
        else:
            data = forms.whole(path, data, body, self._clock.wall(), room)
            await answer.json(response.status, data)


def _texts(value: Any) -> int:
    """A list of token numbers, or of those and texts, is one; a list of texts or lists is as many as it has."""
    if isinstance(value, list) and not any(isinstance(part, int) for part in value):
        return max(1, len(value))
    return 1


async def _stream(
    response: aiohttp.ClientResponse, answer: Answer, events: forms.Events | None
) -> None:
    await answer.begin(
        response.status,
        {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"},
    )
    begin = tail = b""
    told = False
    async for data in response.content.iter_any():
        if events is not None:
            data = events.feed(data)
            if not data:
                continue
        before, end, after = data.partition(_DONE)
        begin = begin or data[:_TAIL_BYTES]
        tail = (tail + before)[-_TAIL_BYTES:]
        if end:
            if before:
                await answer.piece(before)
            told = await _tell(begin + tail, answer)
        await answer.piece(end + after if end else data)
    if events is not None and (rest := events.end()):
        await answer.piece(rest)
    if not told:  # responses and messages have no [DONE]
        await _tell(begin + tail, answer)
    await answer.end()


async def _tell(said: bytes, answer: Answer) -> bool:
    tokens = _tokens(said)
    if tokens is not None:
        await answer.usage(*tokens)
    return tokens is not None


def _tokens(said: bytes) -> tuple[int, int] | None:
    """Read and written, as the last events have them; of messages the first has what was read. Quotes within texts are
    escaped, so no text can say it.
    """
    for names in _COUNTS:
        read, written = (re.findall(rb'"%b": ?(\d+)' % name, said) for name in names)
        if read and written:
            return int(read[-1]), int(written[-1])
    return None


def _error(data: bytes, status: int) -> tuple[int, dict[str, Any]]:
    """llama.cpp's error in OpenAI's form, with its status."""
    try:
        said = json.loads(data)["error"]
        message, kind = str(said["message"]), str(said["type"])
    except (ValueError, LookupError, TypeError):
        message, kind = "llama.cpp failed at this request", "server_error"
    for part, told in _OF_THE_REQUEST.items():
        if part in message:
            status, (kind, message) = 400, told
    if status == 500 and _MISUNDERSTOOD.match(message):
        status, kind = 400, "invalid_request_error"
    shown = "invalid_request_error" if status < 500 else "server_error"
    return status, error_object(message, shown, None, _CODES.get(kind, kind))
