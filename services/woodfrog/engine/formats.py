"""The form that an answer shall have: OpenAI's `response_format`, and `text.format` of responses. Pure."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from woodfrog.engine.fields import bad

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
SCHEMA_CHARACTERS_MAX = 120_000  # OpenAI's; it also bounds how deep references lead
_SCHEMA_DEPTH_MAX = 100  # llguidance reads 127, and a call that must be made adds some
# What llguidance bounds by none of its limits: the first takes 160 s for ten million, the second the square of its count.
_MULTIPLE_MAX = 100_000  # 0.2 s
_PATTERN_PROPERTIES_MAX = 64
_ANY_OBJECT = '{"type": "object"}'


@dataclass(frozen=True, slots=True)
class Schema:
    """What every answer must be."""

    text: str
    """A JSON schema, or with `lark` a grammar in llguidance's form of Lark with such schemas in it."""
    param: str
    """The field of the request that it came in."""
    lark: bool = False


def answer_schema(value: Any, param: str) -> Schema | None:
    """Of `response_format`; None where the answer is free. Raises InvalidArgument."""
    kind = value.get("type") if isinstance(value, dict) else None
    if value is None or kind == "text":
        return None
    if kind == "json_object":
        return Schema(_ANY_OBJECT, param)
    if kind != "json_schema":
        bad(f"{param}.type", 'is "text", "json_object" or "json_schema"')
    return named_schema(value.get("json_schema"), f"{param}.json_schema")


def named_schema(value: Any, param: str) -> Schema:
    """Of an object with `name`, `schema` and perhaps `strict` and `description`."""
    if not isinstance(value, dict):
        bad(param, "is an object with a name and a schema")
    if not isinstance(name := value.get("name"), str) or not _NAME.fullmatch(name):
        bad(f"{param}.name", "is 1 to 64 letters, digits, underscores and dashes")
    if value.get("strict") not in (None, True, False):
        bad(f"{param}.strict", "is true or false")
    return Schema(schema_text(value.get("schema"), f"{param}.schema"), f"{param}.schema")


def schema_text(value: Any, param: str) -> str:
    if value is None:
        return _ANY_OBJECT
    if not isinstance(value, dict):
        bad(param, "is a JSON schema, an object")
    if _deep(value):
        bad(param, f"is nested more than {_SCHEMA_DEPTH_MAX} levels deep")
    text = json.dumps(value)
    if len(text) > SCHEMA_CHARACTERS_MAX:
        bad(param, f"is longer than {SCHEMA_CHARACTERS_MAX} characters")
    return text


def _deep(value: Any) -> bool:
    level = [value]
    for _ in range(_SCHEMA_DEPTH_MAX):
        level = [
            entry
            for part in level
            if isinstance(part, dict | list)
            for entry in (part.values() if isinstance(part, dict) else part)
        ]
    return bool(level)


def excess(schema: Schema) -> str | None:
    """Why it would take too long to follow, if so."""
    multiples: set[int] = set()
    patterns = 0
    texts = [schema.text]
    if schema.lark:
        parts = [line.partition(" %json ") for line in schema.text.splitlines()]
        texts = [json_text for _, found, json_text in parts if found]
    for entry in _objects([json.JSONDecoder().raw_decode(text)[0] for text in texts]):
        if isinstance(named := entry.get("patternProperties"), dict):
            patterns += len(named)
        step = entry.get("multipleOf")
        if step and isinstance(step, int | float) and not isinstance(step, bool):
            multiples.add(_digits(step))
    if patterns > _PATTERN_PROPERTIES_MAX:
        return f"patternProperties has more than {_PATTERN_PROPERTIES_MAX} patterns"
    # An answer is followed by its remainders, of all of them together where they meet in one place.
    if math.lcm(*multiples) > _MULTIPLE_MAX:
        return f"the least common multiple of all multipleOf is above {_MULTIPLE_MAX}"
    return None


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    left = [value]
    while left:
        entry = left.pop()
        if isinstance(entry, dict):
            yield entry
            left += entry.values()
        elif isinstance(entry, list):
            left += entry


def _digits(number: int | float) -> int:
    """A number's digits without the zeros at its end: moving the point costs nothing. 1 for what is no number."""
    digits = "".join(
        map(str, Decimal(number if isinstance(number, int) else repr(number)).as_tuple().digits)
    )
    return int(digits.rstrip("0") or "1")
