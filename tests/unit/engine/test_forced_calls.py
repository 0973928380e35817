"""Calls that must be made, where models write them in a form of their own: what the grammar lets through is what is read."""

import json
from typing import Any

import pytest
import torch
from tests.unit.engine.test_calls import read
from tests.unit.engine.test_constraint import grammars, tokenizer  # noqa: F401

from woodfrog.engine.constraint import Grammars
from woodfrog.engine.tokenizer import Tokenizer
from woodfrog.engine.tool_format import ToolFormat
from woodfrog.engine.tools import ToolUse, tool_use
from woodfrog.errors import InvalidArgument

NAMED, TAGGED = ToolFormat.NAMED, ToolFormat.TAGGED
END = 256
POND: dict[str, Any] = {
    "type": "object",
    "description": 'A "}{" %json {"a": // # | /x/ \u2028 \n text',
    "properties": {
        "deep": {"$ref": "#/$defs/deep"},
        "note": {"type": "string"},
        "kind": {"enum": ["tree", "common"]},
        "a/b~": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["deep"],
    "additionalProperties": False,
    "$defs": {"deep": {"type": "boolean"}},
}
ASKED = {
    "tools": [
        {"type": "function", "function": {"name": "pond", "parameters": POND}},
        {"type": "function", "function": {"name": "no-thing", "parameters": {"properties": {}}}},
    ],
    "tool_choice": "required",
}


def used(known: ToolFormat, **body: Any) -> ToolUse:
    use = tool_use({**ASKED, **body}, known, True)
    assert use is not None
    return use


@pytest.mark.parametrize(
    ("known", "text", "call"),
    [
        (NAMED, 'pond[ARGS]{"deep": true}', ("pond", {"deep": True})),
        (NAMED, 'pond[ARGS]{"deep": true, "note": "}"}', ("pond", {"deep": True, "note": "}"})),
        (NAMED, "no-thing[ARGS]{}", ("no-thing", {})),
        (
            TAGGED,
            "<function=pond>\n<parameter=deep>\ntrue\n</parameter>\n</function>\n</tool_call>",
            ("pond", {"deep": True}),
        ),
        (
            TAGGED,
            "<function=pond>\n<parameter=deep>\nfalse\n</parameter>\n<parameter=note>\na\n<b>\n</parameter>\n"
            "<parameter=kind>\ntree\n</parameter>\n"
            "<parameter=a/b~>\n[1, 2]\n</parameter>\n</function>\n</tool_call>",
            ("pond", {"deep": False, "note": "a\n<b>", "kind": "tree", "a/b~": [1, 2]}),
        ),
        (TAGGED, "<function=no-thing>\n</function>\n</tool_call>", ("no-thing", {})),
    ],
)
def test_what_may_come_is_read_as_the_call(
    tokenizer: Tokenizer,  # noqa: F811
    grammars: Grammars,  # noqa: F811
    known: ToolFormat,
    text: str,
    call: tuple[str, Any],
) -> None:
    use = used(known)
    assert use.forced is not None
    constraint = grammars.constraint(use.forced)
    for token in tokenizer.encode(text, special=False):
        constraint.advance(token)
    assert not constraint.broken
    allowed = constraint.allowed(torch.zeros(tokenizer.vocabulary_size + 6))
    assert torch.isfinite(allowed).nonzero().flatten().tolist() == [END]
    said, [(name, arguments)] = read(use, list(text))
    assert (said, (name, json.loads(arguments))) == ("", call)


@pytest.mark.parametrize(
    ("known", "text"),
    [
        (NAMED, "toad"),
        (NAMED, 'pond[ARGS]{"deep": 3'),
        (NAMED, "pond[ARGS]{}"),
        (TAGGED, "<function=toad>"),
        (TAGGED, "<function=pond>\n</function>"),
        (TAGGED, "<function=pond>\n<parameter=deep>\nyes"),
        (TAGGED, "<function=pond>\n<parameter=deep>\ntrue\n</parameter>\n<parameter=kind>\ntoad"),
    ],
)
def test_what_may_not_come_does_not(
    tokenizer: Tokenizer,  # noqa: F811
    grammars: Grammars,  # noqa: F811
    known: ToolFormat,
    text: str,
) -> None:
    forced = used(known).forced
    assert forced is not None
    constraint = grammars.constraint(forced)
    for token in tokenizer.encode(text, special=False):
        constraint.advance(token)
    assert constraint.broken


def test_a_name_that_no_tag_can_hold_is_refused() -> None:
    parameters = {"type": "object", "properties": {"a>\n": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "pond", "parameters": parameters}}]
    with pytest.raises(InvalidArgument) as refusal:
        used(TAGGED, tools=tools)
    assert refusal.value.metadata["param"] == "tools[0].function.parameters"


@pytest.mark.parametrize("known", list(ToolFormat))
def test_all_that_must_be_called_together_is_bounded(known: ToolFormat) -> None:
    """Each of them is within the bound."""
    parameters = {"type": "object", "properties": {f"p{n}": {} for n in range(8_000)}}
    tools = [
        {"type": "function", "function": {"name": name, "parameters": parameters}} for name in "ab"
    ]
    with pytest.raises(InvalidArgument) as refusal:
        used(known, tools=tools)
    assert refusal.value.metadata["param"] == "tools"


@pytest.mark.parametrize("known", [NAMED, TAGGED])
def test_what_would_take_minutes_is_refused_here_too(
    grammars: Grammars,  # noqa: F811
    known: ToolFormat,
) -> None:
    parameters = {"properties": {"a": {"type": "integer", "multipleOf": 9_999_991}}}
    tools = [{"type": "function", "function": {"name": "pond", "parameters": parameters}}]
    forced = used(known, tools=tools).forced
    assert forced is not None
    with pytest.raises(InvalidArgument) as refusal:
        grammars.constraint(forced)
    assert "multipleOf" in refusal.value.message
