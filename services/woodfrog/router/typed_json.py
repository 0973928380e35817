"""The typed gRPC messages as OpenAI's JSON, and OpenAI's answers as typed messages. What has no typed field is left out."""

import base64
import json
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from google.protobuf.struct_pb2 import Struct, Value

from woodfrog.api.router.v1 import chats_pb2, completions_pb2, embeddings_pb2, images_pb2
from woodfrog.errors import Internal, InvalidArgument
from woodfrog.router import openai_errors
from woodfrog.router.gateway import Wake

_MESSAGES_MAX = 1 << 16  # two bytes each are enough, and a microsecond
Piece = TypeVar("Piece", chats_pb2.StreamResponse, completions_pb2.StreamCompleteResponse)


def chat_body(chat: chats_pb2.ChatRequest, *, stream: bool) -> bytes:
    """Raises InvalidArgument."""
    value = _begun(chat.extra, stream=stream)
    value["model"] = chat.model
    if len(chat.messages) > _MESSAGES_MAX:
        raise InvalidArgument(
            "REQUEST_TOO_LARGE",
            f"the request has {len(chat.messages)} messages, the limit is {_MESSAGES_MAX}",
            param="messages",
        )
    if chat.messages:
        value["messages"] = [_message(message) for message in chat.messages]
    if chat.stop:
        value["stop"] = list(chat.stop)
    for name in ("max_tokens", "temperature", "top_p", "seed"):
        if chat.HasField(name):
            value[name] = getattr(chat, name)
    return _encoded(value)


def completion_body(completion: completions_pb2.CompletionRequest, *, stream: bool) -> bytes:
    value = _begun(completion.extra, stream=stream)
    value["model"] = completion.model
    if completion.prompt:
        value["prompt"] = completion.prompt
    for name in ("max_tokens", "temperature"):
        if completion.HasField(name):
            value[name] = getattr(completion, name)
    return _encoded(value)


def embed_body(request: embeddings_pb2.EmbedRequest) -> bytes:
    value = _begun(request.extra)
    value["model"] = request.model
    value["encoding_format"] = "base64"  # a tenth of the bytes, and nothing to parse
    if request.inputs:
        value["input"] = list(request.inputs)
    if request.HasField("dimensions"):
        value["dimensions"] = request.dimensions
    return _encoded(value)


def generate_body(request: images_pb2.GenerateRequest) -> bytes:
    value = _begun(request.extra)
    value["model"] = request.model
    value["prompt"] = request.prompt
    value["response_format"] = "b64_json"  # an address would be of no use
    if request.HasField("n"):
        value["n"] = request.n
    if request.size:
        value["size"] = request.size
    return _encoded(value)


def chat_answer(body: bytes, wake: Wake) -> chats_pb2.CreateResponse:
    """Raises Internal when the engine's answer is not what OpenAI's is."""
    with _understood():
        value = json.loads(body)
        choices = [
            chats_pb2.ChatChoice(
                index=choice["index"],
                message=chats_pb2.ChatMessage(
                    role=choice["message"]["role"],
                    content=choice["message"].get("content") or "",
                    tool_calls=[_call(call) for call in choice["message"].get("tool_calls") or ()],
                ),
                finish_reason=choice.get("finish_reason") or "",
                logprobs=_logprobs(choice),
            )
            for choice in value["choices"]
        ]
        return chats_pb2.CreateResponse(
            id=value["id"],
            model=value["model"],
            choices=choices,
            usage=_usage(value.get("usage")),
            wake=wake_message(wake),
        )


def completion_answer(body: bytes, wake: Wake) -> completions_pb2.CompleteResponse:
    """Raises Internal when the engine's answer is not what OpenAI's is."""
    with _understood():
        value = json.loads(body)
        choices = [
            completions_pb2.CompletionChoice(
                index=choice["index"],
                text=choice.get("text") or "",
                finish_reason=choice.get("finish_reason") or "",
                logprobs=_logprobs(choice),
            )
            for choice in value["choices"]
        ]
        return completions_pb2.CompleteResponse(
            id=value["id"],
            model=value["model"],
            choices=choices,
            usage=_usage(value.get("usage")),
            wake=wake_message(wake),
        )


def embed_answer(body: bytes, wake: Wake) -> embeddings_pb2.EmbedResponse:
    """Raises Internal when the engine's answer is not what OpenAI's is."""
    with _understood():
        value = json.loads(body)
        data = sorted(value["data"], key=lambda each: int(each["index"]))
        return embeddings_pb2.EmbedResponse(
            model=value["model"],
            embeddings=[
                embeddings_pb2.Embedding(vector=_vector(each["embedding"])) for each in data
            ],
            usage=_usage(value.get("usage")),
            wake=wake_message(wake),
        )


def generate_answer(body: bytes, wake: Wake) -> images_pb2.GenerateResponse:
    """Raises Internal when the engine's answer is not what OpenAI's is."""
    with _understood():
        images = [base64.b64decode(each["b64_json"]) for each in json.loads(body)["data"]]
        return images_pb2.GenerateResponse(images=images, wake=wake_message(wake))


class Pieces(Generic[Piece]):
    """Turns the events of one stream into messages, the first with the wake."""

    def __init__(self, cls: type[Piece], wake: Wake) -> None:
        self._cls: type[Piece] = cls
        self._wake: Wake | None = wake

    def of(self, event: bytes) -> list[Piece]:
        """Raises the class of the engine's own error event, and Internal when the event is not what OpenAI's is."""
        with _understood():
            value = json.loads(event)
            if "error" in value:
                raise openai_errors.from_event(value["error"])
            pieces = []
            for choice in value["choices"]:
                text, reason = self._text(choice), choice.get("finish_reason") or ""
                calls, logprobs = _call_pieces(choice), _logprobs(choice)
                if text[1] or reason or calls or logprobs or self._wake:
                    piece = self._piece(value)
                    piece.index = choice["index"]
                    piece.finish_reason = reason
                    piece.logprobs.extend(logprobs)
                    setattr(piece, *text)
                    if isinstance(piece, chats_pb2.StreamResponse):
                        piece.tool_calls.extend(calls)
                    pieces.append(piece)
            if usage := _usage(value.get("usage")):
                last = self._piece(value)
                last.usage.CopyFrom(usage)
                pieces.append(last)
            return pieces

    def _piece(self, value: dict[str, Any]) -> Piece:
        wake, self._wake = self._wake, None
        piece: Piece = self._cls(id=value["id"], wake=wake_message(wake) if wake else None)
        return piece

    def _text(self, choice: dict[str, Any]) -> tuple[str, str]:
        """The field and what it gets."""
        if self._cls is chats_pb2.StreamResponse:
            return "content", choice["delta"].get("content") or ""
        return "text", choice.get("text") or ""


def wake_message(wake: Wake) -> chats_pb2.Wake:
    return chats_pb2.Wake(
        rung=wake.rung, climb_ms=wake.climb_ms, fallback_reason=wake.fallback_reason
    )


def _message(message: chats_pb2.ChatMessage) -> dict[str, Any]:
    value: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.image_urls:
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in message.image_urls]
        value["content"] = [*parts, {"type": "text", "text": message.content}]
    if message.tool_calls:
        value["content"] = message.content or None
        value["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        value["tool_call_id"] = message.tool_call_id
    return value


def _call(call: dict[str, Any]) -> chats_pb2.ToolCall:
    function = call["function"]
    return chats_pb2.ToolCall(id=call["id"], name=function["name"], arguments=function["arguments"])


def _call_pieces(choice: dict[str, Any]) -> list[chats_pb2.ToolCallPiece]:
    return [
        chats_pb2.ToolCallPiece(
            index=call["index"],
            id=call.get("id") or "",
            name=call["function"].get("name") or "",
            arguments=call["function"].get("arguments") or "",
        )
        for call in choice.get("delta", {}).get("tool_calls") or ()
    ]


def _logprobs(choice: dict[str, Any]) -> list[chats_pb2.TokenLogprob]:
    """Of a chat, or of a completion, which has lists beside each other."""
    said = choice.get("logprobs")
    if not said:
        return []
    if "tokens" not in said:
        return [_logprob(each) for each in said.get("content") or ()]
    tops = said.get("top_logprobs") or [None] * len(said["tokens"])
    rows = zip(said["tokens"], said["token_logprobs"], tops, strict=True)
    return [
        chats_pb2.TokenLogprob(
            token=token,
            logprob=logprob or 0.0,  # of an echoed prompt the first has none
            top=[chats_pb2.TokenLogprob(token=t, logprob=p) for t, p in (top or {}).items()],
        )
        for token, logprob, top in rows
    ]


def _logprob(value: dict[str, Any]) -> chats_pb2.TokenLogprob:
    return chats_pb2.TokenLogprob(
        token=value["token"],
        logprob=value["logprob"],
        bytes=bytes(value.get("bytes") or ()),
        top=[_logprob(each) for each in value.get("top_logprobs") or ()],
    )


def _vector(value: Any) -> Any:
    """As base64, or as numbers where an engine knows no base64."""
    return array("f", base64.b64decode(value)) if isinstance(value, str) else value


def _begun(extra: Struct, *, stream: bool | None = None) -> dict[str, Any]:
    """Typed fields are set over it, so they win."""
    value: dict[str, Any] = {}
    if stream:
        value["stream_options"] = {"include_usage": True}
    value.update({name: _plain(item) for name, item in extra.fields.items()})
    if stream is not None:
        value["stream"] = stream
    return value


def _encoded(value: dict[str, Any]) -> bytes:
    try:
        return json.dumps(value, allow_nan=False).encode()
    except ValueError:  # infinity, or what is no number
        text = "the request holds a number that JSON has not"
        raise InvalidArgument("INVALID_VALUE", text) from None


def _plain(value: Value) -> Any:
    """Faster than MessageToDict. A Struct knows floating numbers only, but engines refuse `"n": 2.0`."""
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() else number
    if kind == "list_value":
        return [_plain(item) for item in value.list_value.values]
    if kind == "struct_value":
        return {name: _plain(item) for name, item in value.struct_value.fields.items()}
    return None if kind in (None, "null_value") else getattr(value, kind)


def _usage(value: dict[str, Any] | None) -> chats_pb2.Usage | None:
    if not value:
        return None
    return chats_pb2.Usage(
        prompt_tokens=value.get("prompt_tokens", 0),
        completion_tokens=value.get("completion_tokens", 0),
        total_tokens=value.get("total_tokens", 0),
    )


@contextmanager
def _understood() -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Internal(
            "ENGINE_ANSWER_MALFORMED", f"the engine's answer is not what OpenAI's is: {error!r}"
        ) from None
