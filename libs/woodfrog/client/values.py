"""What is asked and answered, and how messages carry it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from woodfrog.api.router.v1 import chats_pb2, completions_pb2, models_pb2


@dataclass(frozen=True, slots=True)
class Answer:
    """To the first choice of a chat or a completion."""

    text: str
    finish_reason: str  # "stop", "length" or "tool_calls"
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


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    create_time: int  # seconds since the epoch
    weights_bytes: int


Messages = Sequence[tuple[str, str]]  # role and text, oldest first
_CHAT = ("max_tokens", "temperature", "top_p", "seed")
_COMPLETION = ("max_tokens", "temperature")


def chat_request(
    model: str, messages: Messages, stop: Sequence[str], fields: dict[str, Any]
) -> chats_pb2.ChatRequest:
    """`fields` that the message does not have go as they are. Raises TypeError, ValueError."""
    request = chats_pb2.ChatRequest(model=model, stop=stop)
    for role, content in messages:
        request.messages.add(role=role, content=content)
    _fill(request, fields, _CHAT)
    return request


def completion_request(
    model: str, prompt: str, fields: dict[str, Any]
) -> completions_pb2.CompletionRequest:
    """As `chat_request`."""
    request = completions_pb2.CompletionRequest(model=model, prompt=prompt)
    _fill(request, fields, _COMPLETION)
    return request


def chat_answer(message: chats_pb2.CreateResponse) -> Answer:
    choice = message.choices[0]
    return _answer(choice.message.content, choice.finish_reason, message)


def completion_answer(message: completions_pb2.CompleteResponse) -> Answer:
    choice = message.choices[0]
    return _answer(choice.text, choice.finish_reason, message)


def chat_piece(message: chats_pb2.StreamResponse) -> Piece:
    return _piece(message.content, message)


def completion_piece(message: completions_pb2.StreamCompleteResponse) -> Piece:
    return _piece(message.text, message)


def models(message: models_pb2.ListModelsResponse) -> tuple[Model, ...]:
    return tuple(Model(m.id, m.create_time, m.weights_bytes) for m in message.models)


def _fill(request: Any, fields: dict[str, Any], known: Sequence[str]) -> None:
    for name, value in fields.items():
        if name not in known:
            request.extra[name] = value
        elif value is not None:
            setattr(request, name, value)


def _answer(text: str, finish_reason: str, message: Any) -> Answer:
    return Answer(
        text, finish_reason, message.usage.prompt_tokens, message.usage.completion_tokens,
        message.wake.rung, message.wake.climb_ms, message.wake.fallback_reason,
    )  # fmt: skip


def _piece(text: str, message: Any) -> Piece:
    return Piece(
        text, message.index, message.finish_reason, message.wake.rung, message.wake.climb_ms,
        message.usage.prompt_tokens, message.usage.completion_tokens,
    )  # fmt: skip
