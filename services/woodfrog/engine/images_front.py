"""POST /v1/images/generations as OpenAI defines it, with what diffusion models take besides."""

import asyncio
import base64
import io
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from woodfrog.clock import Clock
from woodfrog.engine.drawing import STEPS_DEFAULT, Drawing
from woodfrog.engine.module_engine import Stop
from woodfrog.errors import InvalidArgument
from woodfrog.replica.app import Answer, json_object

if TYPE_CHECKING:
    from woodfrog.engine.images import ImagesEngine

STEPS_MAX = 200
COUNT_MAX = 10
SIDE_MIN, SIDE_MAX, SIDE_UNIT = 64, 2048, 8
PROMPT_CHARACTERS_MAX = 32_000
_BODY_BYTES_MAX = 1 << 18
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")


class ImagesFront:
    def __init__(self, engine: "ImagesEngine", clock: Clock) -> None:
        self.methods: Mapping[str, str] = {"/v1/images/generations": "POST"}
        self.body_bytes_max = _BODY_BYTES_MAX
        self._engine = engine
        self._clock = clock

    async def handle(self, path: str, raw: bytes, answer: Answer) -> None:
        drawing, count = parse(json_object(raw), self._engine.size)
        tickets = self._engine.admission.take(count)
        try:
            images = []
            for index, ticket in enumerate(tickets):
                seed = None if drawing.seed is None else drawing.seed + index
                async with ticket:
                    images.append(await self._draw(replace(drawing, seed=seed)))
            # Within its slots: pictures that a slow client does not take yet are memory too.
            body = {"created": int(self._clock.wall()), "data": [{"b64_json": i} for i in images]}
            await answer.json(200, body)
        finally:
            for ticket in tickets:
                ticket.give_back()

    async def _draw(self, drawing: Drawing) -> str:
        stop = Stop()

        def work() -> str:
            image = self._engine.draw(drawing, stop)
            if image is None:
                return ""
            data = io.BytesIO()
            image.save(
                data, "PNG", compress_level=1
            )  # twice as fast as the default, a tenth larger
            return base64.b64encode(data.getvalue()).decode()

        try:
            return await self._engine.compute(work)
        except asyncio.CancelledError:
            stop.asked = True  # the client is gone; the next request must not wait for its picture
            raise


def parse(body: dict[str, Any], size: tuple[int, int]) -> tuple[Drawing, int]:
    """What is wanted, and how many. `size` is the model's own. Raises InvalidArgument naming the field."""
    prompt = body.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise _bad("prompt", "must be a text that is not empty")
    _check_text("prompt", prompt)
    if body.get("response_format") not in (None, "b64_json"):
        raise _bad("response_format", "must be b64_json: images are kept nowhere")
    if body.get("output_format") not in (None, "png"):
        raise _bad("output_format", "must be png")
    if body.get("stream"):
        raise _bad("stream", "is not supported for images")
    negative = body.get("negative_prompt") or ""
    if not isinstance(negative, str):
        raise _bad("negative_prompt", "must be a text")
    _check_text("negative_prompt", negative)
    count = _whole(body, "n", 1, 1, COUNT_MAX)
    drawing = Drawing(
        prompt,
        _size(body.get("size"), size),
        _whole(body, "num_inference_steps", STEPS_DEFAULT, 1, STEPS_MAX),
        None if body.get("seed") is None else _whole(body, "seed", 0, 0, (1 << 62) - 1),
        _guidance(body.get("guidance_scale")),
        negative,
    )
    return drawing, count


def _check_text(name: str, text: str) -> None:
    if len(text) > PROMPT_CHARACTERS_MAX:
        raise _bad(name, f"is longer than {PROMPT_CHARACTERS_MAX} characters")
    try:
        text.encode()  # JSON can say what no text holds
    except UnicodeEncodeError:
        raise _bad(name, "is not valid Unicode") from None


def _size(value: Any, default: tuple[int, int]) -> tuple[int, int]:
    if value in (None, "auto"):
        return default
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    sides = tuple(map(int, found.groups())) if found else ()
    if len(sides) != 2 or any(
        not SIDE_MIN <= side <= SIDE_MAX or side % SIDE_UNIT for side in sides
    ):
        raise _bad(
            "size",
            f"must be auto or WIDTHxHEIGHT, each a multiple of {SIDE_UNIT} from {SIDE_MIN} to {SIDE_MAX}",
        )
    if sides[0] * sides[1] > default[0] * default[1]:
        raise _bad("size", f"has more pixels than the model's own {default[0]}x{default[1]}")
    return sides[0], sides[1]


def _whole(body: dict[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _bad(name, f"must be a whole number from {low} to {high}")
    return value


def _guidance(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise _bad("guidance_scale", "must be a number from 0 to 100")
    return float(value)


def _bad(name: str, why: str) -> InvalidArgument:
    return InvalidArgument("INVALID_VALUE", f"'{name}' {why}", param=name)
