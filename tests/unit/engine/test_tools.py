"""`tools` and `tool_choice`: what is taken, what is refused, and what a forced answer must be."""

import json
from typing import Any

import pytest

from woodfrog.engine.tool_format import ToolFormat, format_of
from woodfrog.engine.tools import ToolUse, message_calls, tool_use
from woodfrog.errors import InvalidArgument


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


POND = tool("pond", type="object", properties={"deep": {"type": "boolean"}}, required=["deep"])
TREE = tool(
    "tree",
    type="object",
    properties={"left": {"$ref": "#/$defs/leaf"}},
    **{"$defs": {"leaf": {"type": "string"}}},
)
NAMED = {"type": "function", "function": {"name": "tree"}}


def used(known: ToolFormat = ToolFormat.HERMES, **body: Any) -> ToolUse | None:
    return tool_use({"tools": [POND, TREE], **body}, known, True)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, None),
        ("{{ messages }}", None),
        ("{% if tools %}<tool_call>{% endif %}", ToolFormat.HERMES),
        ("{% if tools %}<tool_call><function=name>{% endif %}", None),
        ("{% if tools %}<tool_call><function=a><parameter=b>{% endif %}", ToolFormat.TAGGED),
        ('{% if tools %}{"name": x, "parameters": y}{% endif %}', ToolFormat.LLAMA),
        ("{% if tools %}[TOOL_CALLS]{% endif %}", ToolFormat.MISTRAL),
        ("{% if tools %}[TOOL_CALLS]name[ARGS]{% endif %}", ToolFormat.NAMED),
        ("{% if tools %}in words{% endif %}", None),
    ],
)
def test_a_template_tells_how_calls_are_written(
    template: str | None, expected: ToolFormat | None
) -> None:
    assert format_of(template) is expected


def test_where_nothing_may_be_called_there_are_no_tools() -> None:
    assert used(tool_choice="none") is None
    assert used(tools=[]) is None
    assert used(tools=None, tool_choice="auto") is None


def test_auto_forces_nothing() -> None:
    for choice in (None, "auto"):
        auto = used(tool_choice=choice)
        assert auto is not None
        assert (auto.forced, auto.opening, auto.parallel) == (None, "", True)
        assert auto.names == {"pond", "tree"}
    one = used(parallel_tool_calls=False)
    assert one is not None
    assert not one.parallel


@pytest.mark.parametrize(
    ("known", "opening", "key"),
    [
        (ToolFormat.HERMES, "<tool_call>\n", "arguments"),
        (ToolFormat.LLAMA, "", "parameters"),
        (ToolFormat.MISTRAL, "[TOOL_CALLS]", "arguments"),
    ],
)
def test_a_named_function_is_the_whole_answer(known: ToolFormat, opening: str, key: str) -> None:
    named = used(known, tool_choice=NAMED)
    assert named is not None
    assert named.forced is not None
    assert named.opening == opening
    assert named.forced.param == "tools[1].function.parameters"
    schema = json.loads(named.forced.text)
    root = f"#/properties/{key}"
    if known is ToolFormat.MISTRAL:
        assert (schema["minItems"], schema["maxItems"]) == (1, 1)
        schema, root = schema["items"], f"#/items/properties/{key}"
    assert list(schema["properties"]) == ["name", key]
    assert schema["properties"]["name"] == {"const": "tree"}
    assert schema["properties"][key]["properties"]["left"]["$ref"] == f"{root}/$defs/leaf"


def test_required_lets_any_of_them() -> None:
    required = used(tool_choice="required")
    assert required is not None
    assert required.forced is not None
    options = json.loads(required.forced.text)["anyOf"]
    assert [option["properties"]["name"]["const"] for option in options] == ["pond", "tree"]
    left = options[1]["properties"]["arguments"]["properties"]["left"]
    assert left == {"$ref": "#/anyOf/1/properties/arguments/$defs/leaf"}


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("tools", {"tools": "pond"}),
        ("tools", {"tools": [POND] * 129}),
        ("tools", {"tools": [POND, POND]}),
        ("tools[0]", {"tools": ["pond"]}),
        ("tools[0].type", {"tools": [{"type": "custom", "custom": {"name": "x"}}]}),
        ("tools[0].function", {"tools": [{"type": "function"}]}),
        ("tools[0].function.name", {"tools": [tool("a b")]}),
        ("tools[0].function.name", {"tools": [{"type": "function", "function": {"name": 1}}]}),
        (
            "tools[0].function.parameters",
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
        ),
        ("tool_choice", {"tool_choice": "sometimes"}),
        ("tool_choice", {"tool_choice": "required", "tools": None}),
        ("tool_choice.type", {"tool_choice": {"type": "allowed_tools"}}),
        ("tool_choice.function.name", {"tool_choice": {"type": "function", "function": {}}}),
        ("parallel_tool_calls", {"parallel_tool_calls": "no"}),
        ("functions", {"functions": [{"name": "pond"}]}),
        ("function_call", {"function_call": {"name": "pond"}}),
    ],
)
def test_what_may_not_be_said(param: str, body: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        used(**body)
    assert refusal.value.metadata["param"] == param


@pytest.mark.parametrize("levels", [101, 700])
@pytest.mark.parametrize("known", list(ToolFormat))
def test_parameters_are_not_nested_without_end(known: ToolFormat, levels: int) -> None:
    parameters: dict[str, Any] = {}
    for _ in range(levels):
        parameters = {"items": parameters}
    with pytest.raises(InvalidArgument) as refusal:
        used(known, tools=[tool("pond", **parameters)], tool_choice="required")
    assert refusal.value.metadata["param"] == "tools[0].function.parameters"


def test_a_model_that_cannot_call_refuses() -> None:
    with pytest.raises(InvalidArgument) as refusal:
        tool_use({"tools": [POND]}, None, True)
    assert refusal.value.reason == "UNSUPPORTED_PARAMETER"
    with pytest.raises(InvalidArgument) as refusal:
        tool_use({"tools": [POND], "tool_choice": "required"}, ToolFormat.HERMES, False)
    assert refusal.value.metadata["param"] == "tool_choice"


def test_calls_of_earlier_answers_have_arguments_as_objects() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "pond", "arguments": '{"a": 1}'}}
    (read,) = message_calls([call], "messages[1].tool_calls")
    assert read["function"] == {"name": "pond", "arguments": {"a": 1}}


@pytest.mark.parametrize(
    ("place", "calls"),
    [
        ("", "pond"),
        ("[0]", [{"id": "c"}]),
        ("[0].id", [{"function": {"name": "pond"}}]),
        (
            "[0].function.arguments",
            [{"id": "c", "function": {"name": "pond", "arguments": "[1]"}}],
        ),
        ("[0].function.arguments", [{"id": "c", "function": {"name": "pond", "arguments": "{"}}]),
    ],
)
def test_calls_of_earlier_answers_that_are_none(place: str, calls: Any) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        message_calls(calls, "tool_calls")
    assert refusal.value.metadata["param"] == "tool_calls" + place
