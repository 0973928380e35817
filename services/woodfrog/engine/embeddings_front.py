"""POST /v1/embeddings as OpenAI defines it."""

import base64
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from woodfrog.clock import Clock
from woodfrog.errors import InvalidArgument
from woodfrog.replica.app import Answer, json_object

if TYPE_CHECKING:
    from woodfrog.engine.embeddings import EmbeddingsEngine

INPUTS_MAX = 2048  # OpenAI's
_BODY_BYTES_MAX = 4 << 20  # of `texts.TOKENS_MAX` tokens as JSON


@dataclass(frozen=True, slots=True)
class EmbeddingsRequest:
    inputs: list[str | list[int]]
    base64: bool
    dimensions: int
    """Numbers of each answer; fewer than the model's are the first ones, at length 1 again."""

    def render(self, vector: list[float]) -> str:
        """A unit vector as JSON."""
        if self.dimensions < len(vector):
            vector = vector[: self.dimensions]
            length = math.hypot(*vector)
            vector = [number / length for number in vector] if length else vector
        if self.base64:
            data = struct.pack(f"<{len(vector)}f", *vector)
            return f'"{base64.b64encode(data).decode()}"'
        return json.dumps(vector)


class EmbeddingsFront:
    def __init__(self, engine: "EmbeddingsEngine", clock: Clock) -> None:
        self.methods: Mapping[str, str] = {"/v1/embeddings": "POST"}
        self.body_bytes_max = _BODY_BYTES_MAX
        self._engine = engine

    async def handle(self, path: str, raw: bytes, answer: Answer) -> None:
        engine = self._engine
        request = parse(json_object(raw), engine.size)
        (ticket,) = engine.admission.take(1)
        try:
            async with ticket:
                texts = await engine.compute(lambda: self._texts(request))
                vectors = await engine.embed(texts, request.render)
            # Within its slot: an answer that a slow client does not take yet is memory too.
            token_count = sum(map(len, texts))
            await answer.json(200, _body(vectors, engine.settings.model_name, token_count))
        finally:
            ticket.give_back()

    def _texts(self, request: EmbeddingsRequest) -> list[list[int]]:
        return self._engine.limits.tokens(request.inputs, self._engine.tokenizer)


def parse(body: Mapping[str, Any], size: int) -> EmbeddingsRequest:
    """`size` is that of the model's own vectors. Raises InvalidArgument naming the field; ignores unknown ones."""
    form = body.get("encoding_format")
    if form not in (None, "float", "base64"):
        raise _bad("encoding_format", "is float or base64")
    dimensions = body.get("dimensions")
    if dimensions is None:
        dimensions = size
    if isinstance(dimensions, bool) or not isinstance(dimensions, int):
        raise _bad("dimensions", "is a whole number")
    if not 1 <= dimensions <= size:
        raise _bad("dimensions", f"is from 1 to {size} for this model")
    return EmbeddingsRequest(_inputs(body.get("input")), form == "base64", dimensions)


def _inputs(value: Any) -> list[str | list[int]]:
    if isinstance(value, str) or _tokens(value):
        value = [value]
    if not isinstance(value, list) or not value:
        raise _bad("input", "is a text, a list of tokens, or a list of at least one of these")
    if len(value) > INPUTS_MAX:
        raise _bad("input", f"has more than {INPUTS_MAX} entries")
    if "" in value or [] in value:
        raise _bad("input", "has an entry that is empty")
    if not all(isinstance(entry, str) for entry in value) and not all(map(_tokens, value)):
        raise _bad("input", "mixes texts and tokens, or holds something else")
    return value


def _tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _body(vectors: list[str], model: str, token_count: int) -> bytes:
    """Vectors are JSON already: all at once they would hold the event loop up for seconds."""
    data = ", ".join(
        f'{{"object": "embedding", "index": {index}, "embedding": {vector}}}'
        for index, vector in enumerate(vectors)
    )
    usage = json.dumps({"prompt_tokens": token_count, "total_tokens": token_count})
    name = json.dumps(model)
    return f'{{"object": "list", "data": [{data}], "model": {name}, "usage": {usage}}}'.encode()


def _bad(param: str, what: str) -> InvalidArgument:
    return InvalidArgument("INVALID_VALUE", f"'{param}' {what}", param=param)
