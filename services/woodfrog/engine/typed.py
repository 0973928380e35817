"""Values that a model writes without quotes, by the JSON schema of their function. Pure."""

import json
import math
from typing import Any

_LOOKED_AT_MAX = 64  # parts of a schema: references may lead in circles
_KIND_OF = {
    str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object", type(None): "null",
}  # fmt: skip
_WORDS = {"true": True, "false": False, "none": None}  # as Python says them, too


def kinds(parameters: Any, name: str) -> frozenset[str]:
    """JSON's types that a parameter may have; none where the schema does not say."""
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    found: set[str] = set()
    left = [properties.get(name) if isinstance(properties, dict) else None]
    for _ in range(_LOOKED_AT_MAX):
        if not left:
            return frozenset(found)
        schema = left.pop()
        if not isinstance(schema, dict):
            continue
        named = schema.get("type")
        if named is not None:
            found |= {
                kind
                for kind in (named if isinstance(named, list) else [named])
                if kind in _KIND_OF.values()
            }
        elif isinstance(path := schema.get("$ref"), str):
            left.append(_at(parameters, path))
        elif "const" in schema:
            found.add(_KIND_OF[type(schema["const"])])
        elif isinstance(values := schema.get("enum"), list):
            found |= {_KIND_OF[type(value)] for value in values}
        else:
            for several in ("anyOf", "oneOf", "allOf"):
                options = schema.get(several)
                left += options if isinstance(options, list) else []
    return frozenset()


def json_of(text: str, allowed: frozenset[str]) -> str:
    """JSON of the value that a text says where it may be of these types; of the text itself if none fits."""
    try:
        return json.dumps(_value(text, allowed), ensure_ascii=False)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)


def _value(text: str, allowed: frozenset[str]) -> Any:
    if allowed == {"string"}:
        return text
    word = text.strip()
    known = word.lower() in _WORDS and (bool(allowed) and "string" not in allowed)
    value: Any = _WORDS[word.lower()] if known else json.loads(word)
    kind = _KIND_OF[type(value)]
    if kind == "number" and not math.isfinite(value):
        return text
    if not allowed or kind in allowed or (kind == "integer" and "number" in allowed):
        return value
    if kind == "number" and "integer" in allowed and value == int(value):
        return int(value)
    return text


def _at(root: Any, path: str) -> Any:
    """What a reference within the same schema leads to."""
    for step in path.removeprefix("#").split("/")[1:]:
        if not isinstance(root, dict):
            return None
        root = root.get(step.replace("~1", "/").replace("~0", "~"))
    return root
