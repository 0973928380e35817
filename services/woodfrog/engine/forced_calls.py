"""What an answer is that must be a call of one of some functions. Pure."""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from woodfrog.engine.fields import bad
from woodfrog.engine.formats import SCHEMA_CHARACTERS_MAX, Schema
from woodfrog.engine.tool_format import ARGS, HERMES_CLOSE, ToolFormat
from woodfrog.engine.typed import kinds

_TAG_NAME = re.compile(r"[^\s<>]{1,80}")
# Behind a parameter's tag: a text that ends where the tag of its end does.
_TEXT = 'text[suffix="\\n</parameter>\\n"]: /(?s:.*)/'


def forced_call(known: ToolFormat, tools: list[dict[str, Any]], chosen: list[str]) -> Schema:
    """Of one of the `chosen`, behind the opening of a call. Raises InvalidArgument."""
    places = [i for i, tool in enumerate(tools) if tool["function"]["name"] in chosen]
    functions = [tools[place]["function"] for place in places]
    one = len(places) == 1
    param = f"tools[{places[0]}].function.parameters" if one else "tools"
    if known in (ToolFormat.NAMED, ToolFormat.TAGGED):
        call = _named if known is ToolFormat.NAMED else _tagged
        calls = [line for n, function in enumerate(functions) for line in call(n, function, param)]
        start = "start: " + " | ".join(f"c{n}" for n in range(len(functions)))
        schema = Schema("\n".join([start, *calls, _TEXT]) + "\n", param, lark=True)
    else:
        schema = Schema(json.dumps(_json(known, functions)), param)
    if len(schema.text) > SCHEMA_CHARACTERS_MAX:
        bad(param, f"of which one must be called have more than {SCHEMA_CHARACTERS_MAX} characters")
    return schema


def _json(known: ToolFormat, functions: list[dict[str, Any]]) -> Any:
    """Name and arguments in one object."""
    key = "parameters" if known is ToolFormat.LLAMA else "arguments"
    items = "/items" if known is ToolFormat.MISTRAL else ""
    one = len(functions) == 1
    calls = []
    for number, function in enumerate(functions):
        root = f"#{items}" + ("" if one else f"/anyOf/{number}") + f"/properties/{key}"
        given = {"type": "object", **moved(function["parameters"], root)}
        properties = {"name": {"const": function["name"]}, key: given}
        calls.append(
            {
                "type": "object",
                "properties": properties,
                "required": [*properties],
                "additionalProperties": False,
            }
        )
    call: dict[str, Any] = calls[0] if one else {"anyOf": calls}
    return {"type": "array", "items": call, "minItems": 1, "maxItems": 1} if items else call


def _named(number: int, function: dict[str, Any], param: str) -> Iterator[str]:
    """A name, and an object behind it."""
    given = {"type": "object", **function["parameters"]}
    yield f"c{number}: {json.dumps(function['name'] + ARGS)} {_value(given)}"


def _tagged(number: int, function: dict[str, Any], param: str) -> Iterator[str]:
    """Tags. Texts are free unless they are enumerated; of what else a parameter may be, its schema says."""
    parameters = function["parameters"]
    properties = parameters.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    required = parameters.get("required")
    required = required if isinstance(required, list) else []
    order = []
    for place, name in enumerate(properties):
        if not _TAG_NAME.fullmatch(name):
            bad(param, f"have the name {name[:80]!r}, which this model's tags cannot hold")
        rule = f"c{number}p{place}"
        order.append(rule if name in required else rule + "?")
        tag = json.dumps(f"<parameter={name}>\n")
        allowed = kinds(parameters, name)
        if allowed and "string" not in allowed:
            root = "#/$defs/all"
            path = quote(name.replace("~", "~0").replace("/", "~1"))
            own = {"$ref": f"{root}/properties/{path}", "$defs": {"all": moved(parameters, root)}}
            yield f'{rule}: {tag} {_value(own)} "\\n</parameter>\\n"'
        elif allowed and (values := _literals(properties[name])):
            yield f'{rule}: {tag} ({values}) "\\n</parameter>\\n"'
        else:
            yield f"{rule}: {tag} text"
    begin = json.dumps(f"<function={function['name']}>\n")
    end = json.dumps(f"</function>\n{HERMES_CLOSE}")
    yield " ".join([f"c{number}:", begin, *order, end])


def _literals(schema: Any) -> str:
    """Texts of which a parameter must be one; empty where it is not told so."""
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if not isinstance(values, list) or not all(isinstance(v, str) and "<" not in v for v in values):
        return ""
    return " | ".join(json.dumps(value) for value in values)


def _value(schema: dict[str, Any]) -> str:
    """JSON in the same style as `constraint` asks for."""
    style = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return "%json " + json.dumps({**schema, "x-guidance": style})


def moved(schema: Any, root: str) -> Any:
    """`schema` where it lies at `root` of another one: references count from there."""
    if isinstance(schema, list):
        return [moved(entry, root) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: root + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else moved(value, root)
        for key, value in schema.items()
    }
