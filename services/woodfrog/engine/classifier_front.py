"""POST /v1/classify in the form of vLLM's classification API; a picture comes as a data: URL."""

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from woodfrog.clock import Clock
from woodfrog.errors import InvalidArgument
from woodfrog.replica.app import Answer, json_object

if TYPE_CHECKING:
    from woodfrog.engine.classifier import ClassifierEngine

SCORES_MAX = 1 << 20  # of one answer, some 20 MB as JSON
_BODY_BYTES_MAX = 8 << 20


class ClassifierFront:
    def __init__(self, engine: "ClassifierEngine", clock: Clock) -> None:
        self.methods: Mapping[str, str] = {"/v1/classify": "POST"}
        self.body_bytes_max = _BODY_BYTES_MAX
        self._engine = engine
        self._clock = clock

    async def handle(self, path: str, raw: bytes, answer: Answer) -> None:
        engine = self._engine
        most = min(engine.inputs_max, max(1, SCORES_MAX // len(engine.labels)))
        inputs, params = parse(json_object(raw), most)
        (ticket,) = engine.admission.take(1)
        try:
            async with ticket:
                given, token_count = await engine.read(inputs, params)
                classes = await engine.classify(given, self._render)
            # Within its slot: an answer that a slow client does not take yet is memory too.
            await answer.json(200, self._body(classes, token_count))
        finally:
            ticket.give_back()

    def _render(self, scores: list[float]) -> str:
        best = max(range(len(scores)), key=scores.__getitem__)
        label = json.dumps(self._engine.labels[best])
        return f'"label": {label}, "probs": {json.dumps(scores)}, "num_classes": {len(scores)}'

    def _body(self, classes: list[str], token_count: int) -> bytes:
        """Classes are JSON already: all at once they would hold the event loop up."""
        head = {
            "id": "classify-" + os.urandom(12).hex(),
            "object": "list",
            "created": int(self._clock.wall()),
            "model": self._engine.settings.model_name,
            "usage": {
                "prompt_tokens": token_count, "total_tokens": token_count, "completion_tokens": 0,
            },
        }  # fmt: skip
        data = ", ".join(f'{{"index": {index}, {each}}}' for index, each in enumerate(classes))
        return f'{json.dumps(head)[:-1]}, "data": [{data}]}}'.encode()


def parse(body: Mapping[str, Any], inputs_max: int) -> tuple[list[str], list[str]]:
    """Inputs, and what an error calls each. Raises InvalidArgument naming the field; ignores unknown ones."""
    for name in ("activation", "softmax", "use_activation"):
        if body.get(name) not in (None, True):
            raise _bad(name, "is not supported but as true: what is answered are probabilities")
    if body.get("truncate_prompt_tokens") is not None:
        raise _bad("truncate_prompt_tokens", "is not supported: an input is never cut")
    if body.get("add_special_tokens") not in (None, True):
        raise _bad("add_special_tokens", "is not supported but as true")
    value = body.get("input")
    single = isinstance(value, str)
    inputs = [value] if single else value
    if not isinstance(inputs, list) or not inputs:
        raise _bad(
            "input", "is a text (a data: URL where pictures are classified), or a list of them"
        )
    if len(inputs) > inputs_max:
        raise _bad("input", f"has more than {inputs_max} entries")
    params = ["input"] if single else [f"input[{index}]" for index in range(len(inputs))]
    for given, param in zip(inputs, params, strict=True):
        if not isinstance(given, str) or not given:
            raise _bad(param, "is a text that is not empty")
    return inputs, params


def _bad(param: str, what: str) -> InvalidArgument:
    return InvalidArgument("INVALID_VALUE", f"'{param}' {what}", param=param)
