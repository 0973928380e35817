"""What is asked and answered, and how messages carry it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from woodfrog.api.router.v1 import (
    chats_pb2,
    completions_pb2,
    embeddings_pb2,
    images_pb2,
    models_pb2,
)


@dataclass(frozen=True, slots=True)
class ToolCall:
    id: str
    name: str
    arguments: str  # a JSON object; of a piece, what follows of it
    index: int = 0  # of a piece: which call of the answer; `id` and `name` are set on its first


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token: str
    logprob: float
    top: tuple["TokenLogprob", ...] = ()  # the likeliest in its place


@dataclass(frozen=True, slots=True)
class Message:
    role: str  # "system", "user", "assistant" or "tool"
    text: str = ""
    image_urls: Sequence[str] = ()  # data: URLs; they stand before the text
    tool_calls: Sequence[ToolCall] = ()  # of an assistant, as its answer had them
    tool_call_id: str = ""  # of a tool: which call it answers


@dataclass(frozen=True, slots=True)
class Answer:
    """To the first choice of a chat or a completion."""

    text: str
    finish_reason: str  # "stop", "length" or "tool_calls"
    tool_calls: tuple[ToolCall, ...]
    logprobs: tuple[TokenLogprob, ...]  # where they were asked for
    prompt_tokens: int
    completion_tokens: int
    rung: str  # on which the model was when the request came
    climb_ms: float  # of the climb that it waited for; 0 when it served
    fallback_reason: str  # why a snapshot was passed over; empty when it was not


@dataclass(frozen=True, slots=True)
class Piece:
    text: str  # to append; may be empty
    index: int = 0  # which answer, 0 to n - 1
    finish_reason: str = ""  # set on the last piece of an answer
    rung: str = ""  # set on the first piece, as is the next
    climb_ms: float = 0.0
    prompt_tokens: int = 0  # set on the last piece, as is the next
    completion_tokens: int = 0
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    create_time: int  # seconds since the epoch
    weights_bytes: int


Messages = Sequence[Message | tuple[str, str]]  # the latter are role and text; oldest first
Vector = tuple[float, ...]
_CHAT = ("max_tokens", "temperature", "top_p", "seed")
_COMPLETION = ("max_tokens", "temperature")


def chat_request(
    model: str, messages: Messages, stop: Sequence[str], fields: dict[str, Any]
) -> chats_pb2.ChatRequest:
    """`fields` that the message does not have go as they are. Raises TypeError, ValueError."""
    request = chats_pb2.ChatRequest(model=model, stop=stop)
    for each in messages:
        message = each if isinstance(each, Message) else Message(*each)
        added = request.messages.add(
            role=message.role,
            content=message.text,
            image_urls=message.image_urls,
            tool_call_id=message.tool_call_id,
        )
        for call in message.tool_calls:
            added.tool_calls.add(id=call.id, name=call.name, arguments=call.arguments)
    _fill(request, fields, _CHAT)
    return request


def completion_request(
    model: str, prompt: str, fields: dict[str, Any]
) -> completions_pb2.CompletionRequest:
    """As `chat_request`."""
    request = completions_pb2.CompletionRequest(model=model, prompt=prompt)
    _fill(request, fields, _COMPLETION)
    return request


def embed_request(
    model: str, inputs: Sequence[str], fields: dict[str, Any]
) -> embeddings_pb2.EmbedRequest:
    """As `chat_request`."""
    request = embeddings_pb2.EmbedRequest(model=model, inputs=inputs)
    _fill(request, fields, ("dimensions",))
    return request


def generate_request(model: str, prompt: str, fields: dict[str, Any]) -> images_pb2.GenerateRequest:
    """As `chat_request`."""
    request = images_pb2.GenerateRequest(model=model, prompt=prompt)
    _fill(request, fields, ("n", "size"))
    return request


def chat_answer(message: chats_pb2.CreateResponse) -> Answer:
    choice = message.choices[0]
    calls = tuple(ToolCall(c.id, c.name, c.arguments) for c in choice.message.tool_calls)
    return _answer(choice.message.content, calls, choice, message)


def completion_answer(message: completions_pb2.CompleteResponse) -> Answer:
    choice = message.choices[0]
    return _answer(choice.text, (), choice, message)


def chat_piece(message: chats_pb2.StreamResponse) -> Piece:
    calls = (ToolCall(c.id, c.name, c.arguments, c.index) for c in message.tool_calls)
    return _piece(message.content, tuple(calls), message)


def completion_piece(message: completions_pb2.StreamCompleteResponse) -> Piece:
    return _piece(message.text, (), message)


def vectors(message: embeddings_pb2.EmbedResponse) -> tuple[Vector, ...]:
    return tuple(tuple(each.vector) for each in message.embeddings)


def models(message: models_pb2.ListModelsResponse) -> tuple[Model, ...]:
    return tuple(Model(m.id, m.create_time, m.weights_bytes) for m in message.models)


def _fill(request: Any, fields: dict[str, Any], known: Sequence[str]) -> None:
    for name, value in fields.items():
        if name not in known:
            request.extra[name] = value
        elif value is not None:
            setattr(request, name, value)


def _answer(text: str, calls: tuple[ToolCall, ...], choice: Any, message: Any) -> Answer:
    return Answer(
        text, choice.finish_reason, calls, _logprobs(choice.logprobs), message.usage.prompt_tokens, message.usage.completion_tokens,
        message.wake.rung, message.wake.climb_ms, message.wake.fallback_reason,
    )  # fmt: skip


def _piece(text: str, calls: tuple[ToolCall, ...], message: Any) -> Piece:
    return Piece(
        text, message.index, message.finish_reason, message.wake.rung, message.wake.climb_ms,
        message.usage.prompt_tokens, message.usage.completion_tokens, calls, _logprobs(message.logprobs),
    )  # fmt: skip


def _logprobs(messages: Any) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(m.token, m.logprob, _logprobs(m.top)) for m in messages)
