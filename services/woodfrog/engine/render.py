"""OpenAI's answers, as dictionaries. Pure but for the token texts that the tokenizer gives."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from woodfrog.engine.request import GenerationRequest, Piece, TokenLogprob


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every message of one answer repeats."""

    id: str
    created: int
    """Seconds since the epoch."""
    model: str
    fingerprint: str

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

    def whole(self, answers: list[Piece]) -> dict[str, Any]:
        """One piece for each answer, in order."""
        choices = []
        for index, answer in enumerate(answers):
            self._completion_tokens += answer.token_count
            choice: dict[str, Any] = {"index": index, "finish_reason": answer.finish_reason}
            choice["logprobs"] = self._logprobs(index, answer)
            if self._request.chat:
                choice["message"] = {"role": "assistant", "content": answer.text, "refusal": None}
            else:
                choice["text"] = answer.text
            choices.append(choice)
        kind = "chat.completion" if self._request.chat else "text_completion"
        return {**self._envelope.around(kind, choices), "usage": self._usage()}

    def chunk(self, index: int, piece: Piece) -> dict[str, Any] | None:
        """None when there is nothing to tell yet."""
        self._completion_tokens += piece.token_count
        first = index not in self._begun
        if not (piece.text or piece.logprobs or piece.finish_reason or first):
            return None
        self._begun.add(index)
        choice: dict[str, Any] = {"index": index, "finish_reason": piece.finish_reason}
        choice["logprobs"] = self._logprobs(index, piece)
        if self._request.chat:
            delta = {"role": "assistant"} if first else {}
            if piece.text or first:
                delta["content"] = piece.text
            choice["delta"] = delta
        else:
            choice["text"] = piece.text
        return self._chunk([choice])

    def usage_chunk(self) -> dict[str, Any]:
        return {**self._chunk([]), "usage": self._usage()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._request.chat else "text_completion"
        message = self._envelope.around(kind, choices)
        if self._request.include_usage:
            message["usage"] = None
        return message

    def _usage(self) -> dict[str, int]:
        prompt_tokens = sum(len(prompt) for prompt in self._request.prompts)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "total_tokens": prompt_tokens + self._completion_tokens,
        }

    def _logprobs(self, index: int, piece: Piece) -> dict[str, Any] | None:
        if self._request.sampling.logprobs is None:
            return None
        if self._request.chat:
            return {
                "content": [self._chat_logprob(entry) for entry in piece.logprobs],
                "refusal": None,
            }
        return self._text_logprobs(index, piece.logprobs)

    def _chat_logprob(self, entry: TokenLogprob) -> dict[str, Any]:
        return {
            **self._token(entry.token, entry.logprob),
            "top_logprobs": [self._token(token, logprob) for token, logprob in entry.top],
        }

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        raw = self._bytes_of(token)
        return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": list(raw)}

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


def fingerprint(model_name: str, versions: Mapping[str, str]) -> str:
    """OpenAI's system_fingerprint: the same wherever the same answers may be expected."""
    parts = [model_name, *sorted(versions.items())]
    return "fp_" + hashlib.sha256(repr(parts).encode()).hexdigest()[:10]
