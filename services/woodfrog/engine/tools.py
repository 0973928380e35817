"""Functions that a model may call: from a request's `tools` and `tool_choice` to what its template and its answer need.

Pure.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from woodfrog.engine.fields import Body, bad, boolean, unsupported
from woodfrog.engine.forced_calls import forced_call
from woodfrog.engine.formats import Schema, schema_text
from woodfrog.engine.tool_format import ARGS, CALL_ID, HERMES_CLOSE, OPEN, OPENING, ToolFormat

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TOOLS_MAX = 128  # OpenAI's


@dataclass(frozen=True, slots=True)
class ToolUse:
    format: ToolFormat
    tools: list[dict[str, Any]]
    """As templates take them, which is OpenAI's form."""
    forced: Schema | None
    """What an answer that must be one call is, behind `opening`."""
    parallel: bool
    """An answer may have several calls."""

    @property
    def names(self) -> set[str]:
        return {tool["function"]["name"] for tool in self.tools}

    @property
    def opening(self) -> str:
        """Ends the prompt of an answer that must be a call."""
        return OPENING[self.format] if self.forced else ""

    @property
    def marks(self) -> tuple[str, ...]:
        """What must be seen in the answer, also where the tokenizer calls it special."""
        return OPEN[self.format], HERMES_CLOSE, ARGS, CALL_ID


def tool_use(body: Body, known: ToolFormat | None, schemas: bool) -> ToolUse | None:
    """None where nothing may be called. `schemas`: a call can be forced. Raises InvalidArgument."""
    tools = _tools(body.get("tools"))
    parallel = body.get("parallel_tool_calls") is None or boolean(body, "parallel_tool_calls")
    for name in ("functions", "function_call"):
        if body.get(name) not in (None, "none", "auto", []):
            unsupported(name, "is the old form; use tools and tool_choice")
    choice = body.get("tool_choice")
    if choice is None or choice == "auto":
        chosen = None
    elif choice == "none":
        return None
    else:
        chosen = _chosen(choice, [tool["function"]["name"] for tool in tools])
    if not tools:
        return None
    if known is None:
        unsupported(
            "tools", "are not supported: this model's chat template has no calls that we can read"
        )
    if chosen is not None and not schemas:
        unsupported("tool_choice", 'is not supported by this model beyond "none" and "auto"')
    forced = None if chosen is None else forced_call(known, tools, chosen)
    return ToolUse(known, tools, forced, parallel)


def message_calls(value: Any, place: str) -> list[dict[str, Any]]:
    """An assistant's `tool_calls` in a request, with arguments as objects, which templates expect."""
    if not isinstance(value, list):
        bad(place, "is a list of calls")
    calls = []
    for index, call in enumerate(value):
        where = f"{place}[{index}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            bad(where, "is a call of a function, with its name")
        if not isinstance(call.get("id"), str):
            bad(f"{where}.id", "is a text")
        try:
            arguments = json.loads(function.get("arguments") or "{}")
        except (ValueError, TypeError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            bad(f"{where}.function.arguments", "is a JSON object, as text")
        named = {"name": function["name"], "arguments": arguments}
        calls.append({"id": call["id"], "type": "function", "function": named})
    return calls


def _tools(value: Any) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > _TOOLS_MAX:
        bad("tools", f"is a list of at most {_TOOLS_MAX}")
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(value)]
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) < len(names):
        bad("tools", "has a name twice")
    return tools


def _tool(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        bad(place, "is an object")
    if value.get("type") != "function":
        unsupported(f"{place}.type", 'is not supported beyond "function"')
    function = value.get("function")
    if not isinstance(function, dict):
        bad(f"{place}.function", "is an object")
    name, description = function.get("name"), function.get("description")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        bad(f"{place}.function.name", "is 1 to 64 letters, digits, underscores and dashes")
    if description is not None and not isinstance(description, str):
        bad(f"{place}.function.description", "is a text")
    if function.get("strict") not in (None, True, False):
        bad(f"{place}.function.strict", "is true or false")
    text = schema_text(function.get("parameters"), f"{place}.function.parameters")
    shown = {"name": name, "description": description or "", "parameters": json.loads(text)}
    return {"type": "function", "function": shown}


def _chosen(choice: Any, names: list[str]) -> list[str]:
    """Names of which one must be called."""
    if not names:
        bad("tool_choice", "needs tools")
    if choice == "required":
        return names
    if not isinstance(choice, dict):
        bad("tool_choice", 'is "none", "auto", "required" or an object that names a function')
    if choice.get("type") != "function":
        unsupported("tool_choice.type", 'is not supported beyond "function"')
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if name not in names:
        bad("tool_choice.function.name", "is the name of one of the tools")
    return [name]
