"""OpenAI's answers, as dictionaries. Pure but for the token texts that the tokenizer gives."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from woodfrog.engine.calls import Arguments, Begun, Reader
from woodfrog.engine.request import GenerationRequest, Piece, TokenLogprob
from woodfrog.engine.tagged_calls import reader_of
from woodfrog.engine.tool_format import ToolFormat
from woodfrog.errors import WoodfrogError


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every message of one answer repeats."""

    id: str
    created: int
    """Seconds since the epoch."""
    model: str
    fingerprint: str

    def call_id(self, index: int, number: int, known: ToolFormat) -> str:
        """Of an answer's call; no other has it. Mistral's templates take nine letters and digits only."""
        digest = hashlib.sha256(f"{self.id} {index} {number}".encode()).hexdigest()
        return digest[:9] if known is ToolFormat.MISTRAL else f"call_{digest[:24]}"

    def around(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }


class Renderer:
    """Answers to one request, whole or in chunks."""

    def __init__(
        self, request: GenerationRequest, envelope: Envelope, bytes_of: Callable[[int], bytes]
    ) -> None:
        self._request = request
        self._envelope = envelope
        self._bytes_of = bytes_of
        self._begun: set[int] = set()
        self._offsets: dict[int, int] = {}  # characters of each answer's text so far
        self._completion_tokens = 0
        self._readers: dict[int, Reader] = {}  # of calls in each answer

    def whole(self, answers: list[Piece]) -> dict[str, Any]:
        """One piece for each answer, in order."""
        choices = []
        for index, answer in enumerate(answers):
            self._completion_tokens += answer.token_count
            text, calls, finish = self._read(index, answer)
            choice: dict[str, Any] = {"index": index, "finish_reason": finish}
            choice["logprobs"] = self._logprobs(index, answer)
            if self._request.chat:
                content = None if calls and not text else text
                choice["message"] = {"role": "assistant", "content": content, "refusal": None}
                if calls:
                    choice["message"]["tool_calls"] = [_without_index(call) for call in calls]
            else:
                choice["text"] = self._echo(index) + text
            choices.append(choice)
        kind = "chat.completion" if self._request.chat else "text_completion"
        return {**self._envelope.around(kind, choices), "usage": self.usage()}

    def chunk(self, index: int, piece: Piece) -> dict[str, Any] | None:
        """None when there is nothing to tell yet."""
        self._completion_tokens += piece.token_count
        first = index not in self._begun
        text, calls, finish = self._read(index, piece)
        if not (text or calls or piece.logprobs or finish or first):
            return None
        self._begun.add(index)
        choice: dict[str, Any] = {"index": index, "finish_reason": finish}
        choice["logprobs"] = self._logprobs(index, piece)
        if self._request.chat:
            delta: dict[str, Any] = {"role": "assistant"} if first else {}
            if text or first:
                delta["content"] = None if calls and not text else text
            if calls:
                delta["tool_calls"] = calls
            choice["delta"] = delta
        else:
            choice["text"] = self._echo(index) * first + text
        return self._chunk([choice])

    def events(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        chunk = self.chunk(index, piece)
        return [] if chunk is None else [chunk]

    def last(self) -> list[dict[str, Any] | str]:
        """What ends a stream."""
        return [*([self.usage_chunk()] if self._request.include_usage else []), "[DONE]"]

    def failure(self, error: WoodfrogError) -> list[dict[str, Any]]:
        """Nothing of its own: every route has the same error event."""
        return []

    def usage_chunk(self) -> dict[str, Any]:
        return {**self._chunk([]), "usage": self.usage()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._request.chat else "text_completion"
        message = self._envelope.around(kind, choices)
        if self._request.include_usage:
            message["usage"] = None
        return message

    def _echo(self, index: int) -> str:
        """What comes before an answer's text."""
        echoes = self._request.echoes
        return echoes[index // self._request.n] if echoes else ""

    def _read(self, index: int, piece: Piece) -> tuple[str, list[dict[str, Any]], str | None]:
        """Text, calls or parts of one as deltas have them, and why the answer ends, if it does."""
        use = self._request.tools
        if use is None:
            return piece.text, [], piece.finish_reason
        reader = self._readers.setdefault(index, reader_of(use))
        number = reader.count
        text, calls = "", list[dict[str, Any]]()
        told = reader.feed(piece.text) + (reader.flush() if piece.finish_reason else [])
        for some in told:
            match some:
                case Begun(name):
                    function = {"name": name, "arguments": ""}
                    call_id = self._envelope.call_id(index, number, use.format)
                    calls.append(
                        {"index": number, "id": call_id, "type": "function", "function": function}
                    )
                    number += 1
                case Arguments(more):
                    if not calls:
                        calls.append({"index": number - 1, "function": {"arguments": ""}})
                    calls[-1]["function"]["arguments"] += more
                case _:
                    text += some
        finish = piece.finish_reason
        return text, calls, "tool_calls" if finish == "stop" and reader.count else finish

    def tokens(self) -> tuple[int, int]:
        return sum(len(prompt) for prompt in self._request.prompts), self._completion_tokens

    def usage(self) -> dict[str, int]:
        read, written = self.tokens()
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def _logprobs(self, index: int, piece: Piece) -> dict[str, Any] | None:
        if self._request.sampling.logprobs is None:
            return None
        if self._request.chat:
            return {
                "content": [chat_logprob(entry, self._bytes_of) for entry in piece.logprobs],
                "refusal": None,
            }
        return self._text_logprobs(index, piece.logprobs)

    def _text_logprobs(self, index: int, entries: list[TokenLogprob]) -> dict[str, Any]:
        texts = [self._text(entry.token) for entry in entries]
        offsets = []
        for text in texts:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(text)
        return {
            "tokens": texts,
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [
                {self._text(token): logprob for token, logprob in entry.top}
                | {self._text(entry.token): entry.logprob}
                for entry in entries
            ],
            "text_offset": offsets,
        }

    def _text(self, token: int) -> str:
        return self._bytes_of(token).decode(errors="replace")


def chat_logprob(entry: TokenLogprob, bytes_of: Callable[[int], bytes]) -> dict[str, Any]:
    """As chats and responses have it."""

    def shown(token: int, logprob: float) -> dict[str, Any]:
        raw = bytes_of(token)
        return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": list(raw)}

    top = [shown(token, logprob) for token, logprob in entry.top]
    return {**shown(entry.token, entry.logprob), "top_logprobs": top}


def _without_index(call: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in call.items() if key != "index"}


def fingerprint(model_name: str, versions: Mapping[str, str]) -> str:
    """OpenAI's system_fingerprint: the same wherever the same answers may be expected."""
    parts = [model_name, *sorted(versions.items())]
    return "fp_" + hashlib.sha256(repr(parts).encode()).hexdigest()[:10]
