"""OpenAI's responses, whole or as events, from the pieces of one answer. Pure but for the token texts."""

import hashlib
from collections.abc import Callable
from typing import Any

from woodfrog.engine.calls import Arguments, Begun, Told
from woodfrog.engine.fields import Body
from woodfrog.engine.render import Envelope, chat_logprob
from woodfrog.engine.request import GenerationRequest, Piece
from woodfrog.engine.tagged_calls import reader_of
from woodfrog.errors import WoodfrogError

Event = dict[str, Any]
# Of the request, as the response repeats them.
_REPEATED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
}
_TOLD_WHERE_SAID = (
    "prompt_cache_key",
    "safety_identifier",
    "user",
)  # OpenAI's schema has no null there


class ResponseRenderer:
    def __init__(
        self,
        request: GenerationRequest,
        envelope: Envelope,
        bytes_of: Callable[[int], bytes],
        body: Body,
    ) -> None:
        """`body` is the response's own."""
        self._request = request
        self._envelope = envelope
        self._bytes_of = bytes_of
        self._reader = reader_of(request.tools) if request.tools else None
        self._said = {
            name: default if body.get(name) is None else body[name]
            for name, default in _REPEATED.items()
        }
        self._said |= {name: body[name] for name in _TOLD_WHERE_SAID if body.get(name) is not None}
        # OpenAI's schema has both in each, whoever left them out.
        self._said["tools"] = [
            {"parameters": None, "strict": None, **tool} for tool in self._said["tools"]
        ]
        text = body.get("text") or {}
        self._said["text"] = {
            "format": text.get("format") or {"type": "text"},
            "verbosity": "medium",
        }
        self._output: list[dict[str, Any]] = []
        self._logprobs: list[dict[str, Any]] = []  # that no event has told yet
        self._events: list[Event] = []  # that have not left yet
        self._count = 0  # of events
        self._completion_tokens = 0
        self._begun = False

    def whole(self, answers: list[Piece]) -> dict[str, Any]:
        """Of one answer."""
        (answer,) = answers
        last = self.events(0, answer)[-1]
        return dict(last["response"])

    def events(self, index: int, piece: Piece) -> list[Event]:
        """What a piece of the only answer adds; the last one ends the response."""
        if not self._begun:
            self._begun = True
            for kind in ("created", "in_progress"):
                self._tell(f"response.{kind}", response=self._response("in_progress"))
        self._completion_tokens += piece.token_count
        self._logprobs += [chat_logprob(entry, self._bytes_of) for entry in piece.logprobs]
        for told in self._told(piece):
            match told:
                case Begun(name):
                    self._end_item("completed")
                    self._begin_call(name)
                case Arguments(more):
                    self._output[-1]["arguments"] += more
                    self._tell_item("response.function_call_arguments.delta", delta=more)
                case _:
                    self._add_text(told)
        if piece.finish_reason:
            self._finish(piece.finish_reason)
        events, self._events = self._events, []
        return events

    def last(self) -> list[Event | str]:
        return []

    def failure(self, error: WoodfrogError) -> list[Event]:
        """How a response that has begun tells that it failed."""
        told = {"code": "server_error", "message": error.message}
        self._tell("response.failed", response=self._response("failed", error=told))
        events, self._events = self._events, []
        return events

    def _told(self, piece: Piece) -> list[Told]:
        if self._reader is None:
            return [piece.text] if piece.text else []
        return self._reader.feed(piece.text) + (self._reader.flush() if piece.finish_reason else [])

    def _finish(self, reason: str) -> None:
        if not self._output:
            self._add_text("")
        status = "incomplete" if reason == "length" else "completed"
        self._end_item(status)
        details = {"reason": "max_output_tokens"} if status == "incomplete" else None
        response = self._response(status, incomplete_details=details, usage=self._usage())
        self._tell(f"response.{status}", response=response)

    def _add_text(self, text: str) -> None:
        if not self._output or self._output[-1]["type"] != "message":
            self._end_item("completed")
            item = {"type": "message", "role": "assistant", "content": []}
            self._begin_item("msg", item)
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            self._output[-1]["content"].append(part)
            self._tell_item("response.content_part.added", content_index=0, part=_copy(part))
        part = self._output[-1]["content"][0]
        logprobs, self._logprobs = self._logprobs, []
        part["text"] += text
        part["logprobs"] += logprobs
        if text:
            self._tell_item(
                "response.output_text.delta", content_index=0, delta=text, logprobs=logprobs
            )

    def _begin_call(self, name: str) -> None:
        use = self._request.tools
        assert use is not None  # who reads calls has tools
        call_id = self._envelope.call_id(0, len(self._output), use.format)
        item = {"type": "function_call", "call_id": call_id, "name": name, "arguments": ""}
        self._begin_item("fc", item)

    def _begin_item(self, kind: str, item: dict[str, Any]) -> None:
        digest = hashlib.sha256(f"{self._envelope.id} {len(self._output)}".encode()).hexdigest()
        self._output.append({"id": f"{kind}_{digest[:32]}", "status": "in_progress", **item})
        index = len(self._output) - 1
        self._tell("response.output_item.added", output_index=index, item=_copy(self._output[-1]))

    def _end_item(self, status: str) -> None:
        """Of the newest item, if there is one."""
        if not self._output:
            return
        item = self._output[-1]
        item["status"] = status
        if item["type"] == "message":
            part = item["content"][0]
            part["logprobs"] += self._logprobs
            self._logprobs = []
            done = {"text": part["text"], "logprobs": part["logprobs"]}
            self._tell_item("response.output_text.done", content_index=0, **done)
            self._tell_item("response.content_part.done", content_index=0, part=_copy(part))
        else:
            done = {"name": item["name"], "arguments": item["arguments"]}
            self._tell_item("response.function_call_arguments.done", **done)
        index = len(self._output) - 1
        self._tell("response.output_item.done", output_index=index, item=_copy(item))

    def _tell_item(self, kind: str, **fields: Any) -> None:
        index = len(self._output) - 1
        self._tell(kind, item_id=self._output[-1]["id"], output_index=index, **fields)

    def _tell(self, kind: str, **fields: Any) -> None:
        self._events.append({"type": kind, "sequence_number": self._count, **fields})
        self._count += 1

    def _response(self, status: str, **fields: Any) -> dict[str, Any]:
        return {
            "id": self._envelope.id,
            "object": "response",
            "created_at": self._envelope.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": self._envelope.model,
            "output": [_copy(item) for item in self._output],
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "truncation": "disabled",
            **self._said,
            **fields,  # with usage at the end: who counts tokens looks there
        }

    def tokens(self) -> tuple[int, int]:
        return sum(len(prompt) for prompt in self._request.prompts), self._completion_tokens

    def _usage(self) -> dict[str, Any]:
        prompt_tokens, _ = self.tokens()
        return {
            "input_tokens": prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": self._completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt_tokens + self._completion_tokens,
        }


def _copy(item: dict[str, Any]) -> dict[str, Any]:
    """As it is now: it goes on to grow."""
    return {
        key: [_copy(entry) for entry in value] if key == "content" else value
        for key, value in item.items()
    }
