"""What a request may ask of llama.cpp without holding up its other clients. Pure.

All sequences share one thread that also looks which words a grammar allows, and nothing bounds how long that takes: some
grammars of a hundred characters end never. So none is taken from clients, nor its own form of schemas, which another library
reads; grammars that llama.cpp makes of `response_format` and of tools are bounded by their schemas.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from woodfrog.errors import InvalidArgument

_GRAMMARS = ("grammar", "grammar_lazy", "grammar_triggers", "json_schema")
#: Where schemas are, of all routes.
_SCHEMAS = ("response_format", "text", "output_format", "output_config", "tools")
_PARTS_MAX = 1_000  # values of any kind
_LISTS = ("enum", "anyOf", "oneOf")
_OPTIONS_MAX = 100  # 300 words to choose from hold up others for 1.6 s, 6,000 for more than 15
_SCALARS = ("string", "number", "integer", "boolean", "null")
_PATTERN_MAX = 200  # characters
_RANKS = ("n_probs", "logprobs", "top_logprobs")
_RANKS_MAX = 20  # as OpenAI's; of all words a long answer's would take gigabytes


def check(body: Mapping[str, Any]) -> None:
    """Raises InvalidArgument with the field's name."""
    for name in _GRAMMARS:
        if body.get(name):
            raise InvalidArgument(
                "UNSUPPORTED_PARAMETER",
                f"'{name}' is not supported: it could hold up other clients; use response_format with a JSON schema",
                param=name,
            )
    for name in _RANKS:
        value = body.get(name)
        if isinstance(value, int | float) and value > _RANKS_MAX:
            raise InvalidArgument("INVALID_VALUE", f"'{name}' is at most {_RANKS_MAX}", param=name)
    for name in _SCHEMAS:
        value = body.get(name)
        reason = None
        if sum(1 for _ in itertools.islice(_parts(value), _PARTS_MAX + 1)) > _PARTS_MAX:
            reason = f"it has more than {_PARTS_MAX} parts"
        for each in value if isinstance(value, list) else [value]:
            reason = reason or _excess(each)
        if reason:
            raise InvalidArgument(
                "INVALID_JSON_SCHEMA", f"'{name}' cannot be followed: {reason}", param=name
            )


def _excess(value: Any) -> str | None:
    unions, references = 0, 0
    for part in _parts(value):
        if not isinstance(part, dict):
            continue
        if isinstance(pattern := part.get("pattern"), str) and not _plain(pattern):
            return (
                f"a pattern is longer than {_PATTERN_MAX} characters, or has groups and optional parts"
                " together"
            )
        for name in _LISTS:
            options = part.get(name)
            if isinstance(options, list):
                if len(options) > _OPTIONS_MAX:
                    return f"{name} has more than {_OPTIONS_MAX} options"
                unions += name != "enum" and sum(map(_compound, options)) > 1
        references += isinstance(part.get("$ref"), str)
    if references and unions:
        return "$ref cannot go with an anyOf or oneOf in which several options are objects, lists or references"
    return None


def _compound(option: Any) -> bool:
    """Whether the options of a union cannot be told apart by how it begins. With references each level doubles them."""
    return not isinstance(option, dict) or option.get("type") not in _SCALARS


def _plain(pattern: str) -> bool:
    """Without parts that can be empty in two ways: each doubles what must be tried."""
    if len(pattern) > _PATTERN_MAX:
        return False
    shape = pattern.replace("(?:", "(")
    return "(" not in shape or not re.search(r"[?*{]|\|\)|\(\||\|\||\(\)", shape)


def _parts(value: Any) -> Iterator[Any]:
    left = [value]
    while left:
        part = left.pop()
        yield part
        if isinstance(part, dict):
            left += part.values()
        elif isinstance(part, list):
            left += part
