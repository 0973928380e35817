"""How a model writes calls of functions, which follows from its chat template. Pure."""

import re
from enum import Enum


class ToolFormat(Enum):
    HERMES = "hermes"
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>, as Qwen too."""
    LLAMA = "llama"
    """An answer that is {"name": ..., "parameters": {...}}, perhaps after <|python_tag|>; several with ; between."""
    MISTRAL = "mistral"
    """[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]"""
    NAMED = "named"
    """[TOOL_CALLS]name[ARGS]{...}, as Mistral since 2025; several one after the other."""
    TAGGED = "tagged"
    """<tool_call><function=name><parameter=x>...</parameter></function></tool_call>, as Qwen's coders."""


OPEN = {
    ToolFormat.HERMES: "<tool_call>",
    ToolFormat.LLAMA: "<|python_tag|>",
    ToolFormat.MISTRAL: "[TOOL_CALLS]",
    ToolFormat.NAMED: "[TOOL_CALLS]",
    ToolFormat.TAGGED: "<tool_call>",
}
HERMES_CLOSE = "</tool_call>"
TAGGED_HEAD = "<function="
ARGS, CALL_ID = "[ARGS]", "[CALL_ID]"
#: What a prompt ends with whose answer must be a call.
OPENING = {
    ToolFormat.HERMES: "<tool_call>\n",
    ToolFormat.LLAMA: "",
    ToolFormat.MISTRAL: "[TOOL_CALLS]",
    ToolFormat.NAMED: "[TOOL_CALLS]",
    ToolFormat.TAGGED: "<tool_call>\n",
}


def format_of(template: str | None) -> ToolFormat | None:
    """None for a template without tools, and for one whose calls are written in no way that we read."""
    if template is None or not re.search(r"\btools\b", template):
        return None
    if "[TOOL_CALLS]" in template:
        return ToolFormat.NAMED if ARGS in template else ToolFormat.MISTRAL
    if "<tool_call>" in template:
        if TAGGED_HEAD not in template:
            return ToolFormat.HERMES
        return ToolFormat.TAGGED if "<parameter=" in template else None
    return ToolFormat.LLAMA if '"parameters"' in template else None
