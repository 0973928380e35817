"""The form that an answer shall have: OpenAI's `response_format`, and `text.format` of responses. Pure."""

import json
import re
from typing import Any

from woodfrog.engine.fields import bad
from woodfrog.engine.request import Schema

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SCHEMA_CHARACTERS_MAX = 120_000  # OpenAI's; reading a schema holds up other requests
_ANY_OBJECT = '{"type": "object"}'


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
    text = json.dumps(value)
    if len(text) > _SCHEMA_CHARACTERS_MAX:
        bad(param, f"is longer than {_SCHEMA_CHARACTERS_MAX} characters")
    return text
